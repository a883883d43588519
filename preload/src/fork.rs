//! The child of a fork belongs to the computation, and has a checkpoint thread when it needs one ([`dormant`]).
//!
//! By a handler that glibc calls in the child (pthread_atfork(3)): fork(3), forkpty(3) and whatever else forks inside libc
//! are alike. _Fork(3) calls no handlers, and is wrapped; so are fork(3) and daemon(3), whose children are announced before
//! their parents can end.

use core::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

use stasis_sys::{file, process};

use crate::{
    births::Birth,
    dormant, lazy, start,
    wrappers::{exit, next, returned},
};

type Handler = unsafe extern "C" fn();

unsafe extern "C" {
    /// glibc's own name for fork(3), exported beside it and interposed by nobody.
    fn __fork() -> i32;

    /// What pthread_atfork(3) calls, with the object that the handlers are unregistered with: none (nptl/register-atfork.c).
    /// It allocates nothing for the first 48 of them.
    fn __register_atfork(
        prepare: Option<Handler>,
        parent: Option<Handler>,
        child: Option<Handler>,
        object: *mut c_void,
    ) -> i32;
}

/// The child is to have all of the memory that its parent has.
unsafe extern "C" fn before() {
    lazy::await_all();
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
    unsafe { __register_atfork(Some(before), None, Some(in_child), ptr::null_mut()) };
    // SAFETY: the caller's promise.
    if let Some(next) = unsafe { next::find(c"_Fork") } {
        NEXT.store(next.address, Ordering::Release);
    }
}

/// fork(3).
///
/// # Safety
/// fork(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fork() -> i32 {
    lazy::await_all();
    let birth = Birth::announce();
    // SAFETY: the caller's call.
    let pid = unsafe { __fork() };
    tell(birth, pid);
    pid
}

/// After a fork, in both processes: `pid` is what it gave.
pub fn tell(birth: Birth, pid: i32) {
    if pid == 0 && !birth.is_listed() {
        // Nobody would find it when its parent has ended.
        dormant::wake();
    }
    birth.tell(pid);
}

/// daemon(3).
///
/// # Safety
/// daemon(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daemon(keep_directory: i32, keep_standard: i32) -> i32 {
    // SAFETY: the child goes on as the caller.
    match unsafe { fork() } {
        -1 => return -1,
        0 => {}
        _ => exit::now(0),
    }
    let made = process::numbers(libc::SYS_setsid, [0; 5]);
    if keep_directory == 0 {
        // glibc's does not look at the result either (misc/daemon.c).
        let _ = process::numbers(libc::SYS_chdir, [c"/".as_ptr() as usize, 0, 0, 0, 0]);
    }
    let made = made.and_then(|_| {
        if keep_standard != 0 {
            return Ok(());
        }
        let null = file::open(c"/dev/null", libc::O_RDWR, 0)?;
        for standard in 0..3 {
            process::numbers(libc::SYS_dup2, [null as usize, standard, 0, 0, 0])?;
        }
        if null > 2 { file::close(null) } else { Ok(()) }
    });
    match made {
        Ok(()) => 0,
        Err(error) => returned(-(error.0 as isize)) as i32,
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
        return returned(unsafe { stasis_sys::raw(libc::SYS_fork, [0; 6]) }) as i32;
    }
    // SAFETY: a function of this type, by its name.
    let fork: unsafe extern "C" fn() -> i32 = unsafe { core::mem::transmute(address) };
    lazy::await_all();
    let birth = Birth::announce();
    // SAFETY: the caller's call.
    let pid = unsafe { fork() };
    if pid == 0 {
        // SAFETY: in the child, first of all.
        unsafe { in_child() };
    }
    tell(birth, pid);
    pid
}
