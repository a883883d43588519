//! Answering faults.
//!
//! A thread for each processor, and each stays there: the kernel wakes all of them, and the one on the processor where the
//! fault was is the first to run, without an interrupt to another one (8 µs instead of 55).

use std::{io, sync::Arc, thread, time::Instant};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use super::{
    GRANULE, Pager, Stop, priority,
    space::{Space, Told},
};
use crate::hash::PAGE_SIZE;

/// More processors than this share threads: each fault wakes them all.
const MOST: usize = 8;

/// Starts the threads.
///
/// # Errors
/// There is no room for a thread.
pub fn start(pager: &Arc<Pager>) -> io::Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let processors: Vec<usize> =
        (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    let own = processors.len() <= MOST;
    for &processor in processors.iter().take(MOST) {
        let pager = Arc::clone(pager);
        thread::Builder::new().name("stasis-fault".into()).spawn(move || {
            if own {
                let mut one = CpuSet::new();
                let _ = one.set(processor);
                let _ = sched_setaffinity(Pid::from_raw(0), &one);
            }
            priority::answer_faults();
            let mut buffer = buffer();
            // What stops it is told where it is met.
            if let Err(stop) = answer(&pager, &pager.space, &mut buffer) {
                pager.stop(&pager.space, &stop);
            }
        })?;
    }
    Ok(())
}

fn buffer() -> Vec<u8> {
    /// What is known to be touched together, and the neighbours of its last page.
    const MOST: u64 = 64 + GRANULE;
    vec![0; MOST as usize * PAGE_SIZE]
}

/// Answers faults until the memory is gone.
fn answer(pager: &Arc<Pager>, space: &Space, buffer: &mut [u8]) -> Result<(), Stop> {
    let mut faults = Vec::new();
    loop {
        wait(space);
        if pager.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let since = Instant::now();
        if let Some(told) = next(pager, space)? {
            note(pager, told, &mut faults);
        }
        while let Some(page) = faults.pop() {
            fault(pager, space, page, buffer, &mut faults, since)?;
        }
    }
}

/// Waits until there is something to be read.
fn wait(space: &Space) {
    // SAFETY: open as long as the space is.
    let uffd = unsafe { BorrowedFd::borrow_raw(space.uffd()) };
    let mut ready = [PollFd::new(uffd, PollFlags::POLLIN)];
    while poll(&mut ready, PollTimeout::NONE) == Err(Errno::EINTR) {}
}

fn next(pager: &Arc<Pager>, space: &Space) -> Result<Option<Told>, Stop> {
    match space.next_event()? {
        Some(Told::Orphan(error)) => {
            // A child whose memory nobody looks after would find zeros.
            super::report::tell(&pager.pidfd, &format!("{}: a child of it: {error}", pager.whose));
            let error = stasis_sys::Errno(error.raw_os_error().unwrap_or(libc::ENOMEM));
            Err(Stop::Refused { page: 0, error })
        }
        told => Ok(told),
    }
}

/// Does what is to be done about an event; a fault is noted.
pub fn note(pager: &Arc<Pager>, told: Told, faults: &mut Vec<u64>) {
    match told {
        Told::Fault(page) => faults.push(page),
        Told::Child(child) => look_after(pager, child),
        Told::Orphan(_) | Told::Noted => {
            pager.prefetch.look_again();
            if pager.space.left() == 0 {
                pager.announce();
            }
        }
    }
}

/// Answers faults that were read on the way to something else.
pub fn answer_late(pager: &Arc<Pager>, mut faults: Vec<u64>) {
    let mut buffer = buffer();
    while let Some(page) = faults.pop() {
        if let Err(stop) = fault(pager, &pager.space, page, &mut buffer, &mut faults, Instant::now()) {
            pager.stop(&pager.space, &stop);
            return;
        }
    }
}

/// Brings the page that somebody waits for, and then its neighbours.
fn fault(
    pager: &Arc<Pager>,
    space: &Space,
    page: u64,
    buffer: &mut [u8],
    faults: &mut Vec<u64>,
    since: Instant,
) -> Result<(), Stop> {
    let mut relieve = || {
        match next(pager, space)? {
            Some(told) => note(pager, told, faults),
            // The one who waited for it has not run yet.
            None => thread::yield_now(),
        }
        Ok(())
    };
    space.list(&(page..page + 1))?;
    if !space.is_absent(page) {
        pager.statistics.zero();
        return space.zero(page, relieve);
    }
    let wanted = pager.recorder().touched(page);
    // The program is faster than what is known can be brought. It waits once, and not for each page that it will touch.
    if let Some(batch) = pager.prefetch.take_with(page) {
        space.fetch_all(batch, true, buffer, &mut relieve)?;
    }
    if space.fetch(page..page + 1, buffer, &mut relieve)? == 0 {
        // Another thread has brought it, or it is to be zeros now.
        stasis_sys::userfaultfd::wake(space.uffd(), page * PAGE_SIZE as u64, PAGE_SIZE as u64);
    }
    if pager.statistics.fault(since.elapsed()) {
        pager.prefetch.look_again();
    }
    if wanted.end - wanted.start > 1 {
        space.fetch(wanted, buffer, relieve)?;
    }
    if space.left() == 0 {
        pager.announce();
    }
    Ok(())
}

/// Brings all of a forked child's memory, and lets go of it then: from there on it is memory like any other.
fn look_after(pager: &Arc<Pager>, child: Space) {
    pager.children.fetch_add(1, Ordering::AcqRel);
    let child = Arc::new(child);
    let (own, memory) = (Arc::clone(pager), Arc::clone(&child));
    let started = thread::Builder::new().name("stasis-child".into()).spawn(move || {
        if let Err(stop) = bring(&own, &memory) {
            own.stop(&memory, &stop);
        }
        drop(memory);
        own.children.fetch_sub(1, Ordering::AcqRel);
        own.announce();
    });
    if let Err(error) = started {
        pager.stop(
            &child,
            &Stop::Refused { page: 0, error: stasis_sys::Errno(error.raw_os_error().unwrap_or(0)) },
        );
        pager.children.fetch_sub(1, Ordering::AcqRel);
    }
}

fn bring(pager: &Arc<Pager>, space: &Space) -> Result<(), Stop> {
    let mut buffer = buffer();
    let mut faults = Vec::new();
    loop {
        while let Some(told) = next(pager, space)? {
            note(pager, told, &mut faults);
        }
        while let Some(page) = faults.pop() {
            fault(pager, space, page, &mut buffer, &mut faults, Instant::now())?;
        }
        let absent = space
            .regions()
            .into_iter()
            .find_map(|region| space.table.run(stasis_protocol::pager::Map::Absent, region));
        let Some(run) = absent else { return Ok(()) };
        let mut relieve = || {
            match next(pager, space)? {
                Some(told) => note(pager, told, &mut faults),
                None => thread::yield_now(),
            }
            Ok(())
        };
        space.fetch(run.start..run.end.min(run.start + GRANULE), &mut buffer, &mut relieve)?;
    }
}
