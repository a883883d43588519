//! A child of a fork has no checkpoint thread until one is needed: most children execute another program, or end, before
//! anybody takes a checkpoint, and a thread costs more than the fork does.
//!
//! Until then the coordinator knows of the child by its parent's list of children and by the list of births, and calls it
//! by the stop signal. Before the child changes what the thread must have been made with (its user), it wakes by itself.

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use stasis_sys::{process, sync};

use crate::{credentials, start};

/// One of the values below. A futex.
static STATE: AtomicU32 = AtomicU32::new(AWAKE);

/// There is a checkpoint thread, or never will be one.
const AWAKE: u32 = 0;
const DORMANT: u32 = 1;
/// Some thread of the program is making it.
const WAKING: u32 = 2;

/// The process that [`STATE`] is of. In a child that has just been made it is still the parent's.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// A process that was called before it was dormant.
static CALLED: AtomicI32 = AtomicI32::new(0);

/// A child that has come to where it begins.
static BEGINNING: AtomicI32 = AtomicI32::new(0);

/// A child that was called before it came there, and has begun by that.
static BEGUN_BY_CALL: AtomicI32 = AtomicI32::new(0);

/// In the constructor: this process has a thread.
pub fn begin_awake() {
    OWNER.store(process::getpid(), Ordering::Release);
}

/// Whether the memory is this process' own, not that of a parent that waits for it (vfork(2)).
pub fn is_own() -> bool {
    OWNER.load(Ordering::Acquire) == process::getpid()
}

/// In the child of a fork, by its only thread.
pub fn begin() {
    let pid = process::getpid();
    STATE.store(DORMANT, Ordering::Release);
    OWNER.store(pid, Ordering::Release);
    if CALLED.swap(0, Ordering::AcqRel) == pid {
        wake();
    }
}

/// Makes the checkpoint thread, if this process is dormant; returns when it is there.
pub fn wake() {
    if STATE.load(Ordering::Acquire) == AWAKE || !is_own() {
        return;
    }
    // A signal that found this thread in the middle of it could not wait for it.
    let mask = process::sigmask(u64::MAX);
    if !make_thread() {
        while STATE.load(Ordering::Acquire) == WAKING {
            sync::futex_wait(&STATE, WAKING, None);
        }
    }
    process::sigmask(mask);
}

/// In a child that has come to where it begins: false where it has begun already, because it was called before.
pub fn is_to_begin() -> bool {
    let pid = process::getpid();
    BEGINNING.store(pid, Ordering::Release);
    BEGUN_BY_CALL.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed).is_err()
}

/// In the stop signal's handler: the coordinator needs the checkpoint thread. False in a child that has its parent's memory together
/// with that: whether threads are to stop there does not concern it. Nor in the checkpoint thread: a call goes to the process,
/// which may be awake.
pub fn called() -> bool {
    if !is_own() {
        let (pid, owner) = (process::getpid(), OWNER.load(Ordering::Acquire));
        let may_be_the_owner_s =
            || process::exists(owner) && process::shares(pid, owner, process::Shared::Memory) != Some(false);
        if BEGINNING.load(Ordering::Acquire) == pid || may_be_the_owner_s() {
            CALLED.store(pid, Ordering::Release);
            return false;
        }
        // It has just been made, and is on its way to where it begins; or it never comes there: the program made it by a system
        // call of its own, without libc.
        // SAFETY: in the child, which has only this thread, or others that the program has made without libc.
        unsafe { start::begin_in_child() };
        BEGUN_BY_CALL.store(pid, Ordering::Release);
    }
    make_thread();
    process::gettid() != credentials::thread()
}

/// False where there is one, or another thread is about to make it.
fn make_thread() -> bool {
    if STATE.compare_exchange(DORMANT, WAKING, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    if let Err(error) = start::start_thread(None) {
        start::warn(error);
    }
    STATE.store(AWAKE, Ordering::Release);
    sync::futex_wake(&STATE, i32::MAX as u32);
    true
}
