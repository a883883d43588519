//! The code of libc's system call stubs.

/// The length of [`jump`], in bytes.
pub const JUMP: usize = 14;

/// Whether a function begins by making the system call `nr` with its own arguments: `endbr64`, where libc is built so, then
/// `mov eax, nr` and `syscall` (glibc, sysdeps/unix/sysv/linux/x86_64/sysdep.h).
pub fn is_stub_of(code: &[u8], nr: i64) -> bool {
    let code = code.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa]).unwrap_or(code);
    code.strip_prefix(&[0xb8])
        .and_then(|code| code.strip_prefix(&(nr as u32).to_le_bytes()))
        .is_some_and(|code| code.starts_with(&[0x0f, 0x05]))
}

/// `jmp` to an address: `jmp [rip]`, and the address behind it. No register changes.
pub fn jump(target: usize) -> [u8; JUMP] {
    let mut code = [0; JUMP];
    code[..2].copy_from_slice(&[0xff, 0x25]);
    code[6..].copy_from_slice(&target.to_le_bytes());
    code
}
