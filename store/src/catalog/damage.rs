//! Stored pages that turned out not to be what was stored.
//!
//! Nothing new refers to them: the next checkpoint that has such a page writes it again, and so heals all that have
//! it, since a page whose place is damaged is looked for elsewhere, as one that has moved is. Which places are
//! damaged is found by `verify`, and by whoever moves pages; it is kept in the index. What the disk does not give (a pack
//! that is not there or is too short, which is looked for when a store is opened; EIO) may come back: that is known until the server
//! ends, or `verify` reads it.

use std::{
    collections::BTreeSet,
    sync::{PoisonError, RwLockReadGuard},
};

use super::Catalog;
use crate::{
    error::StoreError,
    index::Changes,
    pack::{Place, SLOTS, set::PlaceSet},
};

impl Catalog {
    /// Whether any page is known to be damaged.
    #[must_use]
    pub fn has_damage(&self) -> bool {
        !self.damaged().is_empty()
    }

    /// Whether the page at `place` is known to be damaged.
    #[must_use]
    pub fn is_damaged(&self, place: Place) -> bool {
        self.damaged().contains(place)
    }

    /// Notes that pages are damaged, that others cannot be read, and that others are not damaged any more.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note_damage(
        &self,
        damaged: &[Place],
        unreadable: &[Place],
        whole: &[Place],
    ) -> Result<(), StoreError> {
        let records = self.records();
        let mut known = self.damaged.write().unwrap_or_else(PoisonError::into_inner);
        let mut passing = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        for place in unreadable.iter().filter(|place| records.contains_key(&place.pack)) {
            if !known.contains(*place) {
                known.insert(*place, 1);
                passing.insert(*place, 1);
            }
        }
        let mut packs = BTreeSet::new();
        for (places, is_damaged) in [(damaged, true), (whole, false)] {
            // A pack that is gone has nothing to be said of.
            for place in places.iter().filter(|place| records.contains_key(&place.pack)) {
                if known.contains(*place) == is_damaged && !passing.contains(*place) {
                    continue;
                }
                passing.remove(*place);
                if is_damaged {
                    known.insert(*place, 1);
                } else {
                    known.remove(*place);
                }
                packs.insert(place.pack);
            }
        }
        if packs.is_empty() {
            return Ok(());
        }
        let lasting = |pack| {
            let mut lasting = known.clone();
            for (first, count) in passing.runs(pack) {
                (first..first + count).for_each(|slot| lasting.remove(Place { pack, slot }));
            }
            (pack, lasting.runs(pack))
        };
        let damaged = packs.into_iter().map(lasting).collect();
        self.index.write(&Changes { damaged, ..Changes::default() })
    }

    /// Notes that the pages of `pack` from slot `first` on cannot be read.
    pub fn note_away(&self, pack: u32, first: u32) {
        let mut known = self.damaged.write().unwrap_or_else(PoisonError::into_inner);
        let mut passing = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in first..SLOTS as u32 {
            let place = Place { pack, slot };
            if !known.contains(place) {
                known.insert(place, 1);
                passing.insert(place, 1);
            }
        }
    }

    pub(super) fn damaged(&self) -> RwLockReadGuard<'_, PlaceSet> {
        self.damaged.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget_damage(&self, packs: &[u32]) {
        let mut damaged = self.damaged.write().unwrap_or_else(PoisonError::into_inner);
        let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        for pack in packs {
            damaged.remove_pack(*pack);
            unreadable.remove_pack(*pack);
        }
    }
}
