//! syscall(3): the same waits by number, and the stop signal in a raw rt_sigprocmask(2).

use core::arch::naked_asm;

use libc::c_long;

use super::{begin, masks, returned, sockets, table};
use crate::arch;

/// syscall(2).
///
/// What needs no attention goes straight to the kernel, as in glibc (x86_64/syscall.S).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C-unwind" fn syscall(
    nr: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    naked_asm!(
        ".cfi_startproc",
        "cmp rdi, {numbers}",
        "jae 2f",
        "lea rax, [rip + {seen}]",
        "cmp byte ptr [rax + rdi], 0",
        "jne {attend}",
        "2:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "3:",
        "mov rdi, rax",
        "jmp {returned}",
        ".cfi_endproc",
        numbers = const table::NUMBERS,
        seen = sym table::SEEN,
        attend = sym attend,
        returned = sym returned,
    )
}

/// The calls of [`table::SEEN`]. syscall(2) is no cancellation point.
unsafe extern "C" fn attend(
    nr: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let mut arguments = [a, b, c, d, e, f].map(|argument| argument as usize);
    if nr == libc::SYS_rt_sigprocmask {
        // SAFETY: null, or the caller's set.
        let set = unsafe { masks::Without::stop_signal(b as *const u64) };
        if a as i32 != libc::SIG_UNBLOCK {
            arguments[1] = set.pointer() as usize;
        }
        // SAFETY: the caller's call.
        return returned(unsafe { stasis_sys::raw(nr, arguments) }) as c_long;
    }
    let is_socket = matches!(table::of(nr), Some(table::Entry { time: table::Time::Socket { .. }, .. }));
    let result = if is_socket && !sockets::have_timeouts() {
        // SAFETY: the caller's call.
        unsafe { stasis_sys::raw(nr, arguments) }
    } else {
        // SAFETY: as above.
        unsafe { arch::tracked_call(&mut begin(nr, arguments)) }
    };
    returned(result) as c_long
}
