//! System calls that the stop handler can find out about, and make again in another way.

use core::{arch::naked_asm, mem::offset_of};

use crate::interrupted::call::Call;

/// What every wrapper jumps to, with the C function's arguments still in place, the [`Prepare`] function in
/// RAX and the [`Finish`] function in R11: lays a record on the stack, has it prepared, makes the system
/// call, has the result finished, and returns to the wrapper's caller.
///
/// RBX holds the record meanwhile: this is how the stop handler knows which call it interrupted.
///
/// In a cancellation point the thread can be cancelled at any instruction meanwhile, as in glibc's own
/// (2.36, nptl/cancellation.c). The unwinding that follows meets this frame only, never one of Rust's,
/// which with panic = "abort" would end the process.
///
/// [`Prepare`]: crate::wrappers::Prepare
/// [`Finish`]: crate::wrappers::Finish
///
/// # Safety
/// Only from a wrapper, as said above.
#[unsafe(naked)]
pub unsafe extern "C" fn wrapped_call() {
    naked_asm!(
        ".cfi_startproc",
        "push rbx",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbx, 0",
        "sub rsp, {size}",
        ".cfi_adjust_cfa_offset {size}",
        "mov rbx, rsp",
        "mov [rbx + {arguments}], rdi",
        "mov [rbx + {arguments} + 8], rsi",
        "mov [rbx + {arguments} + 16], rdx",
        "mov [rbx + {arguments} + 24], rcx",
        "mov [rbx + {arguments} + 32], r8",
        "mov [rbx + {arguments} + 40], r9",
        "mov [rbx + {finish}], r11",
        "mov rdi, rbx",
        "call rax",
        ".globl stasis_tracked_begin",
        ".hidden stasis_tracked_begin",
        "stasis_tracked_begin:",
        "cmp dword ptr [rbx + {cancel}], 0",
        "jl 2f",
        "mov edi, {asynchronous}",
        "lea rsi, [rbx + {cancel}]",
        "call [rip + pthread_setcanceltype@GOTPCREL]",
        "2:",
        "mov rax, [rbx + {nr}]",
        "mov rdi, [rbx + {arguments}]",
        "mov rsi, [rbx + {arguments} + 8]",
        "mov rdx, [rbx + {arguments} + 16]",
        "mov r10, [rbx + {arguments} + 24]",
        "mov r8, [rbx + {arguments} + 32]",
        "mov r9, [rbx + {arguments} + 40]",
        "syscall",
        ".globl stasis_tracked_returned",
        ".hidden stasis_tracked_returned",
        "stasis_tracked_returned:",
        "mov [rbx + {result}], rax",
        // The timer that stood in for a time-out. It is forgotten first: one left over does no harm, one
        // deleted twice may be the program's.
        "mov edi, [rbx + {timer}]",
        "test edi, edi",
        "js 3f",
        "mov dword ptr [rbx + {timer}], -1",
        "mov eax, {timer_delete}",
        "syscall",
        "3:",
        "mov edi, [rbx + {cancel}]",
        "test edi, edi",
        "js 4f",
        "xor esi, esi",
        "call [rip + pthread_setcanceltype@GOTPCREL]",
        "4:",
        "mov rdi, rbx",
        "call [rbx + {finish}]",
        "cmp dword ptr [rbx + {again}], 0",
        "jne stasis_tracked_begin",
        ".globl stasis_tracked_end",
        ".hidden stasis_tracked_end",
        "stasis_tracked_end:",
        "add rsp, {size}",
        ".cfi_adjust_cfa_offset -{size}",
        "pop rbx",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore rbx",
        "ret",
        ".cfi_endproc",
        size = const size_of::<Call>(),
        arguments = const offset_of!(Call, arguments),
        finish = const offset_of!(Call, finish),
        cancel = const offset_of!(Call, cancel),
        asynchronous = const 1, // PTHREAD_CANCEL_ASYNCHRONOUS
        nr = const offset_of!(Call, nr),
        timer = const offset_of!(Call, timer),
        result = const offset_of!(Call, result),
        again = const offset_of!(Call, again),
        timer_delete = const libc::SYS_timer_delete,
    )
}

/// Where the stop handler sends a thread to make a call in another way than the program did; RBX holds a
/// `Call` of the pool, the registers are those of the system call. Goes on behind the program's `syscall`
/// instruction, with all registers as that instruction leaves them, and the stack never touched.
#[unsafe(naked)]
unsafe extern "C" fn injected_call() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_signal_frame",
        // The caller's stack pointer is this one's; its RIP and RBX are in the record.
        ".cfi_def_cfa rsp, 0",
        ".cfi_escape 0x10, 0x10, 0x03, 0x73, {pc_low}, {pc_high}",
        ".cfi_escape 0x10, 0x03, 0x03, 0x73, {rbx_low}, {rbx_high}",
        "syscall",
        "mov rcx, [rbx + {done}]",
        "test rcx, rcx",
        "jz 3f",
        "test rax, rax",
        "js 2f",
        "add rax, rcx",
        "jmp 3f",
        "2:",
        "mov rax, rcx",
        "3:",
        "mov rdi, [rbx + {arguments}]",
        "mov rsi, [rbx + {arguments} + 8]",
        "mov rdx, [rbx + {arguments} + 16]",
        "mov r10, [rbx + {arguments} + 24]",
        "mov r8, [rbx + {arguments} + 32]",
        "mov r9, [rbx + {arguments} + 40]",
        "mov rcx, [rbx + {pc}]",
        "mov r11, [rbx + {rbx}]",
        "mov dword ptr [rbx + {tid}], 0",
        "mov rbx, r11",
        // From here RBX is the program's and RCX holds where it goes on.
        ".cfi_undefined rbx",
        ".cfi_same_value rbx",
        ".cfi_register rip, rcx",
        "jmp rcx",
        ".cfi_endproc",
        arguments = const offset_of!(Call, arguments),
        done = const offset_of!(Call, done),
        pc = const offset_of!(Call, pc),
        rbx = const offset_of!(Call, rbx),
        tid = const offset_of!(Call, tid),
        // DW_OP_breg3 (RBX) takes a signed LEB128: two bytes reach 8191.
        pc_low = const offset_of!(Call, pc) & 0x7f | 0x80,
        pc_high = const offset_of!(Call, pc) >> 7,
        rbx_low = const offset_of!(Call, rbx) & 0x7f | 0x80,
        rbx_high = const offset_of!(Call, rbx) >> 7,
    )
}

unsafe extern "C" {
    safe static stasis_tracked_begin: u8;
    safe static stasis_tracked_returned: u8;
    safe static stasis_tracked_end: u8;
}

/// Where an interrupted thread stands, if it is in one of the calls above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stub {
    /// In `wrapped_call`, not just behind its `syscall` instruction.
    Tracked,
    TrackedReturned,
    InjectedReturned,
}

/// Where `pc` stands; RBX points to the call's record then.
pub fn stub_at(pc: u64) -> Option<Stub> {
    let at = |label: &u8| &raw const *label as u64;
    if pc == at(&stasis_tracked_returned) {
        Some(Stub::TrackedReturned)
    } else if pc == behind_injection() {
        Some(Stub::InjectedReturned)
    } else if (at(&stasis_tracked_begin)..=at(&stasis_tracked_end)).contains(&pc) {
        Some(Stub::Tracked)
    } else {
        None
    }
}

/// Where a thread stands that has just made the call of `injected_call`.
pub fn behind_injection() -> u64 {
    const SYSCALL_LEN: u64 = 2;
    injected_call as *const () as u64 + SYSCALL_LEN
}
