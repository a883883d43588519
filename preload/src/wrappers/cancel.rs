//! Thread cancellation during a wrapped call.
//!
//! glibc makes cancellation asynchronous around the system calls of its cancellation points (2.36,
//! nptl/cancellation.c), and so do the wrappers. The unwinding that follows goes through their frames:
//! every function on that way is `extern "C-unwind"`.

use core::ffi::c_char;

unsafe extern "C-unwind" {
    fn pthread_setcanceltype(kind: i32, old: *mut i32) -> i32;
}

unsafe extern "C" {
    /// sys/single_threaded.h (glibc 2.32).
    static __libc_single_threaded: c_char;
}

const PTHREAD_CANCEL_ASYNCHRONOUS: i32 = 1;

/// Whether nobody else is there to cancel this thread.
#[inline]
pub fn is_single_threaded() -> bool {
    // SAFETY: glibc writes it while there is one thread only.
    unsafe { (&raw const __libc_single_threaded).read_volatile() != 0 }
}

/// Lets the thread be cancelled at any instruction; what was set before. May unwind.
#[inline]
pub extern "C-unwind" fn enable() -> i32 {
    let mut old = 0;
    // SAFETY: between here and `restore` the thread only makes a system call.
    unsafe { pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &raw mut old) };
    old
}

/// Undoes [`enable`].
#[inline]
pub extern "C-unwind" fn restore(old: i32) {
    // SAFETY: as in `enable`.
    unsafe { pthread_setcanceltype(old, core::ptr::null_mut()) };
}
