//! Sets of signals that would block or take the stop signal.
//!
//! glibc takes its two signals out of what sigprocmask(3) and pthread_sigmask(3) block (2.36,
//! nptl/pthread_sigmask.c), and sigfillset(3) leaves them out; a set filled by memset(3) brings them into
//! the functions here.

use libc::c_int;

use super::returned;
use crate::{interrupted::call::Call, stop};

const STOP_SIGNAL: u64 = 1 << (stop::SIGNAL - 1);

/// Gives the kernel a copy of a call's set of signals, without the stop signal.
///
/// # Safety
/// The argument is null, or the address of a set.
pub unsafe fn replace(call: &mut Call, position: usize) {
    // SAFETY: the caller's promise.
    if let Some(set) = unsafe { (call.arguments[position] as *const u64).as_ref() } {
        call.mask = *set & !STOP_SIGNAL;
        call.arguments[position] = &raw const call.mask as u64;
    }
}

unsafe extern "C" {
    /// glibc's own name for sigaction(2), exported beside it.
    fn __sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int;
}

/// sigaction(2): the stop signal is not blocked while a handler runs.
///
/// # Safety
/// sigaction(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: null, or the caller's structure.
    let mut copy = unsafe { new.as_ref() }.copied();
    let new = copy.as_mut().map_or(core::ptr::null(), |copy| {
        let mask = (&raw mut copy.sa_mask).cast::<u64>();
        // SAFETY: sigset_t begins with the kernel's 64 bits.
        unsafe { *mask &= !STOP_SIGNAL };
        &raw const *copy
    });
    // SAFETY: the caller's call.
    unsafe { __sigaction(signal, new, old) }
}

/// signalfd(2): does not take the stop signal.
///
/// # Safety
/// signalfd(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn signalfd(fd: c_int, set: *const u64, flags: c_int) -> c_int {
    // SAFETY: null, or the caller's set.
    let copy = unsafe { set.as_ref() }.map(|set| set & !STOP_SIGNAL);
    let set = copy.as_ref().map_or(core::ptr::null(), |copy| &raw const *copy);
    let arguments = [fd as usize, set as usize, size_of::<u64>(), flags as usize, 0, 0];
    // SAFETY: the caller's call.
    returned(unsafe { stasis_sys::raw(libc::SYS_signalfd4, arguments) }) as c_int
}
