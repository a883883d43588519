//! The nodes of a dump until its checkpoint is committed: in memory, or, where they are many, in a file without a name.
//!
//! They cannot go into the index before: where it finds a node there, the next dump believes it about where pages lie, and
//! what a checkpoint has written that fails is written over.

use std::{collections::HashMap, fs::File, hash::BuildHasherDefault, os::unix::fs::FileExt, sync::Arc};

use crate::{
    directory::Directory,
    error::StoreError,
    hash::Hash,
    manifest::{Node, NodeSource},
    names::NameHasher,
};

/// Bytes of nodes that are kept in memory.
const IN_MEMORY: usize = 2 << 20;

/// Nodes in the order in which they came.
pub struct NodeLog {
    directory: Arc<Directory>,
    file: Option<File>,
    /// Bytes that are in the file.
    written: u64,
    /// What comes behind them.
    tail: Vec<u8>,
    order: Vec<Entry>,
    by_name: HashMap<Hash, u32, BuildHasherDefault<NameHasher>>,
}

#[derive(Clone, Copy)]
struct Entry {
    name: Hash,
    at: u64,
    len: u32,
}

impl NodeLog {
    #[must_use]
    pub fn new(directory: Arc<Directory>) -> Self {
        let (order, tail) = (Vec::new(), Vec::new());
        Self { directory, file: None, written: 0, tail, order, by_name: HashMap::default() }
    }

    /// # Errors
    /// It cannot be written.
    pub fn push(&mut self, (name, bytes): Node) -> Result<(), StoreError> {
        self.by_name.insert(name, self.order.len() as u32);
        let at = self.written + self.tail.len() as u64;
        self.order.push(Entry { name, at, len: bytes.len() as u32 });
        self.tail.extend_from_slice(&bytes);
        if self.tail.len() >= IN_MEMORY {
            self.directory.check_room(self.tail.len() as u64)?;
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(self.directory.scratch()?),
            };
            file.write_all_at(&self.tail, self.written).map_err(self.directory.scratch_error())?;
            self.written += self.tail.len() as u64;
            self.tail.clear();
        }
        Ok(())
    }

    /// # Errors
    /// It cannot be written.
    pub fn extend(&mut self, nodes: Vec<Node>) -> Result<(), StoreError> {
        nodes.into_iter().try_for_each(|node| self.push(node))
    }

    /// # Errors
    /// It cannot be read.
    pub fn get(&self, name: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        let entry = self.by_name.get(name).and_then(|at| self.order.get(*at as usize));
        entry.map(|entry| self.read(entry)).transpose()
    }

    /// The nodes from number `first` on: at least one if there is any, until they have `bytes` bytes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn nodes(&self, first: usize, bytes: usize) -> Result<Vec<Node>, StoreError> {
        let mut nodes = Vec::new();
        let mut left = bytes;
        for entry in self.order.iter().skip(first) {
            nodes.push((entry.name, self.read(entry)?));
            left = left.saturating_sub(entry.len as usize);
            if left == 0 {
                break;
            }
        }
        Ok(nodes)
    }

    fn read(&self, entry: &Entry) -> Result<Vec<u8>, StoreError> {
        let len = entry.len as usize;
        if let Some(at) = entry.at.checked_sub(self.written) {
            return Ok(self.tail[at as usize..at as usize + len].to_vec());
        }
        let mut bytes = vec![0; len];
        if let Some(file) = &self.file {
            file.read_exact_at(&mut bytes, entry.at).map_err(self.directory.scratch_error())?;
        }
        Ok(bytes)
    }
}

/// The index, and in front of it what is not there yet.
pub struct Layered<'a> {
    pub log: &'a NodeLog,
    pub index: &'a dyn NodeSource,
}

impl NodeSource for Layered<'_> {
    fn node(&self, name: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        match self.log.get(name)? {
            None => self.index.node(name),
            found => Ok(found),
        }
    }

    fn nodes(&self, names: &[Hash]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut nodes = self.index.nodes(names)?;
        for (node, name) in nodes.iter_mut().zip(names) {
            if let Some(found) = self.log.get(name)? {
                *node = Some(found);
            }
        }
        Ok(nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_back_from_memory_and_from_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let directory = Directory::open(&directory.path().join("store"), false).unwrap();
        let mut log = NodeLog::new(Arc::new(directory));
        let node = |number: u8| ([number; 32], vec![number; 20_000]);
        for number in 0..230 {
            log.push(node(number)).unwrap();
        }
        assert!(log.file.is_some() && !log.tail.is_empty());
        for number in [0, 1, 100, 104, 105, 106, 229] {
            assert_eq!(log.get(&[number; 32]).unwrap(), Some(node(number).1));
        }
        assert_eq!(log.get(&[230; 32]).unwrap(), None);
        let mut all = Vec::new();
        loop {
            let some = log.nodes(all.len(), 50_000).unwrap();
            assert!(some.len() <= 3);
            if some.is_empty() {
                break;
            }
            all.extend(some);
        }
        assert!(all == (0..230).map(node).collect::<Vec<_>>());
    }
}
