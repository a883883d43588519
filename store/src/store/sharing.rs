//! How checkpoints and a collection of garbage keep out of each other's way.
//!
//! Those who find pages or nodes in the store in order to refer to them hold the gate while they do so and
//! note what they found; for a moment, the collection holds it alone. While it sweeps, whatever a commit refers to
//! is added to what must stay, before the commit looks whether it is there.

use std::sync::{
    Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
    atomic::{AtomicUsize, Ordering},
};

use super::Store;
use crate::{
    error::StoreError,
    gc::NodeSet,
    hash::Hash,
    manifest::Node,
    pack::{Place, set::PlaceSet},
    session::{Candidate, Session},
};

#[derive(Default)]
pub struct Sharing {
    gate: RwLock<()>,
    collection: Mutex<()>,
    /// How many wait for it.
    wanted: AtomicUsize,
    /// While nodes are being swept: those that must stay.
    live: Mutex<Option<NodeSet>>,
}

/// Nodes are being swept, until this is dropped.
pub struct Sweeping<'a> {
    store: &'a Store,
}

impl Sharing {
    pub fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes that a commit refers to. The gate must be held.
    pub fn keep_nodes<'n>(&self, names: impl Iterator<Item = &'n Hash>) {
        if let Some(live) = &mut *self.live() {
            names.for_each(|name| {
                live.insert(name);
            });
        }
    }

    /// Whether a manifest is being swept away. The gate must be held.
    pub fn is_going(&self, manifest: &Hash) -> bool {
        self.live().as_ref().is_some_and(|live| !live.contains(manifest))
    }

    fn live(&self) -> MutexGuard<'_, Option<NodeSet>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Nobody looks anything up, begins a dump or commits meanwhile.
    pub fn exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.sharing.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to collect garbage.
    pub fn collection(&self) -> MutexGuard<'_, ()> {
        self.sharing.wanted.fetch_add(1, Ordering::AcqRel);
        let turn = self.sharing.collection.lock().unwrap_or_else(PoisonError::into_inner);
        self.sharing.wanted.fetch_sub(1, Ordering::AcqRel);
        turn
    }

    /// The same for who gives way to others, if nobody has it.
    pub fn try_collection(&self) -> Option<MutexGuard<'_, ()>> {
        match self.sharing.collection.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether somebody waits for the right to collect garbage.
    #[must_use]
    pub fn is_collection_wanted(&self) -> bool {
        self.sharing.wanted.load(Ordering::Acquire) > 0
    }

    /// Nodes that are not `live` are going to be removed.
    pub fn sweep(&self, live: NodeSet) -> Sweeping<'_> {
        *self.sharing.live() = Some(live);
        Sweeping { store: self }
    }

    /// Looks up the candidates that have no place yet among all that was ever committed, for `session`.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn look_up(&self, session: &Session, candidates: &mut [Candidate]) -> Result<(), StoreError> {
        let mut unknown: Vec<&mut Candidate> =
            candidates.iter_mut().filter(|candidate| candidate.place.is_none()).collect();
        unknown.sort_unstable_by_key(|candidate| candidate.name);
        let names: Vec<Hash> = unknown.iter().map(|candidate| candidate.name).collect();
        for (candidate, place) in unknown.into_iter().zip(self.find_places(session, &names)?) {
            candidate.place = place;
        }
        Ok(())
    }

    /// The places of the pages called `names`, which must be sorted, for `session` to refer to.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn find_places(&self, session: &Session, names: &[Hash]) -> Result<Vec<Option<Place>>, StoreError> {
        let _gate = self.sharing.shared();
        let places = self.catalog.places(names)?;
        session.use_places(places.iter().flatten().copied());
        Ok(places)
    }

    /// Tells checkpoints under way of pages that have moved, from where to where: what they found where it was is needed where it is.
    pub fn follow(&self, moves: impl FnOnce() -> Vec<(Place, Place)>) {
        // Whoever looked pages up before the index knew has noted them.
        drop(self.exclusive());
        let sessions: Vec<_> = self.sessions().values().cloned().collect();
        if !sessions.is_empty() {
            let moves = moves();
            sessions.iter().for_each(|session| session.follow(&moves));
        }
    }

    /// Adds to `places` what checkpoints under way refer to; returns the bases of their dumps.
    pub fn in_use(&self, places: &mut PlaceSet) -> Vec<Hash> {
        self.sessions().values().flat_map(|session| session.in_use(places)).collect()
    }
}

impl Sweeping<'_> {
    #[must_use]
    pub fn is_live(&self, name: &Hash) -> bool {
        self.store.sharing.live().as_ref().is_some_and(|live| live.contains(name))
    }

    /// Removes those of `names` that nobody needs, and writes `changed`; returns how many are gone.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn remove_dead(&self, names: &[Hash], changed: &[Node]) -> Result<u64, StoreError> {
        // Held over the write: a commit that comes now finds them gone.
        let live = self.store.sharing.live();
        let Some(live) = live.as_ref() else { return Ok(0) };
        let dead: Vec<Hash> = names.iter().filter(|name| !live.contains(name)).copied().collect();
        if !dead.is_empty() || !changed.is_empty() {
            self.store.index().change_nodes(&dead, changed)?;
        }
        Ok(dead.len() as u64)
    }
}

impl Drop for Sweeping<'_> {
    fn drop(&mut self) {
        *self.store.sharing.live() = None;
    }
}
