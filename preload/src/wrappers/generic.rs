//! syscall(3): the same waits by number, and the stop signal in a raw rt_sigprocmask(2).

use core::{arch::naked_asm, mem::MaybeUninit};

use super::{fill, finish, given, masks, note_deadline, now, raw, returned, sleep, sockets, table};
use crate::{arch, interrupted::call::Call};

/// syscall(2).
///
/// What needs no attention goes straight to the kernel, as in glibc (x86_64/syscall.S).
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall() {
    naked_asm!(
        ".cfi_startproc",
        "cmp rdi, {numbers}",
        "jae 2f",
        "lea rax, [rip + {seen}]",
        "cmp byte ptr [rax + rdi], 1",
        "je 4f",
        "ja 5f",
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
        "4:",
        "lea rax, [rip + {prepare}]",
        "lea r11, [rip + {finish}]",
        "jmp {call}",
        "5:",
        "jmp {by_number}",
        ".cfi_endproc",
        numbers = const table::NUMBERS,
        seen = sym table::SEEN,
        prepare = sym prepare,
        finish = sym finish,
        call = sym arch::wrapped_call,
        by_number = sym raw::by_number,
        returned = sym returned,
    )
}

/// The calls of [`table::SEEN`]. syscall(2) is no cancellation point.
unsafe extern "C" fn prepare(call: &mut MaybeUninit<Call>) {
    let [nr, a, b, c, d, e] = given(call);
    // SAFETY: the seventh argument is on the caller's stack, above the return address and the RBX that
    // `wrapped_call` has pushed in front of the record.
    let f = unsafe { call.as_ptr().add(1).cast::<u64>().add(2).read() };
    let nr = nr as i64;
    let call = fill(call, nr, [a, b, c, d, e, f]);
    match table::of(nr) {
        None if nr == libc::SYS_rt_sigprocmask && a as i32 != libc::SIG_UNBLOCK => {
            // SAFETY: null, or the caller's set.
            unsafe { masks::replace(call, 1) };
        }
        Some(table::Entry { time: table::Time::Written { .. }, .. }) => note_deadline(call),
        Some(table::Entry { between: Some(_), .. }) => {
            call.finish = sockets::finish_between as *const () as u64;
            sockets::note_between(call);
        }
        Some(table::Entry { time: table::Time::Sleep { left, .. }, .. }) => {
            call.finish = sleep::finish_nanosleep as *const () as u64;
            sleep::note(call, left);
        }
        Some(entry) if !matches!(entry.time, table::Time::Socket { .. }) || sockets::have_timeouts() => {
            call.started = now();
        }
        _ => {}
    }
}
