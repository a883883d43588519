//! setuid(3) and its like: what glibc does in all threads that it knows (setxid, nptl/nptl_setxid.c) the checkpoint
//! thread, which it does not know, does as well, before the function returns.
//!
//! Not here: changes by system calls of other names, which are a thread's own; see [`credentials`].

use core::{
    ffi::CStr,
    sync::atomic::{AtomicUsize, Ordering},
};

use stasis_sys::memory;

use super::{next, returned};
use crate::{credentials, dormant};

const NAMES: [&CStr; 10] = [
    c"setuid",
    c"setgid",
    c"setreuid",
    c"setregid",
    c"setresuid",
    c"setresgid",
    c"seteuid",
    c"setegid",
    c"setgroups",
    c"initgroups",
];

/// The next definitions; 0 before they were looked for.
static NEXT: [AtomicUsize; NAMES.len()] = [const { AtomicUsize::new(0) }; NAMES.len()];

/// Finds the next definitions.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    for (slot, name) in NEXT.iter().zip(NAMES) {
        // SAFETY: the caller's promise.
        if let Some(next) = unsafe { next::find(name) } {
            slot.store(next.address, Ordering::Release);
        }
    }
}

type Function = unsafe extern "C" fn(usize, usize, usize) -> i32;

/// Calls the next definition of a function.
///
/// # Safety
/// The function's.
unsafe fn call(which: usize, arguments: [usize; 3]) -> i32 {
    let mut address = NEXT[which].load(Ordering::Acquire);
    if address == 0 {
        // SAFETY: before our constructor has run, while the program is being loaded.
        address = unsafe { next::find(NAMES[which]) }.map_or(0, |next| next.address);
    }
    if address == 0 {
        return returned(-libc::ENOSYS as isize) as i32;
    }
    // The coordinator knows a process by the user that it was started by.
    dormant::wake();
    // SAFETY: all of them take at most three integers or pointers, and give an int.
    let function: Function = unsafe { core::mem::transmute(address) };
    let [a, b, c] = arguments;
    // SAFETY: the caller's call.
    unsafe { function(a, b, c) }
}

/// Defines a function that is a system call, with these arguments.
macro_rules! follow {
    ($which:literal, $name:ident($($argument:ident),+), $nr:ident, [$a:expr, $b:expr, $c:expr]) => {
        #[doc = concat!(stringify!($name), "(3).")]
        ///
        /// # Safety
        /// The function's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: u32),+) -> i32 {
            let given = [$($argument as usize),+];
            let mut arguments = [0; 3];
            arguments[..given.len()].copy_from_slice(&given);
            // SAFETY: the caller's call.
            let result = unsafe { call($which, arguments) };
            if result == 0 {
                credentials::tell(libc::$nr, [$a as usize, $b as usize, $c as usize]);
            }
            result
        }
    };
}

/// "As it is", for an id.
const SAME: u32 = u32::MAX;

follow!(0, setuid(uid), SYS_setuid, [uid, 0, 0]);
follow!(1, setgid(gid), SYS_setgid, [gid, 0, 0]);
follow!(2, setreuid(real, effective), SYS_setreuid, [real, effective, 0]);
follow!(3, setregid(real, effective), SYS_setregid, [real, effective, 0]);
follow!(4, setresuid(real, effective, saved), SYS_setresuid, [real, effective, saved]);
follow!(5, setresgid(real, effective, saved), SYS_setresgid, [real, effective, saved]);
follow!(6, seteuid(uid), SYS_setresuid, [SAME, uid, SAME]);
follow!(7, setegid(gid), SYS_setresgid, [SAME, gid, SAME]);

/// setgroups(2).
///
/// # Safety
/// setgroups(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setgroups(len: usize, groups: *const u32) -> i32 {
    // SAFETY: the caller's call.
    let result = unsafe { call(8, [len, groups as usize, 0]) };
    if result == 0 {
        credentials::tell(libc::SYS_setgroups, [len, groups as usize, 0]);
    }
    result
}

/// initgroups(3): its setgroups(2) is glibc's own, so the list is asked for afterwards.
///
/// # Safety
/// initgroups(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initgroups(user: *const core::ffi::c_char, group: u32) -> i32 {
    /// NGROUPS_MAX (linux/limits.h) ids: there is no malloc here, and the stack may be small.
    const LONGEST: usize = 65536 * size_of::<u32>();
    // SAFETY: the caller's call.
    let result = unsafe { call(9, [user as usize, group as usize, 0]) };
    if result == 0
        && let Ok(list) = memory::map_anonymous(LONGEST, libc::MAP_NORESERVE)
    {
        // SAFETY: getgroups(2) writes at most as many as there is room for.
        let len =
            unsafe { stasis_sys::raw(libc::SYS_getgroups, [LONGEST / size_of::<u32>(), list, 0, 0, 0, 0]) };
        if len >= 0 {
            credentials::tell(libc::SYS_setgroups, [len as usize, list, 0]);
        }
        // SAFETY: nobody else knows it.
        let _ = unsafe { memory::unmap(list, LONGEST) };
    }
    result
}
