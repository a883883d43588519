//! What is needed: nodes by name, pages by place.

use std::{collections::HashSet, hash::BuildHasherDefault};

use crate::{
    error::{StoreError, hex},
    hash::Hash,
    manifest::{Leaf, Manifest, Reader},
    names::NameHasher,
    pack::{Place, set::PlaceSet},
    store::Store,
};

/// Names of nodes, by their first half: a memory of all of them must be small, and 2^64 nodes are far.
#[derive(Default)]
pub struct NodeSet(HashSet<[u8; 16], BuildHasherDefault<NameHasher>>);

impl NodeSet {
    /// Returns whether it is new.
    pub fn insert(&mut self, name: &Hash) -> bool {
        self.0.insert(half(name))
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    #[must_use]
    pub fn contains(&self, name: &Hash) -> bool {
        self.0.contains(&half(name))
    }
}

fn half(name: &Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&name[..16]);
    half
}

#[derive(Default)]
pub struct Marks {
    /// Nodes that checkpoints consist of.
    pub nodes: NodeSet,
    /// Leaves that those rest on. They may name pages that nobody needs.
    pub bases: NodeSet,
    pub places: PlaceSet,
}

impl Marks {
    /// All nodes that must stay.
    #[must_use]
    pub fn into_nodes(self) -> NodeSet {
        let Self { mut nodes, bases, .. } = self;
        nodes.extend(&bases);
        nodes
    }
}

/// Marks what all checkpoints need, but for what is marked already.
///
/// # Errors
/// A manifest is damaged or cannot be read.
pub fn checkpoints(store: &Store, marks: &mut Marks) -> Result<(), StoreError> {
    for record in store.index().checkpoints()? {
        for process in &record.draft.processes {
            manifest(store, marks, &process.manifest).map_err(|error| match error {
                StoreError::Damaged(problem) => StoreError::Damaged(format!(
                    "{problem}; pid {} of the checkpoint {} needs it. Nothing was removed: `stasis verify` names \
                     all that is damaged, `stasis prune --no-gc {}` gives that checkpoint up",
                    process.pid, record.id, record.id
                )),
                other => other,
            })?;
        }
    }
    Ok(())
}

/// Marks what dumps under way refer to. Their new nodes are theirs; commits see to them.
///
/// # Errors
/// As [`checkpoints`].
pub fn sessions(store: &Store, marks: &mut Marks) -> Result<(), StoreError> {
    for base in store.in_use(&mut marks.places) {
        manifest(store, marks, &base)?;
    }
    Ok(())
}

fn manifest(store: &Store, marks: &mut Marks, name: &Hash) -> Result<(), StoreError> {
    if !marks.nodes.insert(name) {
        return Ok(());
    }
    let manifest = Manifest::load(store.index(), store.node_names(), name)?;
    for root in &manifest.roots {
        let Marks { nodes, bases, places } = marks;
        if nodes.contains(&root.name) {
            continue;
        }
        let mut reader = Reader::new(store.index(), store.node_names(), store.hasher().zero());
        reader.each_leaf(root.name, &mut |leaf| nodes.insert(leaf), &mut |_, name, leaf| {
            let leaf = leaf?;
            leaf.bases().for_each(|base| {
                bases.insert(base);
            });
            let mut leaf = leaf.into_leaf();
            store.catalog().correct_to_read(&mut leaf).map_err(|error| match error {
                StoreError::Damaged(problem) => {
                    StoreError::Damaged(format!("{problem} (leaf {})", hex(name)))
                }
                other => other,
            })?;
            mark(places, &leaf);
            Ok(())
        })?;
        // Only now: with a node all that is below it is marked.
        reader.inner_names().for_each(|name| {
            nodes.insert(name);
        });
    }
    Ok(())
}

fn mark(places: &mut PlaceSet, leaf: &Leaf) {
    for run in leaf.runs() {
        if run.place != Place::ZERO {
            places.insert(run.place, run.pages);
        }
    }
}
