//! Calls that change what only smaps tells of a mapping: advice (madvise(2)), locks (mlock(2)), protection keys. Reading smaps
//! walks all page tables, so checkpoints that follow each other closely ask here whether they need to: see
//! [`crate::snapshot::advice`].

use core::{
    ffi::{c_int, c_void},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
};

use super::returned;

/// How many such calls were begun, and how many have returned.
static BEGUN: AtomicU32 = AtomicU32::new(0);
static ENDED: AtomicU32 = AtomicU32::new(0);

/// A number that is another one after each such call; `None` while one is being made.
pub fn changes() -> Option<u32> {
    let begun = BEGUN.load(SeqCst);
    (begun == ENDED.load(SeqCst)).then_some(begun)
}

/// In the child of a fork: what other threads of its parent were about to do is not done here.
pub fn forget() {
    ENDED.store(BEGUN.load(SeqCst), SeqCst);
}

/// Makes a call that may change it.
pub fn change<R>(call: impl FnOnce() -> R) -> R {
    BEGUN.fetch_add(1, SeqCst);
    let result = call();
    ENDED.fetch_add(1, SeqCst);
    result
}

/// Whether the program has ever asked for a guard region.
static GUARDS: AtomicBool = AtomicBool::new(false);

pub fn has_guards() -> bool {
    GUARDS.load(SeqCst)
}

const MADV_GUARD_INSTALL: c_int = 102;
const MADV_GUARD_REMOVE: c_int = 103;

/// Whether advice is remembered. What allocators give all the time is not: it is about pages.
const fn is_kept(advice: c_int) -> bool {
    !matches!(
        advice,
        libc::MADV_WILLNEED
            | libc::MADV_DONTNEED
            | libc::MADV_FREE
            | libc::MADV_REMOVE
            | libc::MADV_COLD..=libc::MADV_COLLAPSE
            | MADV_GUARD_INSTALL..=MADV_GUARD_REMOVE
    )
}

/// Makes one of these calls, by its number.
///
/// # Safety
/// The system call's.
pub unsafe fn call(nr: i64, arguments: [usize; 6]) -> isize {
    if nr == libc::SYS_madvise && arguments[2] as c_int == MADV_GUARD_INSTALL {
        GUARDS.store(true, SeqCst);
    }
    // SAFETY: the caller's promise.
    let call = || unsafe { stasis_sys::raw(nr, arguments) };
    if nr == libc::SYS_madvise && !is_kept(arguments[2] as c_int) { call() } else { change(call) }
}

/// madvise(2).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int {
    // SAFETY: the caller's call.
    returned(unsafe { call(libc::SYS_madvise, [start as usize, len, advice as usize, 0, 0, 0]) }) as c_int
}

/// posix_madvise(3): the error is what it returns; POSIX_MADV_DONTNEED does nothing, as in glibc (sysdeps/unix/sysv/linux).
///
/// # Safety
/// madvise(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int {
    if advice == libc::POSIX_MADV_DONTNEED {
        return 0;
    }
    // SAFETY: the caller's call.
    -(unsafe { call(libc::SYS_madvise, [start as usize, len, advice as usize, 0, 0, 0]) } as c_int)
}

/// mlock(2).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock(start: *const c_void, len: usize) -> c_int {
    // SAFETY: the caller's call.
    returned(unsafe { call(libc::SYS_mlock, [start as usize, len, 0, 0, 0, 0]) }) as c_int
}

/// mlock2(2).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock2(start: *const c_void, len: usize, flags: u32) -> c_int {
    // SAFETY: the caller's call.
    returned(unsafe { call(libc::SYS_mlock2, [start as usize, len, flags as usize, 0, 0, 0]) }) as c_int
}

/// munlock(2).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munlock(start: *const c_void, len: usize) -> c_int {
    // SAFETY: the caller's call.
    returned(unsafe { call(libc::SYS_munlock, [start as usize, len, 0, 0, 0, 0]) }) as c_int
}

/// mlockall(2).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    // SAFETY: the caller's call.
    returned(unsafe { call(libc::SYS_mlockall, [flags as usize, 0, 0, 0, 0, 0]) }) as c_int
}

/// munlockall(2).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munlockall() -> c_int {
    // SAFETY: the caller's call.
    returned(unsafe { call(libc::SYS_munlockall, [0; 6]) }) as c_int
}

/// pkey_mprotect(2); without a key it is mprotect(2), as in glibc.
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pkey_mprotect(
    start: *mut c_void,
    len: usize,
    protection: c_int,
    key: c_int,
) -> c_int {
    let nr = if key == -1 { libc::SYS_mprotect } else { libc::SYS_pkey_mprotect };
    // SAFETY: the caller's call.
    returned(unsafe { call(nr, [start as usize, len, protection as usize, key as usize, 0, 0]) }) as c_int
}
