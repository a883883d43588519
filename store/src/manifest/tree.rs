//! The nodes above the leaves: reading a tree, and making one from another and what changed.
//!
//! Encoded: `N`, version u8, children u16, then for each child (index u16, name 32), by index.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use super::{LEAF_PAGES, Node, NodeNames, Stored, Version};
use crate::{
    error::{StoreError, hex},
    hash::Hash,
};

/// Levels of nodes above the leaves: with these, a space has 2^45 pages, what five-level page tables
/// give a process.
pub const LEVELS: u32 = 4;

/// Bits of a page number that one level stands for.
pub(super) const LEVEL_BITS: u32 = LEAF_PAGES.trailing_zeros();

/// Page numbers are below this.
pub const MAX_PAGE: u64 = 1 << (LEVEL_BITS * (LEVELS + 1));

/// How many leaves are read from the index at a time.
const LEAVES_AT_ONCE: usize = 64;

const TAG: u8 = b'N';
const VERSION: u8 = 1;
const CHILD: usize = 34;

/// Where encoded nodes come from.
pub trait NodeSource {
    /// # Errors
    /// The source cannot be read.
    fn node(&self, name: &Hash) -> Result<Option<Vec<u8>>, StoreError>;

    /// # Errors
    /// As [`NodeSource::node`].
    fn nodes(&self, names: &[Hash]) -> Result<Vec<Option<Vec<u8>>>, StoreError>;
}

impl NodeSource for crate::index::Index {
    fn node(&self, name: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        self.node(name)
    }

    fn nodes(&self, names: &[Hash]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.nodes(names)
    }
}

/// Takes a leaf: the number of its first page, its name, and what it is or why it cannot be read.
pub type ShowLeaf<'a> = dyn FnMut(u64, &Hash, Result<Version, StoreError>) -> Result<(), StoreError> + 'a;

pub(super) type Children = BTreeMap<u16, Hash>;

fn encode(children: &Children) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + children.len() * CHILD);
    bytes.extend_from_slice(&[TAG, VERSION]);
    bytes.extend_from_slice(&(children.len() as u16).to_le_bytes());
    for (index, name) in children {
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(name);
    }
    bytes
}

fn decode(bytes: &[u8], name: &Hash, names: &NodeNames) -> Result<Children, StoreError> {
    let damaged = |problem| StoreError::Damaged(format!("the manifest node {} {problem}", hex(name)));
    if names.name(bytes) != *name {
        return Err(damaged("does not have its hash"));
    }
    let parsed = bytes.split_first_chunk::<4>().and_then(|(head, table)| {
        let count = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let (entries, rest) = table.as_chunks::<CHILD>();
        if head[..2] != [TAG, VERSION] || entries.len() != count || !rest.is_empty() {
            return None;
        }
        let mut children = Children::new();
        for entry in entries {
            let (index, child) = entry.split_first_chunk::<2>()?;
            let index = u16::from_le_bytes(*index);
            if usize::from(index) >= LEAF_PAGES {
                return None;
            }
            children.insert(index, *child.first_chunk()?);
        }
        Some(children)
    });
    parsed.ok_or_else(|| damaged("cannot be read"))
}

/// Reads trees, remembering the nodes above the leaves.
pub struct Reader<'a> {
    source: &'a dyn NodeSource,
    names: &'a NodeNames,
    zero: &'a Hash,
    inner: Inner,
}

/// Nodes above the leaves that have been read, by name.
pub type Inner = HashMap<Hash, Children>;

impl<'a> Reader<'a> {
    /// `zero` is the name of a page of zeros.
    #[must_use]
    pub fn new(source: &'a dyn NodeSource, names: &'a NodeNames, zero: &'a Hash) -> Self {
        Self::knowing(source, names, zero, Inner::new())
    }

    /// One that need not read what another one has read.
    #[must_use]
    pub fn knowing(source: &'a dyn NodeSource, names: &'a NodeNames, zero: &'a Hash, inner: Inner) -> Self {
        Self { source, names, zero, inner }
    }

