//! The child of a fork gets a checkpoint thread of its own.
//!
//! By a handler that glibc calls in the child (pthread_atfork(3)): fork(3), daemon(3), forkpty(3) and whatever else forks
//! inside libc are alike. _Fork(3) calls no handlers, and is wrapped.

use core::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{start, wrappers::next};

type Handler = unsafe extern "C" fn();

unsafe extern "C" {
    /// What pthread_atfork(3) calls, with the object that the handlers are unregistered with: none (nptl/register-atfork.c).
    /// It allocates nothing for the first 48 of them.
    fn __register_atfork(
        prepare: Option<Handler>,
        parent: Option<Handler>,
        child: Option<Handler>,
        object: *mut c_void,
    ) -> i32;
}

unsafe extern "C" fn in_child() {
    // SAFETY: in the child, before fork(3) returns there.
    unsafe { start::begin_in_child() };
}

/// From now on children get a checkpoint thread.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    // SAFETY: the handler may be called in any child.
    unsafe { __register_atfork(None, None, Some(in_child), ptr::null_mut()) };
    // SAFETY: the caller's promise.
    if let Some(next) = unsafe { next::find(c"_Fork") } {
        NEXT.store(next.address, Ordering::Release);
    }
}

/// The next definition of _Fork(3), which glibc has since 2.34.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// _Fork(3).
///
/// # Safety
/// _Fork(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Fork() -> i32 {
    let mut address = NEXT.load(Ordering::Acquire);
    if address == 0 {
        // SAFETY: before our constructor has run, while the program is being loaded.
        address = unsafe { next::find(c"_Fork") }.map_or(0, |next| next.address);
    }
    if address == 0 {
        // SAFETY: fork(2) without the handlers: what _Fork(3) is for.
        return crate::wrappers::returned(unsafe { stasis_sys::raw(libc::SYS_fork, [0; 6]) }) as i32;
    }
    // SAFETY: a function of this type, by its name.
    let fork: unsafe extern "C" fn() -> i32 = unsafe { core::mem::transmute(address) };
    // SAFETY: the caller's call.
    let pid = unsafe { fork() };
    if pid == 0 {
        // SAFETY: in the child, first of all.
        unsafe { in_child() };
    }
    pid
}
