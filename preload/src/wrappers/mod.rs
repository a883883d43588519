//! The functions of libc that the library defines in front of libc's own.
//!
//! Only where the kernel cannot tell the stop handler what it must know: when a call with a time-out
//! began ([`timed`], [`sleep`], [`sockets`], [`generic`]), and where a set of signals would hide the
//! stop signal ([`masks`]). [`table`] has the reasons, call by call. The hot functions (malloc, open,
//! stat, getpid, clock_gettime...) are not among them.
//!
//! They may be entered before any constructor has run, ours and libc's included: then, too, they make
//! the system call, and touch nothing but errno.

mod cancel;
mod generic;
mod masks;
mod next;
mod sleep;
mod sockets;
pub mod table;
mod timed;

use stasis_sys::sync;

use crate::{arch, interrupted::call::Call};

unsafe extern "C" {
    fn __errno_location() -> *mut i32;
}

/// What a libc function returns for a system call's result: -1 and errno for an error.
extern "C" fn returned(result: isize) -> isize {
    if (-4095..0).contains(&result) {
        // SAFETY: the calling thread's errno.
        unsafe { *__errno_location() = -result as i32 };
        return -1;
    }
    result
}

/// A call that begins now.
fn begin(nr: i64, arguments: [usize; 6]) -> Call {
    Call { started: now(), ..Call::new(nr, arguments.map(|argument| argument as u64)) }
}

/// CLOCK_MONOTONIC in nanoseconds, by way of the vDSO.
fn now() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
        return sync::monotonic_ns() as i64;
    }
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Finds what the wrappers stand in front of.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    // SAFETY: the caller's promise.
    unsafe { sockets::init() };
}

/// Makes a call that is a cancellation point; the kernel's result.
///
/// # Safety
/// The system call's.
unsafe extern "C-unwind" fn perform(call: &mut Call) -> isize {
    if cancel::is_single_threaded() {
        // SAFETY: the caller's promise.
        return unsafe { arch::tracked_call(call) };
    }
    let deferred = cancel::enable();
    // SAFETY: the caller's promise.
    let result = unsafe { arch::tracked_call(call) };
    cancel::restore(deferred);
    result
}
