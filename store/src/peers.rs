//! Who is connected, as far as that says whether a checkpoint can still be made.
//!
//! A checkpoint is made by a connection that was there before its first dump began and dumps nothing itself, the
//! coordinator's; or by one that has dumped for it. When all of these have closed, nobody knows its token any more.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
pub struct Peers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Whether it has dumped, by its number.
    open: BTreeMap<u64, bool>,
}

/// An open connection.
pub struct Peer {
    peers: Arc<Peers>,
    number: u64,
}

impl Peers {
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Peer {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, false);
        Peer { peers: Arc::clone(self), number }
    }

    /// Later connections have this number or a higher one.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.lock().next
    }

    #[must_use]
    pub fn is_open(&self, number: u64) -> bool {
        self.lock().open.contains_key(&number)
    }

    /// Whether somebody is connected who came before `number`, is not `but`, and has dumped nothing.
    #[must_use]
    pub fn has_other(&self, number: u64, but: Option<u64>) -> bool {
        let state = self.lock();
        state.open.range(..number).any(|(other, dumps)| !dumps && Some(*other) != but)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Notes that it dumps a process.
    pub fn dumps(&self) {
        self.peers.lock().open.insert(self.number, true);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.peers.lock().open.remove(&self.number);
    }
}
