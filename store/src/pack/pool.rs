//! Packs ready to be appended to. A pack is lent to one checkpoint at a time and stays open between
//! them, so that a small checkpoint needs neither a new file nor a synced directory.
//!
//! Not here: the records that say how much of a pack is committed (`index`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{FULL, open::OpenPack};
use crate::error::StoreError;

/// How many packs stay open when nobody appends to them.
const KEPT_OPEN: usize = 8;

pub struct PackPool {
    packs: PathBuf,
    /// Taken while a pack is being opened or made: whoever comes then gets that one.
    opening: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    open: Vec<OpenPack>,
    /// Packs with room that are not open: number and committed length in bytes.
    closed: BTreeMap<u32, u64>,
    /// Packs that somebody appends to.
    lent: BTreeSet<u32>,
    next: u32,
}

impl PackPool {
    /// A pool over the directory `packs`, where `known` are the packs with their committed lengths in
    /// bytes; new packs are numbered from `next`.
    #[must_use]
    pub fn new(packs: &Path, known: impl IntoIterator<Item = (u32, u64)>, next: u32) -> Self {
        let closed = known.into_iter().filter(|(_, len)| *len < FULL).collect();
        let state = Mutex::new(State { open: Vec::new(), closed, lent: BTreeSet::new(), next });
        Self { packs: packs.to_owned(), opening: Mutex::new(()), state }
    }

    /// Sees to it that a pack is at hand. Called when a store is opened, so that
    /// the first dump does not wait for it.
    ///
    /// # Errors
    /// As [`PackPool::lease`].
    pub fn prepare(&self) -> Result<(), StoreError> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = {
            let state = self.lock();
            state.open.is_empty() && state.lent.is_empty()
        };
        if needed {
            let pack = self.open()?;
            self.give_back(pack);
        }
        Ok(())
    }

    /// A pack that nobody else appends to, until it is given back.
    ///
    /// # Errors
    /// A new one cannot be made.
    pub fn lease(&self) -> Result<OpenPack, StoreError> {
        if let Some(pack) = self.lock().lend_open() {
            return Ok(pack);
        }
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pack) = self.lock().lend_open() {
            return Ok(pack);
        }
        self.open()
    }

    /// Sees to it that nobody appends to a pack from now on; returns whether that is so.
    pub fn take_out(&self, number: u32) -> bool {
        let mut state = self.lock();
        if state.lent.contains(&number) {
            return false;
        }
        state.open.retain(|pack| pack.file.number != number);
        state.closed.remove(&number);
        true
    }

    /// Takes that back; `committed` is the length of the pack in bytes.
    pub fn put_back(&self, number: u32, committed: u64) {
        if committed < FULL {
            self.lock().closed.insert(number, committed);
        }
    }

    fn open(&self) -> Result<OpenPack, StoreError> {
        loop {
            let (number, committed) = {
                let mut state = self.lock();
                let Some((number, committed)) = state.closed.pop_last() else { break };
                state.lent.insert(number);
                (number, committed)
            };
            match OpenPack::reopen(&self.packs, number, committed) {
                Ok(pack) => return Ok(pack),
                // What is in it is `verify`'s business; for new pages another will do.
                Err(error) => eprintln!("not appending to a pack: {error}"),
            }
            self.lock().lent.remove(&number);
        }
        let number = {
            let mut state = self.lock();
            state.next += 1;
            let number = state.next - 1;
            state.lent.insert(number);
            number
        };
        OpenPack::create(&self.packs, number)
    }

    /// Takes a pack back. What is not committed of it must have been rewound.
    pub fn give_back(&self, pack: OpenPack) {
        let mut state = self.lock();
        state.lent.remove(&pack.file.number);
        if pack.room() == 0 {
            return;
        }
        if state.open.len() < KEPT_OPEN {
            state.open.push(pack);
        } else {
            state.closed.insert(pack.file.number, pack.committed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lend_open(&mut self) -> Option<OpenPack> {
        let pack = self.open.pop()?;
        self.lent.insert(pack.file.number);
        Some(pack)
    }
}
