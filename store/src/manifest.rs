//! Manifests: the address space of a process as a Merkle tree of page names.
//!
//! A leaf covers 512 pages (2 MiB, aligned), a node above it 512 nodes, [`tree::LEVELS`] of them: the shape
//! of the page tables, for the same reason (address spaces are sparse). A node's name is the hash of
//! the names below it, so equal parts of two checkpoints are one node, and what did not change costs
//! nothing in the next manifest. A leaf also says where its pages lie; that is a hint beside the
//! names and no part of them, so pages can move without any manifest changing its name. How a leaf is stored, whole or
//! as what differs from an earlier one (`version`), is no part of its name either.
//!
//! Nodes are hashed with a key of their own, derived from the store's secret: no page's content can
//! be mistaken for a node.
//!
//! Not here: where nodes are kept (`index`), and how a dump fills leaves (`dump`).

mod difference;
mod encoding;
#[cfg(test)]
mod hostile;
mod leaf;
mod slots;
mod tree;
mod version;

pub use difference::spaces;
pub use encoding::Stored;
pub use leaf::{LEAF_PAGES, Leaf};
pub use slots::Slots;
pub use tree::{Inner, MAX_PAGE, NodeSource, Reader, rebuild};
pub use version::{Draft, LONGEST, Version};

use serde::{Deserialize, Serialize};
use stasis_protocol::{store::Space, wire};

use crate::{
    error::{StoreError, hex},
    hash::Hash,
};

const VERSION: u32 = 1;

/// A node, or a manifest: its name and its bytes.
pub type Node = (Hash, Vec<u8>);

/// Hashes nodes.
#[derive(Clone)]
pub struct NodeNames {
    key: [u8; 32],
}

impl NodeNames {
    /// For the store whose secret is `key`.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self { key: blake3::derive_key("Stasis 2026 names of manifest nodes", key) }
    }

    /// Whether a node or manifest with these bytes is called `name`; leaves are not called by their bytes.
    #[must_use]
    pub fn is_name_of(&self, name: &Hash, bytes: &[u8]) -> bool {
        self.name(bytes) == *name
    }

    fn name(&self, bytes: &[u8]) -> Hash {
        *blake3::keyed_hash(&self.key, bytes).as_bytes()
    }
}

/// A space of a dumped process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub space: Space,
    /// The name of the tree's uppermost node.
    pub name: Hash,
    /// How many pages the tree names.
    pub pages: u64,
}

/// A dumped process: its record and the roots of its spaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// Sorted by space.
    pub roots: Vec<Root>,
    /// The encoded [`stasis_protocol::image::ProcessImage`], as the process gave it.
    pub record: Vec<u8>,
}

impl Manifest {
    #[must_use]
    pub fn new(roots: Vec<Root>, record: Vec<u8>) -> Self {
        Self { version: VERSION, roots, record }
    }

    /// Its name and bytes.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn encode(&self, names: &NodeNames) -> Result<Node, StoreError> {
        let bytes = wire::encode(self)?;
        Ok((names.name(&bytes), bytes))
    }

    /// The manifest called `name`.
    ///
    /// # Errors
    /// It is not in the store, or is not what its name says.
    pub fn load(source: &dyn NodeSource, names: &NodeNames, name: &Hash) -> Result<Self, StoreError> {
        let Some(bytes) = source.node(name)? else {
            return Err(StoreError::Damaged(format!("the manifest {} is missing from the index", hex(name))));
        };
        if names.name(&bytes) != *name {
            return Err(StoreError::Damaged(format!("the manifest {} does not have its hash", hex(name))));
        }
        let manifest: Self = wire::decode(&bytes)?;
        if manifest.version > VERSION {
            return Err(StoreError::Refused(format!(
                "the manifest {} has version {}, this program knows versions up to {VERSION}; use the newer Stasis",
                hex(name),
                manifest.version
            )));
        }
        Ok(manifest)
    }

    /// The root of a space.
    #[must_use]
    pub fn root(&self, space: Space) -> Option<&Root> {
        let at = self.roots.binary_search_by_key(&space, |root| root.space).ok()?;
        self.roots.get(at)
    }
}
