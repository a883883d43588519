//! The pager: a process beside a lazily restarted one, which brings each page of its memory when it is touched, and the
//! others meanwhile.
//!
//! It is a process of its own, not threads of the restarted one: the program does not see it, and cannot get at the packs
//! by way of it; what must be there before a page can be brought is not in the memory that is being brought. It reads the
//! packs itself, under a lease of the store's server, and needs that server until it knows where all pages lie.
//!
//! It lives as long as the process whose memory it looks after: registered memory is told of when it is discarded and
//! asks for zeros when it is used again (see ARCHITECTURE.md for why it stays registered).
//!
//! - `table`: which pages are absent, shared with the process
//! - `source`: where they come from; `space`: the memory of a process, and what is done to its mappings meanwhile
//! - `serve`: threads that answer faults; `prefetch`: threads that bring the rest
//! - `priority`: who of them goes first
//! - `order`: what was touched first, for the next restart; `known`: what is known from the last ones
//! - `statistics`, `report`: how it goes, and who may ask
//!
//! Not here: deciding what is restarted lazily, and making the userfaultfd (cli/src/restart, preload/restorer).

mod known;
pub mod order;
mod prefetch;
mod priority;
pub mod report;
mod serve;
mod source;
mod space;
mod statistics;
mod table;

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use stasis_protocol::pager::{Handover, request};
use stasis_sys::userfaultfd::WP_ASYNC;

use order::{Order, Recorder};
pub use source::{Damage, List, Source};
use space::Space;
pub use space::{GRANULE, Stop};
pub use table::{Pages, Table};

/// What a pager is to do.
pub struct Task {
    pub source: Source,
    /// What is left to the pager, in address order.
    pub regions: Vec<Pages>,
    /// What was touched first at earlier restarts.
    pub order: Order,
    /// Bring pages that nobody has asked for.
    pub prefetch: bool,
    /// The other end is the restorer's, then the checkpoint thread's.
    pub socket: UnixStream,
    pub table: Table,
    /// For messages: which process of which checkpoint.
    pub whose: String,
}

/// What a pager has learnt.
pub struct Learnt {
    /// What was touched before it was there, and what was known of that before. `None`: nothing is new.
    pub order: Option<Order>,
}

/// A pager at work.
struct Pager {
    space: Space,
    pidfd: OwnedFd,
    whose: String,
    statistics: statistics::Statistics,
    known: Order,
    recorder: Mutex<Recorder>,
    /// Written when all pages are in, or a child's are.
    news: EventFd,
    /// Children whose memory is still arriving.
    children: AtomicU64,
    prefetch: prefetch::Plan,
    ended: AtomicBool,
    total: u64,
}

