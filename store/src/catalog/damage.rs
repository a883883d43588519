//! Stored pages that turned out not to be what was stored.
//!
//! Nothing new refers to them: the next checkpoint that has such a page writes it again, and so heals all that have
//! it, since a page whose place is damaged is looked for elsewhere, as one that has moved is. Which places are
//! damaged is found by `verify`, and by whoever moves pages; it is kept in the index.

use std::{
    collections::BTreeSet,
    sync::{PoisonError, RwLockReadGuard},
};

use super::Catalog;
use crate::{
    error::StoreError,
    index::Changes,
    pack::{Place, set::PlaceSet},
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

    /// Notes that pages are damaged, and that others are not any more.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note_damage(&self, damaged: &[Place], whole: &[Place]) -> Result<(), StoreError> {
        let records = self.records();
        let mut known = self.damaged.write().unwrap_or_else(PoisonError::into_inner);
        let mut packs = BTreeSet::new();
        for (places, is_damaged) in [(damaged, true), (whole, false)] {
            // A pack that is gone has nothing to be said of.
            for place in places.iter().filter(|place| records.contains_key(&place.pack)) {
                if known.contains(*place) == is_damaged {
                    continue;
                }
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
        let damaged = packs.into_iter().map(|pack| (pack, known.runs(pack))).collect();
        self.index.write(&Changes { damaged, ..Changes::default() })
    }

    pub(super) fn damaged(&self) -> RwLockReadGuard<'_, PlaceSet> {
        self.damaged.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget_damage(&self, packs: &[u32]) {
        let mut damaged = self.damaged.write().unwrap_or_else(PoisonError::into_inner);
        packs.iter().for_each(|pack| damaged.remove_pack(*pack));
    }
}
