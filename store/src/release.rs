//! Telling a process when it may write to its staging buffer again.
//!
//! A `Pages` message is answered when the last of its pages has been written, by whichever thread
//! wrote it, but never before the messages that came earlier. While messages are unanswered, nothing
//! else is sent on the connection: [`Releases::wait`] comes before every other reply.

use std::{
    collections::VecDeque,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use nix::sys::socket::MsgFlags;
use stasis_protocol::store::Reply;

use crate::transport;

/// How many messages of a connection may be unanswered before no more are read.
const MAX_PENDING: usize = 64;

/// The unanswered `Pages` messages of a connection.
pub struct Releases {
    stream: Arc<UnixStream>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of the first pending message.
    first: u64,
    pending: VecDeque<Pending>,
}

struct Pending {
    holders: usize,
    problem: Option<String>,
}

/// Keeps a message unanswered until the last clone of this is dropped.
pub struct Hold {
    releases: Arc<Releases>,
    message: u64,
}

impl Releases {
    #[must_use]
    pub fn new(stream: Arc<UnixStream>) -> Arc<Self> {
        Arc::new(Self { stream, state: Mutex::default(), changed: Condvar::new() })
    }

    /// A message has come. Waits while too many are unanswered.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Hold {
        let mut state = self.lock();
        while state.pending.len() >= MAX_PENDING {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.pending.push_back(Pending { holders: 1, problem: None });
        let message = state.first + state.pending.len() as u64 - 1;
        Hold { releases: Arc::clone(self), message }
    }

    /// Waits until every message is answered.
    pub fn wait(&self) {
        let mut state = self.lock();
        while !state.pending.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer_finished(&self, state: &mut State) {
        while state.pending.front().is_some_and(|pending| pending.holders == 0) {
            let problem = state.pending.pop_front().and_then(|pending| pending.problem);
            state.first += 1;
            let reply = problem.map_or(Reply::Released, Reply::Refused);
            // The threads that write for everybody must not wait for one process: there is room for
            // MAX_PENDING small replies, unless it does not read at all.
            if transport::send(&self.stream, &reply, &[], MsgFlags::MSG_DONTWAIT).is_err() {
                let _ = self.stream.shutdown(Shutdown::Both);
            }
        }
        self.changed.notify_all();
    }
}

impl Hold {
    /// The message will be refused. The first problem counts.
    pub fn refuse(&self, problem: &str) {
        self.with(|pending| {
            pending.problem.get_or_insert_with(|| problem.to_owned());
        });
    }

    fn with(&self, change: impl FnOnce(&mut Pending)) {
        let mut state = self.releases.lock();
        let at = (self.message - state.first) as usize;
        if let Some(pending) = state.pending.get_mut(at) {
            change(pending);
        }
        self.releases.answer_finished(&mut state);
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        self.with(|pending| pending.holders += 1);
        Self { releases: Arc::clone(&self.releases), message: self.message }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.with(|pending| pending.holders -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(stream: &UnixStream) -> Reply {
        transport::receive(stream).unwrap().unwrap().0
    }

    #[test]
    fn replies_come_in_the_order_of_the_messages() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let releases = Releases::new(Arc::new(ours));
        let first = releases.begin();
        let again = first.clone();
        let second = releases.begin();
        second.refuse("no room");
        drop(second);
        drop(first);
        theirs.set_nonblocking(true).unwrap();
        assert!(transport::receive::<Reply>(&theirs).is_err(), "the first message is still held");
        theirs.set_nonblocking(false).unwrap();
        drop(again);
        releases.wait();
        assert_eq!(reply(&theirs), Reply::Released);
        assert_eq!(reply(&theirs), Reply::Refused("no room".into()));
    }
}
