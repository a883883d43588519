//! syscall(2) by the numbers of calls that make, replace or end a process, ask for a System V object, a
//! timer, or for what nobody can read back, or not at once: as the functions of those names do it.

use super::{advice, confine, exec, exit, returned, system_v, timers};
use crate::{births::Birth, fork, lazy, memory_policy, start};

/// Numbers that [`by_number`] is to be given.
pub const NUMBERS: [i64; 28] = [
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit_group,
    libc::SYS_shmget,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_timer_create,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_landlock_restrict_self,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_madvise,
    libc::SYS_process_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_pkey_mprotect,
    libc::SYS_mseal,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
];

/// Makes a system call of [`NUMBERS`].
///
/// # Safety
/// The system call's.
pub unsafe extern "C" fn by_number(
    nr: i64,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> isize {
    // SAFETY: the caller's call.
    let raw = |nr| unsafe { stasis_sys::raw(nr, [a, b, c, d, e, f]) };
    // SAFETY: as above.
    let execve = || unsafe { exec::execve(a as *const _, b as *const _, c as *const _) };
    // SAFETY: as above.
    let execveat =
        || unsafe { exec::execveat(a as i32, b as *const _, c as *const _, d as *const _, e as i32) };
    // SAFETY: struct clone_args begins with the flags (clone(2)); a null pointer is the kernel's to refuse.
    let flags = || if a == 0 { u64::MAX } else { unsafe { (a as *const u64).read() } };
    match nr {
        libc::SYS_execve => execve() as isize,
        libc::SYS_execveat => execveat() as isize,
        libc::SYS_exit_group => exit::now(a as i32),
        // SAFETY: as above.
        libc::SYS_shmget | libc::SYS_semget | libc::SYS_msgget => unsafe { system_v::get(nr, [a, b, c]) },
        // SAFETY: as above.
        libc::SYS_timer_create => unsafe { timers::by_number(a, b, c) },
        libc::SYS_prctl
        | libc::SYS_seccomp
        | libc::SYS_landlock_restrict_self
        | libc::SYS_keyctl
        | libc::SYS_add_key
        // SAFETY: as above.
        | libc::SYS_request_key => unsafe { confine::call(nr, [a, b, c, d, e, f]) },
        libc::SYS_madvise
        | libc::SYS_process_madvise
        | libc::SYS_mlock
        | libc::SYS_mlock2
        | libc::SYS_munlock
        | libc::SYS_mlockall
        | libc::SYS_munlockall
        | libc::SYS_pkey_mprotect
        // SAFETY: as above.
        | libc::SYS_mseal => returned(unsafe { advice::call(nr, [a, b, c, d, e, f]) }),
        libc::SYS_mbind | libc::SYS_set_mempolicy => {
            memory_policy::note();
            returned(raw(nr))
        }
        // The child of a vfork(2) would return to a caller whose frame its parent has left: nobody can call it by this way.
        libc::SYS_vfork => returned(make(|| raw(libc::SYS_fork))),
        libc::SYS_clone if shares_memory(a as u64) => returned(raw(nr)),
        libc::SYS_clone3 if shares_memory(flags()) => returned(raw(nr)),
        _ => returned(make(|| raw(nr))),
    }
}

/// Whether a clone(2) with these flags makes a child without memory of its own.
pub fn shares_memory(flags: u64) -> bool {
    flags & libc::CLONE_VM as u64 != 0
}

/// Makes a child, which returns from here, too, on a stack of its own at the same address.
fn make(clone: impl FnOnce() -> isize) -> isize {
    lazy::await_all();
    let birth = Birth::announce();
    let pid = clone();
    if pid == 0 {
        // SAFETY: in the child, first of all.
        unsafe { start::begin_in_child() };
    }
    fork::tell(birth, pid as i32);
    pid
}
