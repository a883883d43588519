//! Packs ready to be appended to. A pack is lent to one checkpoint at a time and stays open between
//! them, so that a small checkpoint needs neither a new file nor a synced directory.
//!
//! Not here: the records that say how much of a pack is committed (`index`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    Form,
    open::{OpenPack, room},
};
use crate::{error::StoreError, index::PackRecord};

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
    /// Packs with room that are not open.
    closed: BTreeMap<u32, PackRecord>,
    /// Packs that somebody appends to.
    lent: BTreeSet<u32>,
    next: u32,
}

impl PackPool {
    /// A pool over the directory `packs`, where `known` are the packs; new packs are numbered from `next`.
    #[must_use]
    pub fn new(packs: &Path, known: impl IntoIterator<Item = (u32, PackRecord)>, next: u32) -> Self {
        let closed = known.into_iter().filter(|(_, record)| has_room(record)).collect();
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
            state.open.iter().all(|pack| pack.form != Form::Plain) && state.lent.is_empty()
        };
        if needed {
            let pack = self.open(Form::Plain)?;
            self.give_back(pack);
        }
        Ok(())
    }

    /// A pack of this form that nobody else appends to, until it is given back.
    ///
    /// # Errors
    /// A new one cannot be made.
    pub fn lease(&self, form: Form) -> Result<OpenPack, StoreError> {
        if let Some(pack) = self.lock().lend_open(form) {
            return Ok(pack);
        }
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pack) = self.lock().lend_open(form) {
            return Ok(pack);
        }
        self.open(form)
    }

    /// Whether somebody appends to a pack.
    #[must_use]
    pub fn is_lent(&self, number: u32) -> bool {
        self.lock().lent.contains(&number)
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

    /// Takes that back.
    pub fn put_back(&self, number: u32, record: PackRecord) {
        if has_room(&record) {
            self.lock().closed.insert(number, record);
        }
    }

    fn open(&self, form: Form) -> Result<OpenPack, StoreError> {
        loop {
            let (number, record) = {
                let mut state = self.lock();
                let last = state.closed.iter().rev().find(|(_, record)| record.form == form);
                let Some((number, record)) = last.map(|(number, record)| (*number, *record)) else { break };
                state.closed.remove(&number);
                state.lent.insert(number);
                (number, record)
            };
            match OpenPack::reopen(&self.packs, number, &record) {
                Ok(pack) => return Ok(pack),
                // What is in it is `verify`'s business; for new pages another will do.
                Err(error) => log!("not appending to a pack: {error}"),
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
        OpenPack::create(&self.packs, number, form)
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
            state.closed.insert(pack.file.number, pack.record());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lend_open(&mut self, form: Form) -> Option<OpenPack> {
        let last = self.open.iter().rposition(|pack| pack.form == form)?;
        let pack = self.open.remove(last);
        self.lent.insert(pack.file.number);
        Some(pack)
    }
}

/// As [`OpenPack::room`] would say.
fn has_room(record: &PackRecord) -> bool {
    room(record.form, record.committed, 1 + record.pages) > 0
}

#[cfg(test)]
mod tests {
    use stasis_protocol::store::{BLOCK_PAGES, kind};

    use super::*;
    use crate::pack::{FULL, PAGE, block::Block};

    #[test]
    fn a_pack_without_room_for_a_block_is_not_lent() {
        let directory = tempfile::tempdir().unwrap();
        let block = Block { kind: kind::LZ4, names: vec![[1; 32]; BLOCK_PAGES], bytes: vec![0; 100] };
        drop(OpenPack::create(directory.path(), 0, Form::Compressed).unwrap());
        for left in [1, BLOCK_PAGES as u64 - 1, BLOCK_PAGES as u64, 2 * BLOCK_PAGES as u64] {
            let record = PackRecord { pages: FULL / PAGE - 1 - left, ..PackRecord::new(Form::Compressed) };
            let pool = PackPool::new(directory.path(), [(0, record)], 1 + left as u32);
            let mut pack = pool.lease(Form::Compressed).unwrap();
            assert_eq!(pack.file.number == 0, left >= BLOCK_PAGES as u64, "{left} pages are left");
            let last = pack.append_block(&block).slot as usize + BLOCK_PAGES;
            assert!(last as u64 <= FULL / PAGE, "{left} pages are left");
            // Nor is one that has come to be full.
            let has_room = pack.room() > 0;
            pack.commit();
            pool.give_back(pack);
            let next = pool.lease(Form::Compressed).unwrap();
            assert_eq!(next.file.number == 0, left >= 2 * BLOCK_PAGES as u64);
            assert!(has_room || next.file.number != 0);
        }
    }
}
