//! Versions of a leaf: a new one is stored as what differs from an earlier one.
//!
//! A checkpoint changes a few pages of many leaves; to write 16 KiB of names for each would double what it takes. The
//! whole leaf has generation 0, its successors count on, and generation n is stored as a difference of generation
//! n & (n - 1), n without its lowest one. So a leaf rests on as many others as n has ones, six at most, and a page is
//! written in three differences on average before the leaf is written whole again. All that a leaf rests on its
//! predecessor rests on, too, or is: what is there stays there.
//!
//! How a leaf is stored is no part of its name. While something refers to it, how it is stored does not change.

use std::collections::HashMap;

use super::{Leaf, Node, NodeNames, Slots, Stored, encoding::Difference};
use crate::{
    error::{StoreError, hex},
    hash::Hash,
    pack::Place,
};

/// This generation is stored whole.
const GENERATIONS: u16 = 64;

/// The most leaves that one may rest on: what has more is not from this program. A few more than needed: a leaf that two
/// checkpoints made is stored as the first of them had it.
pub const LONGEST: usize = 24;

/// A leaf on which others rest, or itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    generation: u16,
    name: Hash,
    /// Pages in which it may differ from the link before.
    changed: Slots,
}

/// A leaf, and how it is stored: from the whole leaf that it rests on to itself.
#[derive(Clone)]
pub struct Version {
    leaf: Leaf,
    links: Vec<Link>,
}

impl Version {
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    #[must_use]
    pub fn into_leaf(self) -> Leaf {
        self.leaf
    }

    /// # Panics
    /// Never: every version has a link, itself.
    #[must_use]
    pub fn name(&self) -> Hash {
        self.links.last().map(|link| link.name).unwrap_or_default()
    }

    /// What it is stored as a difference of.
    #[must_use]
    pub fn base(&self) -> Option<Hash> {
        let before = self.links.len().checked_sub(2)?;
        self.links.get(before).map(|link| link.name)
    }

    /// All leaves that it rests on.
    pub fn bases(&self) -> impl Iterator<Item = &Hash> {
        self.links.iter().rev().skip(1).map(|link| &link.name)
    }

    /// The leaf called `name`. All that it rests on must be among `nodes`, as far as it is there.
    ///
    /// # Errors
    /// It is missing or damaged, or something is that it rests on; that one is named.
    pub fn assemble(
        name: &Hash,
        nodes: &HashMap<Hash, Vec<u8>>,
        names: &NodeNames,
        zero: &Hash,
    ) -> Result<Self, StoreError> {
        let damaged = |at: &Hash, problem: &str| {
            let leaf = format!("the manifest leaf {}", hex(name));
            StoreError::Damaged(match at == name {
                true => format!("{leaf} {problem}"),
                false => format!("{leaf} cannot be read: {}, which it rests on, {problem}", hex(at)),
            })
        };
        let mut differences: Vec<(Hash, Difference)> = Vec::new();
        let mut at = *name;
        let mut leaf = loop {
            let bytes = nodes.get(&at).ok_or_else(|| damaged(&at, "is missing from the index"))?;
            match Stored::parse(bytes, zero).ok_or_else(|| damaged(&at, "cannot be read"))? {
                Stored::Whole(leaf) => break leaf,
                Stored::Difference(_) if differences.len() == LONGEST => {
                    return Err(damaged(&at, "rests on more leaves than any should"));
                }
                Stored::Difference(difference) => {
                    let base = difference.base;
                    differences.push((at, difference));
                    at = base;
                }
            }
        };
        let mut links = vec![Link { generation: 0, name: at, changed: Slots::ALL }];
        for (name, difference) in differences.iter().rev() {
            let changed = apply(&mut leaf, difference);
            links.push(Link { generation: difference.generation, name: *name, changed });
        }
        if leaf.name(names) == *name {
            return Ok(Self { leaf, links });
        }
        // Which of them is it?
        if let Some(Stored::Whole(mut leaf)) = nodes.get(&at).and_then(|bytes| Stored::parse(bytes, zero)) {
            let mut differences = differences.iter().rev();
            while leaf.name(names) == at {
                let Some((name, difference)) = differences.next() else { break };
                apply(&mut leaf, difference);
                at = *name;
            }
        }
        Err(damaged(&at, "does not have its hash"))
    }
}

