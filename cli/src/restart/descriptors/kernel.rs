//! The few system calls that descriptors are made by, with results instead of errno.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// What a system call gave.
///
/// # Errors
/// errno, where it gave -1.
pub fn done(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The new descriptor that a system call gave.
///
/// # Errors
/// errno, where it gave -1.
pub fn owned(result: i32) -> io::Result<OwnedFd> {
    // SAFETY: the caller passes the result of a call that makes a descriptor, so nobody else owns it.
    done(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What open(2) adds to the flags on 64-bit systems and pipe(2) does not (asm-generic/fcntl.h).
pub const O_LARGEFILE: i32 = 0o100000;

/// open(2), close-on-exec.
///
/// # Errors
/// open(2)'s.
pub fn open(path: &str, flags: i32) -> io::Result<OwnedFd> {
    let path = CString::new(path).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: reads a string.
    owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0) })
}

/// A description of its own for what `fd` is open on.
///
/// # Errors
/// open(2)'s.
pub fn reopen(fd: &OwnedFd, flags: i32) -> io::Result<OwnedFd> {
    // What is followed here is no link of the program's.
    open(&format!("/proc/self/fd/{}", fd.as_raw_fd()), flags & !libc::O_NOFOLLOW)
}

/// fcntl(2) with a number.
///
/// # Errors
/// fcntl(2)'s.
pub fn fcntl(fd: &OwnedFd, command: i32, argument: i32) -> io::Result<i32> {
    // SAFETY: commands with a number touch no memory.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) })
}

/// The flags that F_SETFL changes (fcntl(2)); O_ASYNC comes late, when the owner is known.
pub const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;

/// Sets the status flags where they differ.
///
/// # Errors
/// fcntl(2)'s.
pub fn set_status_flags(fd: &OwnedFd, flags: i32) -> io::Result<()> {
    let now = fcntl(fd, libc::F_GETFL, 0)?;
    if now & libc::O_PATH != 0 || now & SETTABLE == flags & SETTABLE {
        return Ok(());
    }
    fcntl(fd, libc::F_SETFL, now & !SETTABLE | flags & SETTABLE).map(drop)
}

/// lseek(2) from the start.
///
/// # Errors
/// lseek(2)'s; EOVERFLOW for an offset beyond what a file can have.
pub fn seek(fd: &OwnedFd, offset: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: no memory is touched.
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset, libc::SEEK_SET) };
    if at < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// fstat(2).
///
/// # Errors
/// fstat(2)'s.
pub fn stat(fd: &OwnedFd) -> io::Result<libc::stat> {
    // SAFETY: struct stat is plain data.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: writes one struct stat.
    done(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) }).map(|_| stat)
}

/// Writes all of `bytes` without waiting.
///
/// # Errors
/// write(2)'s; WriteZero where not all fits.
pub fn write_all(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        let rest = &bytes[written..];
        // SAFETY: reads the slice.
        let count = unsafe { libc::write(fd.as_raw_fd(), rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}
