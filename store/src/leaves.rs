//! Leaves in memory: how many there may be, and those that the next checkpoint is likely to change.
//!
//! A leaf takes 20 KiB here. To read one costs some 15 µs, twenty times what a page in it costs: the leaves of a checkpoint
//! stay in memory for the next one, which takes them out and puts its own in.

use std::{
    collections::HashMap,
    hash::BuildHasherDefault,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{hash::Hash, manifest::Version, names::NameHasher};

/// How many leaves all dumps together hold before they store some: those of 1 GiB, and some more.
const HELD: usize = 640;

/// A dump with fewer leaves keeps them whatever the others do.
const OWN: usize = 128;

/// How many leaves are kept for the next checkpoint before half of them go, those that came first.
const KEPT: usize = 1024;

type Names = HashMap<Hash, Version, BuildHasherDefault<NameHasher>>;

#[derive(Default)]
pub struct Leaves {
    held: Arc<AtomicUsize>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    young: Names,
    old: Names,
}

/// Leaves that a dump holds.
pub struct Held {
    all: Arc<AtomicUsize>,
    own: usize,
}

impl Leaves {
    #[must_use]
    pub fn hold(&self) -> Held {
        Held { all: Arc::clone(&self.held), own: 0 }
    }

    /// Takes the leaf called `name` out, if it is here.
    #[must_use]
    pub fn take(&self, name: &Hash) -> Option<Version> {
        let Kept { young, old } = &mut *self.lock();
        young.remove(name).or_else(|| old.remove(name))
    }

    /// Leaves of a checkpoint that was committed, as they are stored.
    pub fn keep(&self, versions: impl IntoIterator<Item = Version>) {
        let mut kept = self.lock();
        for version in versions {
            if kept.young.len() >= KEPT / 2 {
                kept.old = std::mem::take(&mut kept.young);
            }
            kept.young.insert(version.name(), version);
        }
    }

    /// Forgets all leaves: what they rest on may go, unless a checkpoint needs it.
    pub fn clear(&self) {
        *self.lock() = Kept::default();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// One more.
    pub fn add(&mut self) {
        self.own += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    /// None any more.
    pub fn release(&mut self) {
        self.all.fetch_sub(std::mem::take(&mut self.own), Ordering::Relaxed);
    }

    /// Whether some should be let go.
    #[must_use]
    pub fn are_many(&self) -> bool {
        self.own >= OWN && self.all.load(Ordering::Relaxed) >= HELD
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}