/// Returns the pages that have changed.
fn apply(leaf: &mut Leaf, difference: &Difference) -> Slots {
    for at in difference.removed.iter() {
        leaf.remove(at);
    }
    for at in difference.set.present().iter() {
        if let Some((name, place)) = difference.set.get(at) {
            leaf.set(at, *name, place);
        }
    }
    difference.removed | *difference.set.present()
}

/// A leaf that is being changed.
#[derive(Default)]
pub struct Draft {
    leaf: Leaf,
    /// What it is made from, if anything.
    links: Vec<Link>,
    /// Where it differs from that.
    changed: Slots,
}

impl From<Version> for Draft {
    fn from(version: Version) -> Self {
        Self { leaf: version.leaf, links: version.links, changed: Slots::default() }
    }
}

/// A draft as it has come out.
pub struct Settled {
    pub version: Version,
    /// To be stored; `None`: the leaf is what it was made from.
    pub node: Option<Node>,
}

impl Draft {
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    pub fn set(&mut self, at: usize, name: Hash, place: Place) {
        if self.leaf.get(at) != Some((&name, place)) {
            self.leaf.set(at, name, place);
            self.changed.insert(at);
        }
    }

    /// Makes a hole of the page at `at`.
    pub fn remove(&mut self, at: usize) {
        if self.leaf.present().contains(at) {
            self.leaf.remove(at);
            self.changed.insert(at);
        }
    }

    /// Makes holes of all pages.
    pub fn clear(&mut self) {
        self.changed = self.changed | *self.leaf.present();
        self.leaf = Leaf::default();
    }

    /// Names it, and finds out how it is to be stored; `None`: there is no page in it.
    #[must_use]
    pub fn settle(self, names: &NodeNames) -> Option<Settled> {
        if self.leaf.is_empty() {
            return None;
        }
        let name = self.leaf.name(names);
        if self.links.last().is_some_and(|link| link.name == name) {
            let version = Version { leaf: self.leaf, links: self.links };
            return Some(Settled { version, node: None });
        }
        let (links, stored) = self.difference(name).unwrap_or_else(|| {
            let whole = Link { generation: 0, name, changed: Slots::ALL };
            (vec![whole], Stored::Whole(self.leaf.clone()))
        });
        let node = Some((name, stored.encode()));
        Some(Settled { version: Version { leaf: self.leaf, links }, node })
    }

