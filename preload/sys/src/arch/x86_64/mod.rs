//! The system call instruction and the segment bases.

mod cpu;
mod strings;

use core::arch::asm;

pub use cpu::{
    PROTECTION_KEYS, allow_all_memory, cpuid, has_protection_keys, xcr0, xsave_offsets, xsave_size,
};

/// Makes a system call and returns what the kernel left in RAX: a result, or a negated errno.
///
/// # Safety
/// The call must be sound with these arguments: see the man page of `nr`.
#[inline]
pub unsafe fn raw(nr: i64, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention (syscall(2)): RCX and R11 are overwritten, all other
    // registers and the red zone are kept; the caller vouches for the call itself.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// The bases of FS and GS of the calling thread (arch_prctl(2)).
pub fn rdfsbase() -> crate::Result<(u64, u64)> {
    const ARCH_GET_FS: usize = 0x1003;
    const ARCH_GET_GS: usize = 0x1004;
    let (mut fs, mut gs) = (0u64, 0u64);
    // SAFETY: each call writes one u64 to the address given.
    unsafe {
        crate::call::call(libc::SYS_arch_prctl, [ARCH_GET_FS, &raw mut fs as usize, 0, 0, 0, 0])?;
        crate::call::call(libc::SYS_arch_prctl, [ARCH_GET_GS, &raw mut gs as usize, 0, 0, 0, 0])?;
    }
    Ok((fs, gs))
}
