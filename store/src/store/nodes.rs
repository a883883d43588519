//! Nodes of manifests on their way into the index, when their checkpoint is committed.
//!
//! Those of a large checkpoint take several writes. Before the last one, which has the checkpoint's record, they are on a
//! list in the index: what is on it when the next commit begins, or the store is opened, is taken out again. A node
//! that nobody has committed would say of pages that they lie where others do.

use std::{collections::BTreeSet, iter, mem};

use super::Store;
use crate::{
    error::StoreError,
    failpoint::FailPoint,
    hash::Hash,
    manifest::{LONGEST, Node, Reader, Stored, Version},
    nodelog::NodeLog,
    session::FinishedDump,
};

/// Bytes of nodes of one write.
const AT_ONCE: usize = 1 << 20;

impl Store {
    /// Stores the nodes of `logs` that the index does not have; returns the last ones, for the write that commits
    /// them all. `own` are the packs that were written to for them, of which nobody else knows yet. The gate must be held,
    /// and the right to commit.
    ///
    /// # Errors
    /// They cannot be written; then the next commit takes back those that are.
    pub(super) fn store_nodes(&self, logs: &[NodeLog], own: &[u32]) -> Result<Vec<Node>, StoreError> {
        self.index().withdraw_nodes()?;
        let (mut missing, mut size) = (Vec::new(), 0);
        let mut known: BTreeSet<Hash> = BTreeSet::new();
        for log in logs {
            let mut at = 0;
            loop {
                let mut nodes = log.nodes(at, AT_ONCE / 4)?;
                if nodes.is_empty() {
                    break;
                }
                at += nodes.len();
                nodes.retain(|(name, _)| logs.len() == 1 || known.insert(*name));
                let fresh = self.missing_nodes(nodes, own)?;
                size += fresh.iter().map(|(_, bytes)| bytes.len() + 64).sum::<usize>();
                self.directory.check_room_for_index(size as u64)?;
                missing.extend(fresh);
                if size >= AT_ONCE {
                    self.index().announce_nodes(&mem::take(&mut missing))?;
                    FailPoint::NodesAnnounced.hit();
                    size = 0;
                }
            }
        }
        Ok(missing)
    }

    /// Those of `nodes` that are to be written, as they are to be. None of them goes from now on, or what they rest on, unless
    /// a collection of garbage begins that does not find the checkpoint.
    fn missing_nodes(&self, nodes: Vec<Node>, own: &[u32]) -> Result<Vec<Node>, StoreError> {
        let names: Vec<Hash> = nodes.iter().map(|(name, _)| *name).collect();
        self.sharing.keep_nodes(names.iter());
        let (mut missing, mut moved) = (Vec::new(), Vec::new());
        for ((name, bytes), known) in nodes.into_iter().zip(self.index().nodes(&names)?) {
            match known {
                // How a leaf is stored must not change: what it rests on stays because of that.
                Some(known) if self.stands(&name, &known)? => {
                    if !self.catalog.is_current(&known, own) {
                        moved.push((name, self.current(known, own)?));
                    }
                }
                _ => missing.push((name, self.current(bytes, own)?)),
            }
        }
        if !moved.is_empty() {
            self.index().change_nodes(&[], &moved)?;
        }
        Ok(missing)
    }

    /// Whether a node is what its name says, and all is there that it rests on. That does not go any more.
    fn stands(&self, name: &Hash, node: &[u8]) -> Result<bool, StoreError> {
        if Stored::packs_of(node).is_none() {
            return Ok(self.node_names.is_name_of(name, node));
        }
        let mut base = Stored::base_of(node);
        for _ in 0..=LONGEST {
            let Some(at) = base else {
                let reader = Reader::new(self.index(), &self.node_names, self.hasher().zero());
                return Ok(reader.named_leaf(name).is_ok());
            };
            self.sharing.keep_nodes(iter::once(&at));
            let Some(bytes) = self.index().node(&at)? else { return Ok(false) };
            base = Stored::base_of(&bytes);
        }
        Ok(false)
    }

    /// A node whose pages may have moved while it was made.
    fn current(&self, node: Vec<u8>, own: &[u32]) -> Result<Vec<u8>, StoreError> {
        if self.catalog.is_current(&node, own) {
            return Ok(node);
        }
        let Some(mut stored) = Stored::parse(&node, self.hasher().zero()) else { return Ok(node) };
        self.catalog.correct_to_keep(stored.own(), own)?;
        Ok(stored.encode())
    }

    /// Keeps the leaves of dumps that were committed in memory, for the next checkpoint.
    pub(super) fn keep_leaves(&self, finished: Vec<FinishedDump>) -> Result<(), StoreError> {
        for dump in finished {
            let names: Vec<Hash> = dump.leaves.iter().map(Version::name).collect();
            // Another dump may have come first and stored one in another way.
            let as_stored = self.index().check_nodes(&names, |at, node| {
                Stored::base_of(node) == dump.leaves.get(at).and_then(Version::base)
            })?;
            let leaves = dump.leaves.into_iter().zip(as_stored);
            self.leaves.keep(leaves.filter_map(|(leaf, is)| is.then_some(leaf)));
        }
        Ok(())
    }
}
