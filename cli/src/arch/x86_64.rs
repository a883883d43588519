//! x86-64: where a program begins.

pub mod vdso;

use std::arch::asm;

/// Goes on at a program's entry, as the kernel would after execve(2): with nothing but its stack.
///
/// # Safety
/// A program is loaded that begins at `entry`, and `stack` points to its arguments (System V ABI, x86-64, 3.4.1).
pub unsafe fn begin(entry: usize, stack: usize) -> ! {
    // SAFETY: the caller's promise; nothing of this function is used afterwards.
    unsafe {
        asm!("mov rsp, {stack}", "xor ebp, ebp", "xor edx, edx", "jmp {entry}",
            stack = in(reg) stack, entry = in(reg) entry, options(noreturn));
    }
}

/// The thread pointer (fs:0 holds it, System V ABI for thread-local storage).
pub fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: reads the first word of the thread's control block, which glibc always has.
    unsafe { asm!("mov {pointer}, fs:0", pointer = out(reg) pointer, options(nostack, preserves_flags)) };
    pointer
}
