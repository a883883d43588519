//! Compressing what checkpoints have written, when nobody needs the server for anything else.
//!
//! Full packs are compressed as soon as no checkpoint is being taken, each once. The one that checkpoints append to is left
//! to them as long as anybody is connected: making a new one would take time of the next checkpoint. It is compressed before
//! the server leaves because nobody needs it. A server that is told to end does so at once.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread::{self, JoinHandle},
};

use super::Shared;
use crate::gc::{self, Pace};

#[derive(Default)]
pub struct Background {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Something was written since packs were looked at.
    is_new: bool,
    /// The server is about to leave: what is not full is compressed, too.
    leaving: bool,
    /// Nothing is left to be done before that.
    settled: bool,
    ended: bool,
}

impl Background {
    /// A checkpoint was made.
    pub fn look(&self) {
        let mut state = self.lock();
        state.is_new = true;
        state.settled = false;
        self.changed.notify_all();
    }

    /// Nobody needs the server any more; returns whether there is nothing left to be done. When there is not, the server is
    /// woken.
    pub fn settle(&self) -> bool {
        let mut state = self.lock();
        if !state.settled && !state.leaving {
            state.leaving = true;
            self.changed.notify_all();
        }
        state.settled
    }

    /// Somebody does.
    pub fn stay(&self) {
        self.lock().leaving = false;
    }

    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for something to do: whether all packs are meant, or those that are full. `None`: nothing ever again.
    fn next(&self) -> Option<bool> {
        let mut state = self.lock();
        while !state.ended && !state.is_new && (!state.leaving || state.settled) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_new = false;
        (!state.ended).then_some(state.leaving)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread.
///
/// # Errors
/// There can be no more threads.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("background".into()).spawn(move || {
        while let Some(all) = shared.background.next() {
            work(&shared, all);
            if all {
                let mut state = shared.background.lock();
                state.settled = state.leaving && !state.is_new;
                drop(state);
                let _ = shared.wake.write(1);
            }
        }
    })
}

fn work(shared: &Shared, all: bool) {
    let is_over = || {
        shared.ended.load(Ordering::Acquire)
            || shared.stopping.load(Ordering::Acquire)
            // Who has come may dump, and needs the pack that is open.
            || all && !shared.background.lock().leaving
    };
    let pace = Pace::GivingWay(&is_over);
    if !pace.go_on(&shared.store) {
        return;
    }
    loop {
        match gc::compress(&shared.store, !all, pace) {
            Ok(true) if !is_over() => {}
            Ok(_) => return,
            Err(error) => {
                log!("not compressing: {error}");
                return;
            }
        }
    }
}
