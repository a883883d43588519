//! Calls that confine a program, or give it keys, in ways that the kernel does not tell: see [`crate::confined`].

use libc::c_int;

use super::{advice, returned};
use crate::confined::{self, CLOCK, DISPATCH, FILTERS, LANDLOCK, OWN_KEYS, SESSION_KEYS};

// Not in the libc crate (linux/prctl.h, linux/keyctl.h).
const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
const PR_SET_MEMORY_MERGE: i32 = 67;
const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
const KEYCTL_LINK: usize = 8;

/// prctl(2).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int {
    // SAFETY: the caller's call; what was not given is not looked at by the kernel, as in glibc.
    unsafe { call(libc::SYS_prctl, [option as usize, a, b, c, d, 0]) as c_int }
}

/// SECCOMP_SET_MODE_STRICT and SECCOMP_SET_MODE_FILTER (linux/seccomp.h).
const fn is_filter(operation: usize) -> bool {
    operation <= 1
}

/// Whether a number names a keyring of the thread or of the process.
fn is_own(ring: usize) -> bool {
    const KEY_SPEC_THREAD_KEYRING: i32 = -1;
    const KEY_SPEC_PROCESS_KEYRING: i32 = -2;
    matches!(ring as i32, KEY_SPEC_THREAD_KEYRING | KEY_SPEC_PROCESS_KEYRING)
}

/// Makes one of these calls, by its number.
///
/// # Safety
/// The system call's.
pub unsafe fn call(nr: i64, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, _] = arguments;
    let noted = match nr {
        libc::SYS_prctl if a as i32 == PR_SET_SYSCALL_USER_DISPATCH && b != 0 => DISPATCH,
        libc::SYS_prctl if a as i32 == libc::PR_SET_TSC && b as i32 == libc::PR_TSC_SIGSEGV => CLOCK,
        libc::SYS_prctl if a as i32 == libc::PR_SET_SECCOMP => FILTERS,
        libc::SYS_seccomp if is_filter(a) => FILTERS,
        libc::SYS_landlock_restrict_self => LANDLOCK,
        libc::SYS_keyctl if a == KEYCTL_JOIN_SESSION_KEYRING => SESSION_KEYS,
        libc::SYS_keyctl if a == KEYCTL_LINK && is_own(c) => OWN_KEYS,
        libc::SYS_add_key if is_own(e) => OWN_KEYS,
        libc::SYS_request_key if is_own(d) => OWN_KEYS,
        _ => 0,
    };
    // Before the call: where it succeeds, the next checkpoint must know.
    let had = confined::has(noted);
    confined::note(noted);
    // SAFETY: the caller's promise.
    let make = || unsafe { stasis_sys::raw(nr, arguments) };
    let result = match nr {
        libc::SYS_prctl if a as i32 == PR_SET_MEMORY_MERGE => advice::change(make),
        _ => make(),
    };
    let failed = (-4095..0).contains(&result);
    if failed && !had {
        confined::withdraw(noted);
    }
    if !failed && nr == libc::SYS_prctl && a as i32 == PR_SET_SYSCALL_USER_DISPATCH && b == 0 {
        confined::withdraw(DISPATCH);
    }
    returned(result)
}