/// Looks after a process until it is gone. `complete` is called once, when all pages are in or the process has ended.
///
/// # Errors
/// What could not be set up. The process does not run then: its restorer waits for nobody, but the socket's end ends it.
pub fn run(task: Task, complete: impl FnOnce(Learnt)) -> io::Result<()> {
    let Task { source, regions, order, prefetch, mut socket, table, whose } = task;
    // While the process is being made.
    let plan = known::Known::new(&order);
    let Some((features, uffd)) = receive(&socket)? else { return Ok(()) };
    let Some((pid, pidfd)) = receive(&socket)? else { return Ok(()) };
    // From the first moment on: whoever asks then waits for the answer.
    let pid = report::outer_pid(&pidfd).unwrap_or(pid);
    let listener = report::listen(pid);
    let space = Space::new((uffd, pid), features & WP_ASYNC != 0, table, Arc::new(source), regions);
    let total = space.left();
    let pager = Arc::new(Pager {
        prefetch: prefetch::Plan::new(&space, plan, prefetch),
        space,
        pidfd,
        whose,
        statistics: statistics::Statistics::default(),
        known: order,
        recorder: Mutex::default(),
        news: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        children: AtomicU64::new(0),
        ended: AtomicBool::new(false),
        total,
    });
    serve::start(&pager)?;
    prefetch::start(&pager)?;
    list_all(&pager)?;
    await_hurry(&pager)?;
    let mut complete = Some(complete);
    let mut waiting = false;
    loop {
        if pager.space.left() == 0
            && let Some(complete) = complete.take()
        {
            pager.statistics.complete();
            pager.space.table.complete();
            complete(pager.learnt());
        }
        if waiting && pager.space.left() == 0 {
            socket.write_all(&[request::FINISH])?;
            waiting = false;
        }
        let mut ready = vec![
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(pager.news.as_fd(), PollFlags::POLLIN),
        ];
        ready.extend(listener.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let is_ready: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if is_ready[1] {
            let _ = pager.news.read();
        }
        if is_ready.get(2) == Some(&true)
            && let Some(listener) = &listener
        {
            report::answer(&pager, listener);
        }
        if is_ready[0] {
            let mut asked = [0];
            match socket.read(&mut asked) {
                Ok(1) if asked[0] == request::SETTLE => {
                    pager.settle();
                    socket.write_all(&asked)?;
                }
                Ok(1) if asked[0] == request::LIST => {
                    pager.list(|| ());
                    socket.write_all(&asked)?;
                }
                Ok(1) if asked[0] == request::FINISH => {
                    pager.prefetch.hurry();
                    waiting = true;
                }
                // The process has ended, or is another program now.
                _ => break,
            }
        }
    }
    pager.ended.store(true, Ordering::Release);
    if let Some(complete) = complete.take() {
        complete(pager.learnt());
    }
    // A child that was forked meanwhile lives on without its parent.
    while pager.children.load(Ordering::Acquire) > 0 {
        let mut ready = [PollFd::new(pager.news.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ready, PollTimeout::NONE);
        let _ = pager.news.read();
    }
    Ok(())
}

/// A word and the descriptor beside it; `None` when the other side is gone: the restart has failed.
fn receive(socket: &UnixStream) -> io::Result<Option<(u64, OwnedFd)>> {
    let mut word = [0; size_of::<Handover>() / 2];
    match stasis_sys::socket::read_exact_beside(socket.as_raw_fd(), &mut word) {
        // SAFETY: received just now, and nobody else's.
        Ok(Some(fd)) => Ok(Some((u64::from_ne_bytes(word), unsafe { OwnedFd::from_raw_fd(fd) }))),
        Ok(None) => Err(io::ErrorKind::InvalidData.into()),
        Err(stasis_sys::Errno(libc::ECONNRESET)) => Ok(None),
        Err(stasis_sys::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Brings everything as soon as the process waits for that.
fn await_hurry(pager: &Arc<Pager>) -> io::Result<()> {
    let pager = Arc::clone(pager);
    std::thread::Builder::new().name("stasis-hurry".into()).spawn(move || {
        pager.space.table.await_hurry();
        pager.prefetch.hurry();
    })?;
    Ok(())
}

/// Lists all pages, from the first on.
fn list_all(pager: &Arc<Pager>) -> io::Result<()> {
    if pager.space.is_listed() {
        return Ok(());
    }
    let pager = Arc::clone(pager);
    std::thread::Builder::new().name("stasis-list".into()).spawn(move || {
        priority::bring_the_rest();
        prefetch::await_beginning(&pager);
        let mut faults = 0;
        pager.list(|| prefetch::give_way(&pager, &mut faults));
    })?;
    Ok(())
}

impl Pager {
    /// Sees to it that the table tells of all pages. `before`: what is done before each part.
    fn list(&self, mut before: impl FnMut()) {
        for part in self.space.parts() {
            before();
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            if let Err(damage) = self.space.list(part) {
                self.stop(&self.space, &damage.into());
                return;
            }
            self.prefetch.look_again();
        }
        // Perhaps none is left.
        self.announce();
    }

    fn learnt(&self) -> Learnt {
        Learnt { order: self.recorder().merged(&self.known) }
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes every event that the kernel has told of, while all threads of the process stand still.
    fn settle(self: &Arc<Self>) {
        let mut faults = Vec::new();
        loop {
            match self.space.next_event() {
                Ok(Some(told)) => {
                    serve::note(self, told, &mut faults);
                    continue;
                }
                Ok(None) => {}
                Err(stop) => self.stop(&self.space, &stop),
            }
            if self.space.settle_moves() {
                break;
            }
            std::thread::yield_now();
        }
        serve::answer_late(self, faults);
    }

    /// Some thread can do no more: the process has ended, or must.
    fn stop(&self, space: &Space, stop: &Stop) {
        if matches!(stop, Stop::Ended) {
            return;
        }
        if std::ptr::eq(space, &raw const self.space) {
            if !self.ended.swap(true, Ordering::AcqRel) {
                report::end_process(
                    &self.pidfd,
                    &format!("{}: {stop}; ended, since it cannot go on without it", self.whose),
                );
            }
        } else {
            // Whose child it is the kernel does not say; what it cannot have it must not take for zeros.
            report::tell(&self.pidfd, &format!("{}, a child of it: {stop}", self.whose));
            space.poison();
        }
    }

    fn announce(&self) {
        let _ = self.news.write(1);
    }
}