    /// What has been read.
    #[must_use]
    pub fn into_inner(self) -> Inner {
        self.inner
    }

    /// The leaf with this number (page number divided by [`LEAF_PAGES`]).
    ///
    /// # Errors
    /// A node on the way is missing or damaged.
    #[cfg(test)]
    pub fn leaf(&mut self, root: Hash, number: u64) -> Result<Option<Version>, StoreError> {
        self.leaf_name(root, number)?.map(|name| self.named_leaf(&name)).transpose()
    }

    /// The name of the leaf with this number.
    ///
    /// # Errors
    /// As [`Reader::leaf`].
    pub fn leaf_name(&mut self, root: Hash, number: u64) -> Result<Option<Hash>, StoreError> {
        let mut name = root;
        for level in (0..LEVELS).rev() {
            let index = (number >> (level * LEVEL_BITS)) as u16 & (LEAF_PAGES as u16 - 1);
            match self.children(&name)?.get(&index) {
                Some(child) => name = *child,
                None => return Ok(None),
            }
        }
        Ok(Some(name))
    }

    /// The numbers of the leaves that there are in a range of leaf numbers.
    ///
    /// # Errors
    /// As [`Reader::leaf`].
    pub fn leaves_in(&mut self, root: Hash, range: Range<u64>) -> Result<Vec<u64>, StoreError> {
        let mut found = Vec::new();
        self.collect_leaves(root, LEVELS, 0, &range, &mut found)?;
        Ok(found.into_iter().map(|(number, _)| number).collect())
    }

    fn collect_leaves(
        &mut self,
        name: Hash,
        level: u32,
        first: u64,
        range: &Range<u64>,
        found: &mut Vec<(u64, Hash)>,
    ) -> Result<(), StoreError> {
        if level == 0 {
            found.push((first, name));
            return Ok(());
        }
        let width = 1u64 << ((level - 1) * LEVEL_BITS);
        for (index, child) in self.children(&name)?.clone() {
            let start = first + u64::from(index) * width;
            if start < range.end && start + width > range.start {
                self.collect_leaves(child, level - 1, start, range, found)?;
            }
        }
        Ok(())
    }

    /// Shows each leaf of a tree, in order, with the number of its first page and its name; `want`
    /// says by name which. A node that cannot be read is shown as the error.
    ///
    /// # Errors
    /// What `show` gives.
    pub fn each_leaf(
        &mut self,
        root: Hash,
        want: &mut dyn FnMut(&Hash) -> bool,
        show: &mut ShowLeaf<'_>,
    ) -> Result<(), StoreError> {
        self.walk(root, LEVELS, 0, &|_| true, want, show)
    }

    /// The same of the leaves with numbers for which `within` holds; it is asked of ranges that have any such.
    ///
    /// # Errors
    /// What `show` gives.
    pub fn each_leaf_within(
        &mut self,
        root: Hash,
        within: &dyn Fn(Range<u64>) -> bool,
        show: &mut ShowLeaf<'_>,
    ) -> Result<(), StoreError> {
        self.walk(root, LEVELS, 0, within, &mut |_| true, show)
    }

    fn walk(
        &mut self,
        name: Hash,
        level: u32,
        first: u64,
        within: &dyn Fn(Range<u64>) -> bool,
        want: &mut dyn FnMut(&Hash) -> bool,
        show: &mut ShowLeaf<'_>,
    ) -> Result<(), StoreError> {
        let children = match self.children(&name) {
            Ok(children) => children.clone(),
            Err(error) => return show(first * LEAF_PAGES as u64, &name, Err(error)),
        };
        let width = 1u64 << ((level - 1) * LEVEL_BITS);
        if level > 1 {
            for (index, child) in children {
                let first = first + u64::from(index) * width;
                if within(first..first + width) {
                    self.walk(child, level - 1, first, within, want, show)?;
                }
            }
            return Ok(());
        }
        let is_within = |index: u16| within(first + u64::from(index)..first + u64::from(index) + 1);
        let wanted = children.into_iter().filter(|(index, child)| is_within(*index) && want(child));
        let wanted: Vec<(u16, Hash)> = wanted.collect();
        for part in wanted.chunks(LEAVES_AT_ONCE) {
            let names: Vec<Hash> = part.iter().map(|(_, child)| *child).collect();
            let nodes = self.with_bases(&names)?;
            for (index, child) in part {
                let page = (first + u64::from(*index)) * LEAF_PAGES as u64;
                show(page, child, Version::assemble(child, &nodes, self.names, self.zero))?;
            }
        }
        Ok(())
    }

