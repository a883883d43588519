//! Code that takes the place of the vDSO's functions (arch/x86/entry/vdso/vdso.lds.S names them all).

/// Jumps to any address, and changes no register.
pub fn jump(to: u64) -> Vec<u8> {
    // jmp *0(%rip), which is followed by the address
    let mut code = vec![0xff, 0x25, 0, 0, 0, 0];
    code.extend(to.to_le_bytes());
    code
}

/// What a function does, without its `__vdso_`, by way of the system call that it stands for.
pub fn stand_in(function: &str) -> Option<Vec<u8>> {
    Some(match function {
        "clock_gettime" => system_call(libc::SYS_clock_gettime),
        "clock_getres" => system_call(libc::SYS_clock_getres),
        "gettimeofday" => system_call(libc::SYS_gettimeofday),
        "time" => system_call(libc::SYS_time),
        "getcpu" => system_call(libc::SYS_getcpu),
        "getrandom" => {
            // Who asks for the size of its state (`opaque_len` of ~0) is to do without: cmp $-1, %r8; je
            let call = system_call(libc::SYS_getrandom);
            let mut code = vec![0x49, 0x83, 0xf8, 0xff, 0x74, call.len() as u8];
            code.extend(call);
            code.extend(fail());
            code
        }
        // An enclave is gone with its process.
        "sgx_enter_enclave" => fail(),
        _ => return None,
    })
}

/// The arguments are in the registers already: none of these calls has a fourth.
fn system_call(nr: i64) -> Vec<u8> {
    // mov $nr, %eax
    let mut code = vec![0xb8];
    code.extend((nr as u32).to_le_bytes());
    // syscall; ret
    code.extend([0x0f, 0x05, 0xc3]);
    code
}

fn fail() -> Vec<u8> {
    // mov $-ENOSYS, %eax; ret
    let mut code = vec![0xb8];
    code.extend((-libc::ENOSYS).to_le_bytes());
    code.push(0xc3);
    code
}
