//! Which packs belong to the store at this moment.

use std::collections::BTreeSet;

/// The packs that have a record, and those of them that are about to be given up.
#[derive(Debug, Default)]
pub struct PackStates {
    known: BTreeSet<u32>,
    condemned: BTreeSet<u32>,
}

impl PackStates {
    pub fn add(&mut self, packs: impl IntoIterator<Item = u32>) {
        self.known.extend(packs);
    }

    pub fn remove(&mut self, packs: &[u32]) {
        for pack in packs {
            self.known.remove(pack);
            self.condemned.remove(pack);
        }
    }

    pub fn condemn(&mut self, packs: impl IntoIterator<Item = u32>) {
        self.condemned.extend(packs);
    }

    pub fn absolve(&mut self, pack: u32) {
        self.condemned.remove(&pack);
    }

    /// Whether a page in it can be read.
    #[must_use]
    pub fn is_known(&self, pack: u32) -> bool {
        self.known.contains(&pack)
    }

    /// Whether new checkpoints may refer to it.
    #[must_use]
    pub fn is_usable(&self, pack: u32) -> bool {
        self.known.contains(&pack) && !self.condemned.contains(&pack)
    }
}