    /// The names of the nodes above the leaves that were read.
    pub fn inner_names(&self) -> impl Iterator<Item = &Hash> {
        self.inner.keys()
    }

    /// The leaf called `name`.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn named_leaf(&self, name: &Hash) -> Result<Version, StoreError> {
        Version::assemble(name, &self.with_bases(&[*name])?, self.names, self.zero)
    }

    /// The nodes called `names`, and those that they rest on; what is not there is left out.
    fn with_bases(&self, names: &[Hash]) -> Result<HashMap<Hash, Vec<u8>>, StoreError> {
        let mut nodes: HashMap<Hash, Vec<u8>> = HashMap::with_capacity(2 * names.len());
        let mut wanted = names.to_vec();
        while !wanted.is_empty() {
            let found: Vec<_> = wanted.iter().zip(self.source.nodes(&wanted)?).collect();
            let found = found.into_iter().filter_map(|(name, bytes)| Some((*name, bytes?)));
            let found: Vec<Node> = found.collect();
            wanted = found.iter().filter_map(|(_, bytes)| Stored::base_of(bytes)).collect();
            nodes.extend(found);
            wanted.retain(|name| !nodes.contains_key(name));
            wanted.sort_unstable();
            wanted.dedup();
        }
        Ok(nodes)
    }

    pub(super) fn children(&mut self, name: &Hash) -> Result<&Children, StoreError> {
        use std::collections::hash_map::Entry;
        match self.inner.entry(*name) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let bytes = self.source.node(name)?.ok_or_else(|| missing(name))?;
                Ok(entry.insert(decode(&bytes, name, self.names)?))
            }
        }
    }
}

fn missing(name: &Hash) -> StoreError {
    StoreError::Damaged(format!("the manifest node {} is missing from the index", hex(name)))
}

/// A tree as made by [`rebuild`].
#[derive(Default)]
pub struct Rebuilt {
    /// `None`: there is not a page in it.
    pub root: Option<Hash>,
    /// The nodes above the leaves that were made, with their names.
    pub nodes: Vec<Node>,
}

/// The tree `base` with the leaves called `changed` (by number, in order) in place of its own; `None` takes the place of
/// one that there is no more.
///
/// # Errors
/// A node of the base is missing or damaged.
pub fn rebuild(
    reader: &mut Reader<'_>,
    base: Option<Hash>,
    changed: &[(u64, Option<Hash>)],
) -> Result<Rebuilt, StoreError> {
    let mut rebuilt = Rebuilt::default();
    rebuilt.root =
        if changed.is_empty() { base } else { build(reader, LEVELS, base, changed, &mut rebuilt.nodes)? };
    Ok(rebuilt)
}

