//! Becoming the restorer without execve(2), which would take away the memory that was loaded before: the program is
//! loaded beside this one, and unmaps this one then.
//!
//! What execve(2) would also have done and matters is done here: descriptors are closed that are marked so, and the kernel
//! is told to leave glibc's rseq area alone. The rest the restorer and the restored library set anyway.

use std::{convert::Infallible, ffi::CStr, fs, io, os::fd::RawFd, path::Path, ptr};

use anyhow::{Context as _, bail};

use crate::arch;

/// More than the restorer needs before it goes on in its own area: its frame for reading /proc/self/maps is the largest.
const STACK: usize = 256 << 10;

/// Becomes the restorer at `path`, with the plan in the descriptor `plan`. This process has one thread.
///
/// # Errors
/// Why not; this process goes on then.
pub fn become_restorer(path: &Path, plan: RawFd) -> anyhow::Result<Infallible> {
    let entry = load(&fs::read(path).with_context(|| path.display().to_string())?)?;
    let stack = stack(plan)?;
    withdraw_rseq().context("withdrawing the restartable sequences of this process")?;
    close_on_exec().context("closing descriptors")?;
    // SAFETY: loaded just now; nothing of this program is used any more.
    unsafe { arch::begin(entry, stack) }
}

/// Copies the parts of a static-pie program to where there is room; returns its entry.
fn load(file: &[u8]) -> anyhow::Result<usize> {
    const PT_LOAD: u64 = 1;
    let part = |at: usize, len: usize| {
        let bytes = file.get(at..at.checked_add(len)?)?;
        let mut word = [0; 8];
        word[..len].copy_from_slice(bytes);
        Some(u64::from_le_bytes(word))
    };
    // Elf64_Ehdr: entry at 24, the program headers' offset at 32, their size at 54 and number at 56. Elf64_Phdr: type
    // at 0, offset at 8, address at 16, lengths in the file and in memory at 32 and 40.
    let segments = || -> Option<Vec<[usize; 4]>> {
        let (first, size, number) = (part(32, 8)? as usize, part(54, 2)? as usize, part(56, 2)? as usize);
        let headers = (0..number).map(|index| first + index * size);
        let mut segments = Vec::new();
        for at in headers {
            if part(at, 4)? == PT_LOAD {
                let word = |offset: usize| part(at + offset, 8).map(|word| word as usize);
                segments.push([word(8)?, word(16)?, word(32)?, word(40)?]);
            }
        }
        Some(segments)
    };
    let (Some(segments), Some(entry)) = (segments(), part(24, 8)) else {
        bail!("the restorer is no program: install Stasis again")
    };
    let len = segments.iter().map(|[_, address, _, len]| address + len).max().unwrap_or(0);
    let base = map(len, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)?;
    for [offset, address, bytes, _] in segments {
        let Some(from) = file.get(offset..offset + bytes).filter(|_| address + bytes <= len) else {
            bail!("the restorer is cut short: install Stasis again")
        };
        // SAFETY: inside the mapping that was just made.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), (base + address) as *mut u8, bytes) };
    }
    Ok(base + entry as usize)
}

/// A stack with the restorer's arguments: its name and the number of the plan.
fn stack(plan: RawFd) -> anyhow::Result<usize> {
    let top = map(STACK, libc::PROT_READ | libc::PROT_WRITE)? + STACK;
    let strings = format!("stasis-restorer\0{plan}\0");
    let at = top - strings.len().next_multiple_of(16);
    let number = at + strings.find('\0').unwrap_or(0) + 1;
    // argc, argv and its end, the environment's end, the auxiliary vector's end.
    let words = [2, at, number, 0, 0, 0, 0, 0];
    let stack = at - size_of_val(&words);
    // SAFETY: inside the mapping that was just made, below its end; aligned to 16 bytes.
    unsafe {
        ptr::copy_nonoverlapping(strings.as_ptr(), at as *mut u8, strings.len());
        ptr::copy_nonoverlapping(words.as_ptr(), stack as *mut usize, words.len());
    }
    Ok(stack)
}

fn map(len: usize, protection: i32) -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping where the kernel finds room.
    let base = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(base as usize) }
}

/// Has the kernel forget glibc's rseq area (glibc 2.35 and later), which it would otherwise write to when it is gone. How long
/// the area is depends on glibc and the kernel (sysdeps/unix/sysv/linux/rseq-internal.h).
fn withdraw_rseq() -> io::Result<()> {
    const UNREGISTER: i32 = 1;
    /// RSEQ_SIG on x86 (linux/rseq.h).
    const SIGNATURE: u32 = 0x5305_3053;
    const AT_RSEQ_FEATURE_SIZE: u64 = 27;
    let symbol = |name: &CStr| {
        // SAFETY: looks up a name among what is loaded.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
    };
    let (offset, size) = (symbol(c"__rseq_offset"), symbol(c"__rseq_size"));
    if offset.is_null() || size.is_null() {
        return Ok(());
    }
    // SAFETY: glibc defines them as ptrdiff_t and unsigned int.
    let (offset, size) = unsafe { (*offset.cast::<isize>(), *size.cast::<u32>()) };
    if size == 0 {
        return Ok(());
    }
    // SAFETY: reads the auxiliary vector.
    let feature = unsafe { libc::getauxval(AT_RSEQ_FEATURE_SIZE) } as u32;
    let area = arch::thread_pointer().wrapping_add_signed(offset);
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for len in [size.max(32), size, feature.next_multiple_of(32)] {
        // SAFETY: with this flag nothing is written but the area, which is there.
        if unsafe { libc::syscall(libc::SYS_rseq, area, len, UNREGISTER, SIGNATURE) } == 0 {
            return Ok(());
        }
        refused = io::Error::last_os_error();
    }
    Err(refused)
}

/// Closes what execve(2) would.
fn close_on_exec() -> io::Result<()> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in numbers {
        // SAFETY: fcntl(2) and close(2) with numbers; whoever owns what is closed here never runs again.
        unsafe {
            let flags = libc::fcntl(number, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC != 0 {
                libc::close(number);
            }
        }
    }
    Ok(())
}
