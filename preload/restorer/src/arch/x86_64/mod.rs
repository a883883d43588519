//! x86-64: the entry point, changing stacks, making threads, and the jump out of the restorer.

use core::arch::{asm, naked_asm};

use stasis_sys::raw;

/// Where the kernel starts the program: the stack pointer is all that it gives.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!(
        "xor ebp, ebp",
        "mov rdi, rsp",
        "and rsp, -16",
        "call {first}",
        "ud2",
        first = sym crate::first,
    )
}

/// Calls `entry(argument)` on another stack, for good.
///
/// # Safety
/// `stack` is the 16-byte aligned upper end of unused memory.
pub unsafe fn call_on(stack: usize, entry: usize, argument: usize) -> ! {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mov rsp, {stack}", "xor ebp, ebp", "call {entry}", "ud2",
            stack = in(reg) stack, entry = in(reg) entry, in("rdi") argument, options(noreturn));
    }
}

/// Leaves the restorer: goes on at `entry` with the stack pointer `sp`.
///
/// # Safety
/// Both belong to restored memory that waits for it.
pub unsafe fn leave(entry: u64, sp: u64) -> ! {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mov rsp, {sp}", "xor ebp, ebp", "jmp {entry}",
            sp = in(reg) sp, entry = in(reg) entry, options(noreturn));
    }
}

/// struct clone_args (clone3(2)), second version.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct CloneArguments {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
}

/// clone3(2): the new thread calls `entry(argument)` on its stack and never returns from it. The result
/// is the kernel's: a tid or a negated errno.
///
/// # Safety
/// The arguments describe a stack that nothing else uses.
#[unsafe(naked)]
pub unsafe extern "C" fn clone3(arguments: &CloneArguments, entry: usize, argument: usize) -> isize {
    naked_asm!(
        "mov r8, rdx",
        "mov r9, rsi",
        "mov esi, {size}",
        "mov eax, {nr}",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "xor ebp, ebp",
        "mov rdi, r8",
        "call r9",
        "ud2",
        "2:",
        "ret",
        size = const size_of::<CloneArguments>(),
        nr = const libc::SYS_clone3,
    )
}

/// Sets the bases of FS and GS of the calling thread (arch_prctl(2)).
pub fn set_bases(fs: u64, gs: u64) {
    const ARCH_SET_GS: usize = 0x1001;
    const ARCH_SET_FS: usize = 0x1002;
    // SAFETY: the restorer itself uses neither segment.
    unsafe {
        raw(libc::SYS_arch_prctl, [ARCH_SET_FS, fs as usize, 0, 0, 0, 0]);
        raw(libc::SYS_arch_prctl, [ARCH_SET_GS, gs as usize, 0, 0, 0, 0]);
    }
}

/// The end of user space with 47-bit addresses (arch/x86/include/asm/page_64_types.h, TASK_SIZE_MAX).
pub const ADDRESS_END: usize = (1 << 47) - 4096;

/// Where this program lies: its first byte, and the first behind it (symbols that the linker defines). Not
/// by way of the global offset table, which is not relocated yet.
pub fn program() -> (usize, usize) {
    let (start, end);
    // SAFETY: computes two addresses.
    unsafe {
        asm!("lea {start}, [rip + __ehdr_start]", "lea {end}, [rip + _end]", start = out(reg) start,
            end = out(reg) end, options(nomem, nostack, preserves_flags));
    }
    (start, end)
}

/// Where this program's dynamic section lies.
pub fn dynamic_section() -> usize {
    let address;
    // SAFETY: computes an address.
    unsafe {
        asm!(".hidden _DYNAMIC", "lea {address}, [rip + _DYNAMIC]", address = out(reg) address,
            options(nomem, nostack, preserves_flags));
    }
    address
}
