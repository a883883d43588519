//! A leaf: up to 512 pages, their names and where they lie.
//!
//! Not here: its bytes (`encoding`), and what it has in common with earlier ones (`version`).

use super::{NodeNames, Slots};
use crate::{hash::Hash, pack::Place};

/// Pages per leaf, and children per node above.
pub const LEAF_PAGES: usize = 512;

const TAG: u8 = b'L';

/// The pages of 2 MiB of a space.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Leaf {
    present: Slots,
    /// Empty, or one entry for each of the [`LEAF_PAGES`]: an emptied leaf costs nothing.
    names: Vec<Hash>,
    places: Vec<Place>,
}

/// Pages one after the other, in a leaf and in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafRun {
    pub first: usize,
    pub pages: usize,
    /// Of the first page; the others follow it, unless it is [`Place::ZERO`].
    pub place: Place,
}

impl Leaf {
    /// Which pages there are.
    #[must_use]
    pub fn present(&self) -> &Slots {
        &self.present
    }

    /// The name and the place of the page at `at`, counted from the leaf's first.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<(&Hash, Place)> {
        self.present.contains(at).then(|| (&self.names[at], self.places[at]))
    }

    pub fn set(&mut self, at: usize, name: Hash, place: Place) {
        if self.names.is_empty() {
            self.names = vec![[0; 32]; LEAF_PAGES];
            self.places = vec![Place::ZERO; LEAF_PAGES];
        }
        self.present.insert(at);
        self.names[at] = name;
        self.places[at] = place;
    }

    /// Makes a hole of the page at `at`.
    pub fn remove(&mut self, at: usize) {
        self.present.remove(at);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// The pages in order, as long runs as can be.
    #[must_use]
    pub fn runs(&self) -> Vec<LeafRun> {
        let mut runs: Vec<LeafRun> = Vec::new();
        for at in self.present.iter() {
            let place = self.places[at];
            if let Some(run) = runs.last_mut()
                && run.first + run.pages == at
                && follows(run.place, run.pages, place)
            {
                run.pages += 1;
            } else {
                runs.push(LeafRun { first: at, pages: 1, place });
            }
        }
        runs
    }

    /// What the leaf is called: the hash of which pages it has and of their names.
    #[must_use]
    pub fn name(&self, names: &NodeNames) -> Hash {
        // In one piece: a hasher that is given parts hashes most of a leaf block by block.
        let mut bytes = Vec::with_capacity(1 + LEAF_PAGES / 8 + LEAF_PAGES * 32);
        bytes.push(TAG);
        bytes.extend_from_slice(&self.present.to_bytes());
        for range in self.present.ranges() {
            bytes.extend_from_slice(self.names[range].as_flattened());
        }
        names.name(&bytes)
    }

    /// The names of pages `first..first + pages`.
    #[must_use]
    pub fn names(&self, first: usize, pages: usize) -> &[Hash] {
        &self.names[first..first + pages]
    }
}

/// Whether `place` comes right behind `pages` pages from `start` on.
pub(super) fn follows(start: Place, pages: usize, place: Place) -> bool {
    if start == Place::ZERO || place == Place::ZERO {
        start == place
    } else {
        start.pack == place.pack && u64::from(start.slot) + pages as u64 == u64::from(place.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_leaf_ignores_places() {
        let names = NodeNames::new(&[1; 32]);
        let mut leaf = Leaf::default();
        for at in [0, 1, 2, 63, 64, 100, 511] {
            leaf.set(at, [at as u8; 32], Place { pack: 1, slot: 1 + at as u32 });
        }
        leaf.set(5, [5; 32], Place { pack: 2, slot: 1 });
        leaf.remove(5);
        assert_eq!((leaf.len(), leaf.runs().len(), leaf.get(5)), (7, 4, None));
        let name = leaf.name(&names);
        let mut moved = leaf.clone();
        moved.set(0, [0; 32], Place { pack: 7, slot: 70 });
        assert_eq!(moved.name(&names), name);
        let mut other = leaf.clone();
        other.remove(0);
        assert_ne!(other.name(&names), name);
    }
}
