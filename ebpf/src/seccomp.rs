//! The system calls that are left to the service once it listens: no new sockets, no programs, no processes, no file
//! opened for writing, no further BPF than reading and writing its maps. Whatever else is called fails with EPERM.

use std::{io, mem::offset_of};

use libc::{c_long, sock_filter, sock_fprog};

/// linux/audit.h
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here on are of the x32 interface.
const X32: u32 = 0x4000_0000;

const ALLOWED: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_getsockopt,
    libc::SYS_fcntl,
    libc::SYS_getdents64,
    libc::SYS_getpid,
    libc::SYS_gettid,
    // How it ends: the socket and what it pinned are removed, where that was asked for.
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_tgkill,
];

/// BPF_MAP_LOOKUP_ELEM, _UPDATE_ELEM, _DELETE_ELEM, _GET_NEXT_KEY are the commands 1 to 4.
const MAP_CREATE: u32 = 0;
const LAST_MAP_COMMAND: u32 = 4;

/// A comparison jumps over this many instructions if it holds, or if not.
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | code | libc::BPF_K) as u16, jt, jf, k }
}

fn load(offset: usize) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset as u32 }
}

fn end(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

/// The lower half of an argument; the upper one means nothing to the calls that are looked at so.
fn argument(number: usize) -> sock_filter {
    load(offset_of!(libc::seccomp_data, args) + number * 8)
}

fn program() -> Vec<sock_filter> {
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        load(offset_of!(libc::seccomp_data, nr)),
        jump(libc::BPF_JGE, X32, 0, 1),
        end(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    for &call in ALLOWED {
        filter.extend([jump(libc::BPF_JEQ, call as u32, 0, 1), end(libc::SECCOMP_RET_ALLOW)]);
    }
    // Whatever writes: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND, and O_TMPFILE but for its O_DIRECTORY.
    let writing = libc::O_WRONLY
        | libc::O_RDWR
        | libc::O_CREAT
        | libc::O_TRUNC
        | libc::O_APPEND
        | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    unless_set(&mut filter, libc::SYS_openat, 2, writing as u32);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        unless_set(&mut filter, call, 2, libc::PROT_EXEC as u32);
    }
    filter.extend([
        jump(libc::BPF_JEQ, libc::SYS_bpf as u32, 0, 5),
        argument(0),
        jump(libc::BPF_JEQ, MAP_CREATE, 2, 0),
        jump(libc::BPF_JGT, LAST_MAP_COMMAND, 1, 0),
        end(libc::SECCOMP_RET_ALLOW),
        end(refuse),
    ]);
    filter.push(end(refuse));
    filter
}

/// Allows a call unless its argument has any of these bits.
fn unless_set(filter: &mut Vec<sock_filter>, call: c_long, number: usize, bits: u32) {
    filter.extend([
        jump(libc::BPF_JEQ, call as u32, 0, 4),
        argument(number),
        jump(libc::BPF_JSET, bits, 1, 0),
        end(libc::SECCOMP_RET_ALLOW),
        end(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ]);
}

/// Puts the filter on all of this process, for good. Needs PR_SET_NO_NEW_PRIVS.
///
/// # Errors
/// When the kernel has no seccomp filters.
pub fn confine() -> io::Result<()> {
    let mut filter = program();
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until the call has returned.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says of a call, by its own rules (linux/filter.h).
    fn run(call: c_long, arguments: [u32; 3]) -> u32 {
        let filter = program();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let instruction = filter[at];
            at += 1;
            let code = u32::from(instruction.code);
            let truth = match code & !(libc::BPF_JMP | libc::BPF_K) {
                _ if code == libc::BPF_RET | libc::BPF_K => return instruction.k,
                _ if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    let k = instruction.k as usize;
                    let first = offset_of!(libc::seccomp_data, args);
                    accumulator = match k {
                        0 => call as u32,
                        4 => AUDIT_ARCH_X86_64,
                        _ => arguments[(k - first) / 8],
                    };
                    continue;
                }
                libc::BPF_JEQ => accumulator == instruction.k,
                libc::BPF_JGE => accumulator >= instruction.k,
                libc::BPF_JGT => accumulator > instruction.k,
                libc::BPF_JSET => accumulator & instruction.k != 0,
                other => panic!("no instruction of ours: {other}"),
            };
            at += usize::from(if truth { instruction.jt } else { instruction.jf });
        }
    }

    #[test]
    fn files_are_opened_for_reading_only() {
        let open = |flags: i32| run(libc::SYS_openat, [0, 0, flags as u32]);
        assert_eq!(open(libc::O_RDONLY | libc::O_CLOEXEC), libc::SECCOMP_RET_ALLOW);
        assert_eq!(open(libc::O_RDONLY | libc::O_DIRECTORY), libc::SECCOMP_RET_ALLOW);
        for flag in [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC, libc::O_TMPFILE] {
            assert_ne!(open(flag), libc::SECCOMP_RET_ALLOW, "{flag:#o}");
        }
    }

    #[test]
    fn maps_may_be_used_and_nothing_be_loaded() {
        for command in 1..=4 {
            assert_eq!(run(libc::SYS_bpf, [command, 0, 0]), libc::SECCOMP_RET_ALLOW);
        }
        for command in [0, 5, 6, 28] {
            assert_ne!(run(libc::SYS_bpf, [command, 0, 0]), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn what_a_service_has_no_business_with_is_refused() {
        for call in [
            libc::SYS_execve,
            libc::SYS_clone,
            libc::SYS_fork,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_kill,
            libc::SYS_open,
            libc::SYS_setuid,
        ] {
            assert_ne!(run(call, [0; 3]), libc::SECCOMP_RET_ALLOW, "{call}");
        }
        assert_eq!(run(libc::SYS_mmap, [0, 0, libc::PROT_READ as u32]), libc::SECCOMP_RET_ALLOW);
        assert_ne!(run(libc::SYS_mmap, [0, 0, libc::PROT_EXEC as u32]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(run(libc::SYS_read, [0; 3]), libc::SECCOMP_RET_ALLOW);
    }
}
