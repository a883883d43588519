//! pthread_create(3): the first call makes glibc install its own handler of signal 33 (nptl/pthread_create.c,
//! `late_init`). Ours is put in front of it again at once, so that the stop signal finds it at any time: the
//! threads of a process that stands stopped get theirs before the checkpoint thread runs.

use core::{
    ffi::c_void,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{next, single_threaded};
use crate::{dormant, stop};

type PthreadCreate = unsafe extern "C" fn(*mut c_void, *const c_void, *const c_void, *mut c_void) -> i32;

/// The next definition; 0 before it was looked for.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Where libc makes threads, and wakes who waits for its locks: the address of each function, and its length.
static CREATES: [[AtomicUsize; 2]; 2] = [const { [const { AtomicUsize::new(0) }; 2] }; 2];

/// Finds them.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    for ([start, len], name) in CREATES.iter().zip([c"pthread_create", c"__lll_lock_wake_private"]) {
        // SAFETY: the caller's promise.
        if let Some(function) = unsafe { next::find_in_libc(name) } {
            start.store(function.address, Ordering::Relaxed);
            len.store(function.len, Ordering::Relaxed);
        }
    }
}

/// Whether a thread that was met at `pc` may be about to let a new one go on. One with a policy or processors of its own waits
/// for that with all signals blocked, the stop signal included, and its maker has unblocked its own before
/// (nptl/pthread_create.c, `stopped_start`): stopped there, it would wait for ever.
pub fn creates(pc: u64) -> bool {
    CREATES.iter().any(|[start, len]| {
        (pc as usize).wrapping_sub(start.load(Ordering::Relaxed)) < len.load(Ordering::Relaxed)
    })
}

/// In the child of a fork: the program's first thread may have forked before [`pthread_create`] came to put our handler back.
/// Whoever called this process until now has called glibc's.
pub fn begin_in_child() {
    if !single_threaded() && !stop::is_installed() {
        let _ = stop::install_again();
        dormant::wake();
    }
}

/// pthread_create(3).
///
/// # Safety
/// pthread_create(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut c_void,
    attributes: *const c_void,
    routine: *const c_void,
    argument: *mut c_void,
) -> i32 {
    let mut address = NEXT.load(Ordering::Acquire);
    let first = address == 0;
    if first {
        // SAFETY: the first thread of a program is made while it is being loaded, or by its main thread: nobody
        // unloads an object meanwhile.
        match unsafe { next::find(c"pthread_create") } {
            Some(next) => address = next.address,
            None => return libc::EAGAIN,
        }
    }
    // SAFETY: a function of this type, by its name.
    let create: PthreadCreate = unsafe { core::mem::transmute(address) };
    // SAFETY: the caller's call.
    let result = unsafe { create(thread, attributes, routine, argument) };
    if first {
        NEXT.store(address, Ordering::Release);
        // Where it fails, the next checkpoint says so.
        let _ = stop::install_again();
    }
    result
}
