//! What differs between two trees: a walk of both at once that passes over what is equal.

use std::collections::BTreeSet;

use stasis_protocol::store::Change;

use super::{
    LEAF_PAGES, Leaf, Manifest, Reader, Version,
    tree::{LEVEL_BITS, LEVELS},
};
use crate::{error::StoreError, hash::Hash};

/// Takes a page number and how it differs.
pub type Show<'a> = dyn FnMut(u64, Change) + 'a;

impl Reader<'_> {
    /// Shows, in order, the pages that differ between the trees `from` and `to`; `None` is an empty tree.
    ///
    /// # Errors
    /// A node on the way is missing or damaged.
    pub fn differences(
        &mut self,
        from: Option<Hash>,
        to: Option<Hash>,
        show: &mut Show<'_>,
    ) -> Result<(), StoreError> {
        self.compare(from, to, LEVELS, 0, show)
    }

    fn compare(
        &mut self,
        from: Option<Hash>,
        to: Option<Hash>,
        level: u32,
        first: u64,
        show: &mut Show<'_>,
    ) -> Result<(), StoreError> {
        if from == to {
            return Ok(());
        }
        if level == 0 {
            return self.compare_leaves(from, to, first * LEAF_PAGES as u64, show);
        }
        let mut children = |name: Option<Hash>| match name {
            Some(name) => Ok::<_, StoreError>(self.children(&name)?.clone()),
            None => Ok(Default::default()),
        };
        let (from, to) = (children(from)?, children(to)?);
        let width = 1u64 << ((level - 1) * LEVEL_BITS);
        let indices: BTreeSet<u16> = from.keys().chain(to.keys()).copied().collect();
        for index in indices {
            let first = first + u64::from(index) * width;
            self.compare(from.get(&index).copied(), to.get(&index).copied(), level - 1, first, show)?;
        }
        Ok(())
    }

    fn compare_leaves(
        &mut self,
        from: Option<Hash>,
        to: Option<Hash>,
        first: u64,
        show: &mut Show<'_>,
    ) -> Result<(), StoreError> {
        let leaf = |name: Option<Hash>| match name {
            Some(name) => self.named_leaf(&name).map(Version::into_leaf),
            None => Ok(Leaf::default()),
        };
        let (from, to) = (leaf(from)?, leaf(to)?);
        for at in 0..LEAF_PAGES {
            let change = match (from.get(at), to.get(at)) {
                (None, None) => continue,
                (None, Some(_)) => Change::Added,
                (Some(_), None) => Change::Removed,
                (Some((old, _)), Some((new, _))) if old == new => continue,
                (Some(_), Some(_)) => Change::Changed,
            };
            show(first + at as u64, change);
        }
        Ok(())
    }
}

/// The spaces of two manifests, with their roots in each.
pub fn spaces(from: &Manifest, to: &Manifest) -> Vec<(u32, Option<Hash>, Option<Hash>)> {
    let spaces: BTreeSet<u32> = from.roots.iter().chain(&to.roots).map(|root| root.space).collect();
    let name = |manifest: &Manifest, space| manifest.root(space).map(|root| root.name);
    spaces.into_iter().map(|space| (space, name(from, space), name(to, space))).collect()
}
