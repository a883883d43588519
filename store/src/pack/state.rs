//! Which packs belong to the store at this moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Form, Place, set::PlaceSet};

/// The packs that have a record, and those of them that are about to be given up.
#[derive(Debug, Default)]
pub struct PackStates {
    known: BTreeMap<u32, Form>,
    condemned: BTreeSet<u32>,
    /// Pages of condemned packs that are being moved: they will be elsewhere before their pack is gone.
    moving: Arc<PlaceSet>,
}

impl PackStates {
    pub fn add(&mut self, packs: impl IntoIterator<Item = (u32, Form)>) {
        self.known.extend(packs);
    }

    pub fn remove(&mut self, packs: &[u32]) {
        for pack in packs {
            self.known.remove(pack);
            self.condemned.remove(pack);
        }
    }

    /// `moving` are the pages of them, and maybe of others, that stay.
    pub fn condemn(&mut self, packs: impl IntoIterator<Item = u32>, moving: Arc<PlaceSet>) {
        self.condemned.extend(packs);
        self.moving = moving;
    }

    pub fn absolve(&mut self, pack: u32) {
        self.condemned.remove(&pack);
        if self.condemned.is_empty() {
            self.moving = Arc::default();
        }
    }

    /// Whether a page in it can be read.
    #[must_use]
    pub fn is_known(&self, pack: u32) -> bool {
        self.known.contains_key(&pack)
    }

    /// Whether a pack is there to stay.
    #[must_use]
    pub fn is_usable(&self, pack: u32) -> bool {
        self.known.contains_key(&pack) && !self.condemned.contains(&pack)
    }

    /// Whether new checkpoints may refer to a page: it stays, there or elsewhere.
    #[must_use]
    pub fn is_staying(&self, place: Place) -> bool {
        self.known.contains_key(&place.pack)
            && (!self.condemned.contains(&place.pack) || self.moving.contains(place))
    }
}