    /// As what differs from an earlier leaf, where that is worth it.
    fn difference(&self, name: Hash) -> Option<(Vec<Link>, Stored)> {
        let generation = self.links.last()?.generation.checked_add(1)?;
        if generation >= GENERATIONS || self.links.len() >= LONGEST {
            return None;
        }
        let base = self.links.iter().rposition(|link| link.generation == generation & (generation - 1))?;
        let (kept, between) = self.links.split_at(base + 1);
        let changed = between.iter().fold(self.changed, |changed, link| changed | link.changed);
        if changed.len() * 2 > self.leaf.len() {
            return None;
        }
        let (mut set, mut removed) = (Leaf::default(), Slots::default());
        for at in changed.iter() {
            match self.leaf.get(at) {
                Some((name, place)) => set.set(at, *name, place),
                None => removed.insert(at),
            }
        }
        let mut links = kept.to_vec();
        let base = links.last()?.name;
        links.push(Link { generation, name, changed });
        Some((links, Stored::Difference(Difference { generation, base, set, removed })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::LEAF_PAGES;

    const ZERO: Hash = [0xee; 32];

    fn page(at: usize, version: u32) -> (Hash, Place) {
        let name = *blake3::hash(&[at.to_le_bytes().as_slice(), &version.to_le_bytes()].concat()).as_bytes();
        (name, Place { pack: version + 1, slot: 1 + at as u32 })
    }

    #[test]
    fn a_long_history_is_small_and_every_version_of_it_reads_back() {
        let names = NodeNames::new(&[1; 32]);
        let mut nodes: HashMap<Hash, Vec<u8>> = HashMap::new();
        let mut history: Vec<Version> = Vec::new();
        let mut draft = Draft::default();
        for at in 0..LEAF_PAGES {
            let (name, place) = page(at, 0);
            draft.set(at, name, place);
        }
        for version in 1..200u32 {
            let settled = draft.settle(&names).unwrap();
            nodes.extend(settled.node);
            history.push(settled.version.clone());
            draft = Draft::from(settled.version);
            for turn in 0..5 {
                let at = (version as usize * 97 + turn * 101) % LEAF_PAGES;
                let (name, place) = page(at, version);
                match (version as usize + turn) % 17 {
                    0 => draft.remove(at),
                    1 => draft.set(at, ZERO, Place::ZERO),
                    _ => draft.set(at, name, place),
                }
            }
        }
        for version in &history {
            let read = Version::assemble(&version.name(), &nodes, &names, &ZERO).unwrap();
            assert!((0..LEAF_PAGES).all(|at| read.leaf.get(at) == version.leaf.get(at)));
            assert_eq!((&read.links, read.base()), (&version.links, version.base()));
            assert!(read.links.len() <= 7, "{}", read.links.len());
        }
        let bytes: usize = nodes.values().map(Vec::len).sum();
        assert!(bytes < history.len() * 1100, "{bytes} bytes for {} versions", history.len());
        // What a version rests on, the one before rests on or is.
        for pair in history.windows(2) {
            let mut bases = pair[1].bases();
            assert!(bases.all(|base| *base == pair[0].name() || pair[0].bases().any(|other| other == base)));
        }
    }

    #[test]
    fn what_changed_for_the_most_part_is_stored_whole() {
        let names = NodeNames::new(&[1; 32]);
        let mut draft = Draft::default();
        (0..100).for_each(|at| draft.set(at, page(at, 0).0, page(at, 0).1));
        let first = draft.settle(&names).unwrap().version;
        let mut draft = Draft::from(first.clone());
        (0..51).for_each(|at| draft.set(at, page(at, 1).0, page(at, 1).1));
        assert_eq!(draft.settle(&names).unwrap().version.base(), None);
        let mut draft = Draft::from(first.clone());
        (0..50).for_each(|at| draft.set(at, page(at, 1).0, page(at, 1).1));
        assert_eq!(draft.settle(&names).unwrap().version.base(), Some(first.name()));
        let mut draft = Draft::from(first.clone());
        draft.set(3, page(3, 0).0, page(3, 1).1);
        assert!(draft.settle(&names).unwrap().node.is_none(), "the name is the same wherever the page lies");
        let mut draft = Draft::from(first);
        draft.clear();
        assert!(draft.settle(&names).is_none());
    }

    #[test]
    fn damage_below_is_told_from_damage_above() {
        let names = NodeNames::new(&[1; 32]);
        let mut nodes: HashMap<Hash, Vec<u8>> = HashMap::new();
        let mut draft = Draft::default();
        (0..100).for_each(|at| draft.set(at, page(at, 0).0, page(at, 0).1));
        let mut versions = Vec::new();
        for version in 1..5 {
            let settled = draft.settle(&names).unwrap();
            nodes.extend(settled.node);
            versions.push(settled.version.name());
            draft = Draft::from(settled.version);
            draft.set(version, page(version, 9).0, page(version, 9).1);
        }
        let problem =
            |nodes: &HashMap<Hash, Vec<u8>>, name: &Hash| match Version::assemble(name, nodes, &names, &ZERO)
            {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            };
        // The fourth rests on the third, and that on the first.
        let mut damaged = nodes.clone();
        *damaged.get_mut(&versions[2]).unwrap().last_mut().unwrap() ^= 1;
        assert_eq!(problem(&damaged, &versions[1]), "");
        let said = problem(&damaged, &versions[3]);
        assert!(
            said.contains(&hex(&versions[2])) && said.contains("rests on, does not have its hash"),
            "{said}"
        );
        let mut damaged = nodes.clone();
        *damaged.get_mut(&versions[3]).unwrap().last_mut().unwrap() ^= 1;
        let said = problem(&damaged, &versions[3]);
        assert!(
            said.ends_with(&format!("the manifest leaf {} does not have its hash", hex(&versions[3]))),
            "{said}"
        );
        nodes.remove(&versions[0]);
        let said = problem(&nodes, &versions[3]);
        assert!(said.contains(&hex(&versions[0])) && said.contains("is missing"), "{said}");
    }
}
