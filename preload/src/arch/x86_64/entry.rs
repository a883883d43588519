//! Code that cannot be written in Rust: it begins or ends with a stack that Rust did not make.

use core::arch::naked_asm;

use stasis_sys::process::Siginfo;

use crate::{stacks, threads::Slot};

/// Parks the calling thread until the checkpoint is over. Returns `false` when it simply goes on,
/// `true` when it finds itself restarted, in another process, perhaps years later.
///
/// What the C calling convention keeps is on the stack, and the stack pointer in the slot, before
/// the thread counts as stopped: the restorer needs no more than that pointer to bring it back.
#[unsafe(naked)]
pub extern "C" fn park(slot: &Slot) -> bool {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov [rdi + {resume_sp}], rsp",
        "call {parked}",
        "xor eax, eax",
        ".globl stasis_unpark",
        ".hidden stasis_unpark",
        "stasis_unpark:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        resume_sp = const core::mem::offset_of!(Slot, resume_sp),
        parked = sym crate::stop::parked,
    )
}

/// Where a restarted thread goes on, its stack pointer being its slot's `resume_sp`.
#[unsafe(naked)]
pub extern "C" fn resume_entry() -> ! {
    naked_asm!("cld", "mov eax, 1", "jmp stasis_unpark")
}

/// Clears EFLAGS.AC, which the kernel leaves to a signal handler as the program had it (arch/x86/kernel/signal.c clears
/// DF, RF and TF): an unaligned access would end the program. rt_sigreturn(2) brings it back.
#[inline(always)]
pub fn allow_unaligned() {
    // SAFETY: changes one flag, which compiled code expects to be clear.
    unsafe { core::arch::asm!("pushfq", "and dword ptr [rsp], {mask}", "popfq", mask = const !(1i32 << 18)) };
}

/// The stop signal's handler: calls [`crate::stop::handle`] on a stack that has room for it.
#[unsafe(naked)]
pub extern "C" fn handler(signal: i32, info: *mut Siginfo, context: *mut libc::ucontext_t) {
    naked_asm!(
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov r12d, edi",
        "mov r13, rsi",
        "mov r14, rdx",
        "mov r15, rsp",
        "mov rdi, rsp",
        "call {take}",
        "mov rbx, rdx",
        "test rax, rax",
        "cmovz rax, rsp",
        "mov edi, r12d",
        "mov rsi, r13",
        "mov rdx, r14",
        "mov rsp, rax",
        "call {handle}",
        "mov rsp, r15",
        "mov rdi, rbx",
        "call {give_back}",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "ret",
        take = sym stacks::take,
        handle = sym crate::stop::handle,
        give_back = sym stacks::give_back,
    )
}

/// Whether Valgrind interprets this program, which makes no threads but libc's, and whose own half nobody could restart: its
/// client request RUNNING_ON_VALGRIND (valgrind.h), on a processor four rotations that together change nothing.
pub fn is_interpreted() -> bool {
    const RUNNING_ON_VALGRIND: usize = 0x1001;
    let request = [RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0];
    let answer: usize;
    // SAFETY: reads the request; on a processor nothing but the flags changes.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") &raw const request, inout("rdx") 0usize => answer,
            options(nostack)
        );
    }
    answer != 0
}

/// SA_RESTORER of the stop signal: rt_sigreturn(2).
#[unsafe(naked)]
pub extern "C" fn return_from_signal() -> ! {
    naked_asm!("mov eax, {nr}", "syscall", nr = const libc::SYS_rt_sigreturn)
}

/// clone(2) with a stack of its own for the new thread, which runs `entry` and never returns from
/// it. The result is the kernel's: a tid or a negated errno.
///
/// # Safety
/// `stack` is the upper end, 16-byte aligned, of memory that nothing else uses; `flags` ask for
/// nothing that takes further arguments.
#[unsafe(naked)]
pub unsafe extern "C" fn clone_thread(flags: usize, stack: usize, entry: extern "C" fn() -> !) -> isize {
    naked_asm!(
        "mov r9, rdx",
        "xor edx, edx",
        "xor r10d, r10d",
        "xor r8d, r8d",
        "mov eax, {nr}",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "xor ebp, ebp",
        "call r9",
        "ud2",
        "2:",
        "ret",
        nr = const libc::SYS_clone,
    )
}

/// Leaves all that the calling thread was about, and enters `entry` on its stack as if that had just been called. `stack`: its upper
/// end, as after a call.
///
/// # Safety
/// Nothing that lies on the stack is used any more.
#[unsafe(naked)]
pub unsafe extern "C" fn begin_anew(stack: usize, entry: extern "C" fn() -> !) -> ! {
    naked_asm!("mov rsp, rdi", "xor ebp, ebp", "jmp rsi")
}

// Weak: glibc has them since 2.35, and the library must load without.
core::arch::global_asm!(".weak __rseq_offset", ".weak __rseq_size");

/// The addresses of glibc's `__rseq_offset` and `__rseq_size`; null where it has none.
pub fn glibc_rseq_symbols() -> (*const i64, *const u32) {
    let (offset, size);
    // SAFETY: loads two entries of the global offset table.
    unsafe {
        core::arch::asm!(
            "mov {offset}, [rip + __rseq_offset@GOTPCREL]",
            "mov {size}, [rip + __rseq_size@GOTPCREL]",
            offset = out(reg) offset, size = out(reg) size,
            options(nostack, pure, readonly, preserves_flags)
        );
    }
    (offset, size)
}
