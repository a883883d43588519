//! Pages that move from one pack to another, and packs that go.
//!
//! A leaf says where its pages lie. When a page has moved since, the leaf names a pack that has no record any
//! more, and the index knows better: an entry of a page that moved is durable before its old pack goes.

use std::{
    collections::BTreeSet,
    sync::{Arc, RwLockReadGuard, mpsc},
};

use super::{Added, Catalog, Indexer, PackGrowth, Task};
use crate::{
    error::StoreError,
    failpoint::FailPoint,
    hash::Hash,
    index::{Changes, PackRecord},
    manifest::{Leaf, Stored},
    pack::{Place, set::PlaceSet, state::PackStates},
};

/// What is to be changed in the index when pages have moved.
#[derive(Default)]
pub struct Moves {
    /// Where pages lie from now on.
    pub moved: Vec<(Hash, Place)>,
    /// The packs that they went to.
    pub grown: Vec<PackGrowth>,
    /// A pack that goes, and the names in it.
    pub gone: Vec<(u32, Vec<Hash>)>,
}

impl Catalog {
    /// The packs from which nothing is taken any more by those who look pages up to refer to them, but what is `moving`.
    pub fn condemn(&self, packs: &[u32], moving: Arc<PlaceSet>) {
        self.states_mut().condemn(packs.iter().copied(), moving);
    }

    /// Takes that back.
    pub fn absolve(&self, pack: u32) {
        self.states_mut().absolve(pack);
    }

    /// Whether all packs that these bytes of a node refer to are there to stay, or are of `own`.
    #[must_use]
    pub fn is_current(&self, node: &[u8], own: &[u32]) -> bool {
        let states = self.states();
        Stored::packs_of(node)
            .is_none_or(|mut packs| packs.all(|pack| states.is_usable(pack) || own.contains(&pack)))
    }

    /// Puts right where the pages of `leaf` lie that are in packs `away` or damaged; returns whether any has another place now. What
    /// the index does not know stays as it was: reading it will name the pack that is missing.
    ///
    /// # Errors
    /// The index cannot be read.
    fn correct(
        &self,
        leaf: &mut Leaf,
        away: impl Fn(&PackStates, u32) -> bool,
        look_up: impl Fn(&[Hash]) -> Result<Vec<Option<Place>>, StoreError>,
    ) -> Result<bool, StoreError> {
        let mut lost: Vec<(Hash, usize)> = Vec::new();
        {
            let (states, damaged) = (self.states(), self.damaged());
            for run in leaf.runs() {
                if run.place == Place::ZERO {
                    continue;
                }
                let is_away = away(&states, run.place.pack);
                if is_away || !damaged.is_empty() {
                    let pages =
                        leaf.names(run.first, run.pages).iter().zip(run.place.slot..).zip(run.first..);
                    let is_lost = |slot| is_away || damaged.contains(Place { slot, ..run.place });
                    lost.extend(
                        pages.filter(|((_, slot), _)| is_lost(*slot)).map(|((name, _), at)| (*name, at)),
                    );
                }
            }
        }
        if lost.is_empty() {
            return Ok(false);
        }
        lost.sort_unstable();
        let names: Vec<Hash> = lost.iter().map(|(name, _)| *name).collect();
        let mut is_changed = false;
        for ((name, at), place) in lost.into_iter().zip(look_up(&names)?) {
            if let Some(place) = place {
                leaf.set(at, name, place);
                is_changed = true;
            }
        }
        Ok(is_changed)
    }

    /// For who reads: puts right where the pages of `leaf` lie whose packs are gone.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn correct_to_read(&self, leaf: &mut Leaf) -> Result<bool, StoreError> {
        let away = |states: &PackStates, pack| !states.is_known(pack);
        self.correct(leaf, away, |names| self.places_to_read(names))
    }

    /// For what is kept: puts right where the pages of `leaf` lie whose packs are gone or about to go, and
    /// are not of `own`.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn correct_to_keep(&self, leaf: &mut Leaf, own: &[u32]) -> Result<bool, StoreError> {
        let away = |states: &PackStates, pack| !states.is_usable(pack) && !own.contains(&pack);
        self.correct(leaf, away, |names| self.places(names))
    }

    /// Notes that packs have grown by pages that no commit has added, durably.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn grow(&self, grown: &[PackGrowth]) -> Result<(), StoreError> {
        let mut records = self.records();
        let packs = super::grown_records(&records, grown);
        let changes = Changes { packs, ..Changes::default() };
        self.index.write(&changes)?;
        self.states_mut().add(changes.packs.iter().map(|(number, record)| (*number, record.form)));
        records.extend(changes.packs);
        Ok(())
    }

    /// Notes that packs, as far as they are committed, are not worth compressing.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note_not_worth(&self, packs: &BTreeSet<u32>) -> Result<(), StoreError> {
        let mut records = self.records();
        let known = packs.iter().filter_map(|number| Some((*number, *records.get(number)?)));
        let noted =
            known.map(|(number, record)| (number, PackRecord { not_worth: record.committed, ..record }));
        let changes = Changes { packs: noted.collect(), ..Changes::default() };
        if !changes.packs.is_empty() {
            self.index.write(&changes)?;
            records.extend(changes.packs);
        }
        Ok(())
    }

    /// Forgets packs, durably and all at once. Their numbers are never given again: a leaf may still name them.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remove_packs(&self, packs: &[u32]) -> Result<(), StoreError> {
        let mut records = self.records();
        let highest = packs.iter().copied().max().max(Some(self.index.last_removed_pack()?));
        let changes =
            Changes { removed_packs: packs.to_vec(), last_removed_pack: highest, ..Changes::default() };
        self.index.write(&changes)?;
        FailPoint::PacksForgotten.hit();
        self.forget_damage(packs);
        self.states_mut().remove(packs);
        records.retain(|number, _| !packs.contains(number));
        Ok(())
    }

    pub(super) fn move_pages(&self, moves: Moves, added: &mut Added) -> Result<(), StoreError> {
        let Moves { moved, grown, gone } = moves;
        let entries = moved.len();
        self.insert(moved.into_iter())?;
        added.entries += entries;
        added.grown.extend(grown);
        for (pack, mut names) in gone {
            names.sort_unstable();
            for names in names.chunks(super::ENTRIES_AT_ONCE) {
                let places = self.index.places(names)?;
                let dead = names.iter().zip(places);
                let dead = dead.filter(|(_, place)| place.is_some_and(|place| place.pack == pack));
                self.index.remove_pages(&dead.map(|(name, _)| *name).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    pub(super) fn states(&self) -> RwLockReadGuard<'_, PackStates> {
        self.states.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Indexer {
    /// Waits until all that was committed is in the index, and what a crash had left out, durably.
    ///
    /// # Errors
    /// It cannot be written, or the server is ending.
    pub fn settle(&self) -> Result<(), StoreError> {
        self.move_pages(Moves::default())
    }

    /// Makes the index know of moves, durably.
    ///
    /// # Errors
    /// As [`Indexer::settle`].
    pub fn move_pages(&self, moves: Moves) -> Result<(), StoreError> {
        let (done, answer) = mpsc::sync_channel(1);
        if let Some(queue) = &*self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            let _ = queue.send(Task::Moved { moves, done });
        }
        answer.recv().unwrap_or_else(|_| Err(StoreError::Refused("the store server is ending".into())))
    }
}
