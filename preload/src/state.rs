//! What the checkpoint thread shares with the threads of the program.

use core::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use stasis_sys::sync;

/// Whether threads that receive the stop signal are to park: 0, or a [`Stop`].
static STOPPING: AtomicU32 = AtomicU32::new(0);

/// Which threads are stopped, and where.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stop {
    /// Those that were running, wherever they are.
    Anywhere = 1,
    /// The same, but not in the vDSO if that can be helped: for a snapshot.
    OutsideVdso = 2,
    /// Those of a process that stood stopped by a signal and was continued for the checkpoint.
    Continued = 3,
}

/// Counts the times that threads were let go.
static RELEASED: AtomicU32 = AtomicU32::new(0);

/// Counts those, and the times that parked threads were woken to look whether something is asked of them; a futex that they
/// wait on. Who looked before it was counted does not sleep.
static WOKEN: AtomicU32 = AtomicU32::new(0);

/// Counts arrivals in the stop handler; a futex that the checkpoint thread waits on.
static ARRIVALS: AtomicU32 = AtomicU32::new(0);

/// How far CLOCK_MONOTONIC went on between the stop for the checkpoint and the restart, in nanoseconds.
static SKIPPED: AtomicI64 = AtomicI64::new(0);

/// To be told before the threads of a restarted process are let go.
pub fn set_skipped(ns: i64) {
    SKIPPED.store(ns, Ordering::Release);
}

/// The same for every thread of a restarted process, so that what they wait for comes in the order and at the
/// distances that it would have had: each thread's own look at the clock would differ by when it got to run.
pub fn skipped() -> i64 {
    SKIPPED.load(Ordering::Acquire)
}

pub fn is_stopping() -> bool {
    STOPPING.load(Ordering::Acquire) != 0
}

/// Whether they are, in a process that stood stopped and was continued for it.
pub fn is_stopping_continued() -> bool {
    STOPPING.load(Ordering::Acquire) == Stop::Continued as u32
}

/// Whether they are, but not in the vDSO.
pub fn is_stopping_outside() -> bool {
    STOPPING.load(Ordering::Acquire) == Stop::OutsideVdso as u32
}

pub fn start_stopping(stop: Stop) {
    STOPPING.store(stop as u32, Ordering::Release);
    sync::futex_wake(&STOPPING, i32::MAX as u32);
}

/// Waits until threads are to park, or have been let go, at most `timeout_ns` nanoseconds.
pub fn await_stopping(timeout_ns: u64) {
    let ticket = release_ticket();
    let until = sync::monotonic_ns() + timeout_ns;
    while !is_stopping() && release_ticket() == ticket {
        let now = sync::monotonic_ns();
        if now >= until {
            return;
        }
        sync::futex_wait(&STOPPING, 0, Some(until - now));
    }
}

/// Whether the constructor has done its work: 1, else 0. A futex.
static STARTED: AtomicU32 = AtomicU32::new(0);

pub fn set_started() {
    STARTED.store(1, Ordering::Release);
    sync::futex_wake(&STARTED, i32::MAX as u32);
}

/// Waits until the constructor has closed what it had open: the program's descriptors are its own from then on.
pub fn await_started() {
    while STARTED.load(Ordering::Acquire) == 0 {
        sync::futex_wait(&STARTED, 0, None);
    }
}

/// Whether the threads run again and what was copied of them is not all in the store yet: 1, else 0. A futex.
static STORING: AtomicU32 = AtomicU32::new(0);

pub fn set_storing(storing: bool) {
    STORING.store(storing.into(), Ordering::Release);
    if !storing {
        sync::futex_wake(&STORING, i32::MAX as u32);
    }
}

pub fn is_storing() -> bool {
    STORING.load(Ordering::Acquire) != 0
}

/// Waits until the store has all that was copied, as a process must before it ends itself: its checkpoint thread ends with
/// it. False when that takes longer than a store that does not get on may keep a program.
pub fn await_stored() -> bool {
    const PATIENCE: u64 = 5_000_000_000;
    let until = sync::monotonic_ns() + PATIENCE;
    while STORING.load(Ordering::Acquire) != 0 {
        let now = sync::monotonic_ns();
        if now >= until {
            return false;
        }
        sync::futex_wait(&STORING, 1, Some(until - now));
    }
    true
}

/// In the child of a fork: what its parent was about to do is not its own.
pub fn forget_inherited() {
    STOPPING.store(0, Ordering::Release);
    STORING.store(0, Ordering::Release);
}

/// Lets all parked threads go on.
pub fn release() {
    STOPPING.store(0, Ordering::Release);
    RELEASED.fetch_add(1, Ordering::AcqRel);
    sync::futex_wake(&STOPPING, i32::MAX as u32);
    nudge();
}

/// To be read before a thread counts as stopped, and given to [`await_release`].
pub fn release_ticket() -> u32 {
    RELEASED.load(Ordering::Acquire)
}

/// Waits for the release; `look` is called at each wake-up before it, see [`nudge`].
pub fn await_release(ticket: u32, look: impl Fn()) {
    loop {
        let woken = WOKEN.load(Ordering::Acquire);
        if RELEASED.load(Ordering::Acquire) != ticket {
            return;
        }
        look();
        sync::futex_wait(&WOKEN, woken, None);
    }
}

/// Wakes the waiting threads without releasing them.
pub fn nudge() {
    WOKEN.fetch_add(1, Ordering::AcqRel);
    sync::futex_wake(&WOKEN, i32::MAX as u32);
}

/// Tells the checkpoint thread that one more thread has arrived.
pub fn arrive() {
    ARRIVALS.fetch_add(1, Ordering::AcqRel);
    sync::futex_wake(&ARRIVALS, 1);
}

/// Counts the times that a thread arrived and is to be stopped once more.
static RUNNING_ON: AtomicU32 = AtomicU32::new(0);

/// Tells the checkpoint thread that a thread has arrived where it is not to stop.
pub fn arrive_to_run_on() {
    RUNNING_ON.fetch_add(1, Ordering::AcqRel);
    arrive();
}

pub fn running_on() -> u32 {
    RUNNING_ON.load(Ordering::Acquire)
}

pub fn arrivals() -> u32 {
    ARRIVALS.load(Ordering::Acquire)
}

/// Waits until the count of arrivals is no longer `seen`, at most `timeout_ns` nanoseconds.
pub fn await_arrival(seen: u32, timeout_ns: u64) {
    sync::futex_wait(&ARRIVALS, seen, Some(timeout_ns));
}

/// Sleeps, in nanoseconds.
pub fn pause(ns: u64) {
    let never = AtomicU32::new(0);
    sync::futex_wait(&never, 0, Some(ns));
}