fn build(
    reader: &mut Reader<'_>,
    level: u32,
    base: Option<Hash>,
    changed: &[(u64, Option<Hash>)],
    nodes: &mut Vec<Node>,
) -> Result<Option<Hash>, StoreError> {
    if level == 0 {
        return Ok(changed.first().and_then(|(_, name)| *name));
    }
    let mut children = match base {
        Some(base) => reader.children(&base)?.clone(),
        None => Children::new(),
    };
    let shift = (level - 1) * LEVEL_BITS;
    for group in changed.chunk_by(|(a, _), (b, _)| a >> shift == b >> shift) {
        let index = (group[0].0 >> shift) as u16 & (LEAF_PAGES as u16 - 1);
        match build(reader, level - 1, children.get(&index).copied(), group, nodes)? {
            Some(name) => children.insert(index, name),
            None => children.remove(&index),
        };
    }
    if children.is_empty() {
        return Ok(None);
    }
    let bytes = encode(&children);
    let name = reader.names.name(&bytes);
    nodes.push((name, bytes));
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::{
        manifest::{Draft, Leaf},
        pack::Place,
    };

    #[derive(Default)]
    struct Memory(RefCell<HashMap<Hash, Vec<u8>>>);

    impl NodeSource for Memory {
        fn node(&self, name: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(self.0.borrow().get(name).cloned())
        }

        fn nodes(&self, names: &[Hash]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
            names.iter().map(|name| self.node(name)).collect()
        }
    }

    fn leaf(pages: &[(usize, u8)]) -> Leaf {
        let mut leaf = Leaf::default();
        for (at, content) in pages {
            leaf.set(*at, [*content; 32], Place { pack: 1, slot: u32::from(*content) });
        }
        leaf
    }

    fn grow(memory: &Memory, names: &NodeNames, base: Option<Hash>, changed: &[(u64, Leaf)]) -> Option<Hash> {
        let mut settled = Vec::new();
        for (number, leaf) in changed {
            let mut draft = Draft::default();
            for at in leaf.present().iter() {
                let (name, place) = leaf.get(at).unwrap();
                draft.set(at, *name, place);
            }
            let leaf = draft.settle(names);
            settled.push((*number, leaf.as_ref().map(|leaf| leaf.version.name())));
            memory.0.borrow_mut().extend(leaf.and_then(|leaf| leaf.node));
        }
        let rebuilt = rebuild(&mut Reader::new(memory, names, &[0; 32]), base, &settled).unwrap();
        memory.0.borrow_mut().extend(rebuilt.nodes);
        rebuilt.root
    }

    #[test]
    fn a_tree_grown_from_a_base_equals_one_made_at_once() {
        let (memory, names) = (Memory::default(), NodeNames::new(&[3; 32]));
        let far = MAX_PAGE / LEAF_PAGES as u64 - 1;
        let base = grow(
            &memory,
            &names,
            None,
            &[(0, leaf(&[(1, 1)])), (512, leaf(&[(2, 2)])), (far, leaf(&[(3, 3)]))],
        );
        let grown = grow(&memory, &names, base, &[(0, leaf(&[])), (513, leaf(&[(4, 4)]))]);
        let whole = grow(
            &memory,
            &names,
            None,
            &[(512, leaf(&[(2, 2)])), (513, leaf(&[(4, 4)])), (far, leaf(&[(3, 3)]))],
        );
        assert_eq!(grown, whole);
        assert_ne!(grown, base);
        let emptied = grow(&memory, &names, grown, &[(512, leaf(&[])), (513, leaf(&[])), (far, leaf(&[]))]);
        assert_eq!(emptied, None);

        let mut reader = Reader::new(&memory, &names, &[0; 32]);
        assert_eq!(reader.leaves_in(grown.unwrap(), 0..far).unwrap(), [512, 513]);
        assert_eq!(reader.leaf(grown.unwrap(), 513).unwrap().unwrap().leaf().get(4).unwrap().0, &[4; 32]);
        assert!(reader.leaf(grown.unwrap(), 0).unwrap().is_none());
    }

    #[test]
    fn a_damaged_node_is_shown_and_the_rest_is_walked() {
        let (memory, names) = (Memory::default(), NodeNames::new(&[3; 32]));
        let root = grow(&memory, &names, None, &[(0, leaf(&[(1, 1)])), (1 << 18, leaf(&[(2, 2)]))]).unwrap();
        let victim = leaf(&[(1, 1)]).name(&names);
        memory.0.borrow_mut().insert(victim, vec![0]);
        let mut seen = Vec::new();
        Reader::new(&memory, &names, &[0; 32])
            .each_leaf(root, &mut |_| true, &mut |page, name, leaf| {
                seen.push((page, *name == victim, leaf.is_ok()));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [(0, true, false), (512 << 18, false, true)]);
    }
}
