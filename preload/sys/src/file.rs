//! Files and descriptors.

use core::ffi::CStr;

use crate::{Result, call::call};

/// A descriptor of the calling thread's table. Not closed when dropped: what lives where is the
/// caller's business, and most live as long as their thread.
pub type Fd = i32;

pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    open_at(libc::AT_FDCWD, path, flags, mode)
}

/// openat(2): a path that does not begin with `/` begins in `directory`.
pub fn open_at(directory: Fd, path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    // SAFETY: reads a NUL-terminated string.
    unsafe {
        call(
            libc::SYS_openat,
            [directory as usize, path.as_ptr() as usize, flags as usize, mode as usize, 0, 0],
        )
    }
    .map(|fd| fd as Fd)
}

pub fn close(fd: Fd) -> Result<()> {
    // SAFETY: no memory is touched.
    unsafe { call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Closes the descriptors `first..=last` (close_range(2), Linux 5.9).
pub fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: no memory is touched.
    unsafe { call(libc::SYS_close_range, [first as usize, last as usize, 0, 0, 0, 0]) }.map(drop)
}

pub fn read(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: writes at most the buffer's length.
    unsafe { call(libc::SYS_read, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]) }
}

pub fn pread(fd: Fd, buffer: &mut [u8], offset: u64) -> Result<usize> {
    // SAFETY: writes at most the buffer's length.
    unsafe {
        call(
            libc::SYS_pread64,
            [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), offset as usize, 0, 0],
        )
    }
}

/// pread(2) to an address that is not Rust's.
///
/// # Safety
/// `len` bytes at `address` may be overwritten.
pub unsafe fn pread_to(fd: Fd, address: usize, len: usize, offset: u64) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_pread64, [fd as usize, address, len, offset as usize, 0, 0]) }
}

/// preadv2(2) of what is in the page cache, without waiting for the disk (RWF_NOWAIT, Linux 4.14); EAGAIN when nothing
/// is.
///
/// # Safety
/// `len` bytes at `address` may be overwritten.
pub unsafe fn pread_cached(fd: Fd, address: usize, len: usize, offset: u64) -> Result<usize> {
    let part = libc::iovec { iov_base: address as *mut _, iov_len: len };
    let flags = libc::RWF_NOWAIT as usize;
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_preadv2, [fd as usize, &raw const part as usize, 1, offset as usize, 0, flags]) }
}

pub fn write(fd: Fd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: reads the slice.
    unsafe { call(libc::SYS_write, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }
}

/// Whether a file lies in memory: on tmpfs or ramfs (statfs(2)).
pub fn is_in_memory(fd: Fd) -> Result<bool> {
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    // SAFETY: struct statfs is plain data.
    let mut statfs: libc::statfs = unsafe { core::mem::zeroed() };
    // SAFETY: writes one struct statfs.
    unsafe { call(libc::SYS_fstatfs, [fd as usize, &raw mut statfs as usize, 0, 0, 0, 0]) }?;
    Ok([libc::TMPFS_MAGIC as u64, RAMFS_MAGIC].contains(&(statfs.f_type as u64)))
}

pub fn readlink(path: &CStr, buffer: &mut [u8]) -> Result<usize> {
    readlink_at(libc::AT_FDCWD, path, buffer)
}

/// readlinkat(2): a path that does not begin with `/` begins in `directory`.
pub fn readlink_at(directory: Fd, path: &CStr, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: reads a string, writes at most the buffer's length.
    unsafe {
        call(
            libc::SYS_readlinkat,
            [directory as usize, path.as_ptr() as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0],
        )
    }
}

/// stat(2): follows links.
pub fn stat(path: &CStr) -> Result<libc::stat> {
    stat_at(libc::AT_FDCWD, path)
}

/// fstatat(2): follows links; a path that does not begin with `/` begins in `directory`.
pub fn stat_at(directory: Fd, path: &CStr) -> Result<libc::stat> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: reads a string, writes one struct stat.
    unsafe {
        call(
            libc::SYS_newfstatat,
            [directory as usize, path.as_ptr() as usize, stat.as_mut_ptr() as usize, 0, 0, 0],
        )?;
        Ok(stat.assume_init())
    }
}

/// lstat(2): does not follow a link at the end.
pub fn lstat(path: &CStr) -> Result<libc::stat> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: reads a string, writes one struct stat.
    unsafe {
        call(libc::SYS_lstat, [path.as_ptr() as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0])?;
        Ok(stat.assume_init())
    }
}

pub fn fstat(fd: Fd) -> Result<libc::stat> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: writes one struct stat.
    unsafe {
        call(libc::SYS_fstat, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0])?;
        Ok(stat.assume_init())
    }
}

/// getdents64(2): directory entries, as the kernel lays them out.
pub fn getdents(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: writes at most the buffer's length.
    unsafe { call(libc::SYS_getdents64, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]) }
}

pub fn seek(fd: Fd, offset: i64, whence: i32) -> Result<u64> {
    // SAFETY: no memory is touched.
    unsafe { call(libc::SYS_lseek, [fd as usize, offset as usize, whence as usize, 0, 0, 0]) }
        .map(|at| at as u64)
}

/// fcntl(2) with a number as its argument.
pub fn fcntl(fd: Fd, command: i32, argument: usize) -> Result<usize> {
    // SAFETY: with commands that take a number, no memory is touched.
    unsafe { call(libc::SYS_fcntl, [fd as usize, command as usize, argument, 0, 0, 0]) }
}

/// ioctl(2) or fcntl(2) on a value: the kernel reads and writes `argument`.
///
/// # Safety
/// `T` must be what `request` takes.
pub unsafe fn ioctl<T>(fd: Fd, request: u64, argument: &mut T) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_ioctl, [fd as usize, request as usize, argument as *mut T as usize, 0, 0, 0]) }
}

/// Another descriptor of the same description, close-on-exec (fcntl(2), F_DUPFD_CLOEXEC).
pub fn duplicate(fd: Fd) -> Result<Fd> {
    fcntl(fd, libc::F_DUPFD_CLOEXEC, 0).map(|fd| fd as Fd)
}

/// How many bytes can be read from what is no file (FIONREAD; of sockets it has the name SIOCINQ as well).
pub fn unread(fd: Fd) -> Result<usize> {
    const FIONREAD: u64 = 0x541b;
    let mut bytes = 0i32;
    // SAFETY: FIONREAD writes an int.
    unsafe { ioctl(fd, FIONREAD, &mut bytes) }.map(|_| bytes.max(0) as usize)
}

/// fcntl(2) with a structure as its argument.
///
/// # Safety
/// `T` must be what `command` takes.
pub unsafe fn fcntl_with<T>(fd: Fd, command: i32, argument: &mut T) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_fcntl, [fd as usize, command as usize, argument as *mut T as usize, 0, 0, 0]) }
}

/// A memfd (memfd_create(2)).
pub fn memfd(name: &CStr, flags: u32) -> Result<Fd> {
    // SAFETY: reads a string.
    unsafe { call(libc::SYS_memfd_create, [name.as_ptr() as usize, flags as usize, 0, 0, 0, 0]) }
        .map(|fd| fd as Fd)
}

pub fn ftruncate(fd: Fd, len: u64) -> Result<()> {
    // SAFETY: no memory is touched.
    unsafe { call(libc::SYS_ftruncate, [fd as usize, len as usize, 0, 0, 0, 0]) }.map(drop)
}

/// tee(2): duplicates what is in a pipe without consuming it.
pub fn tee(from: Fd, to: Fd, len: usize, flags: u32) -> Result<usize> {
    // SAFETY: no memory is touched.
    unsafe { call(libc::SYS_tee, [from as usize, to as usize, len, flags as usize, 0, 0]) }
}

/// pipe2(2): the reading and the writing end.
pub fn pipe(flags: i32) -> Result<(Fd, Fd)> {
    let mut ends = [0i32; 2];
    // SAFETY: writes two integers.
    unsafe { call(libc::SYS_pipe2, [ends.as_mut_ptr() as usize, flags as usize, 0, 0, 0, 0]) }?;
    Ok((ends[0], ends[1]))
}

/// inotify_add_watch(2): the watch.
///
/// # Errors
/// The call's.
pub fn watch(queue: Fd, path: &CStr, mask: u32) -> Result<i32> {
    let arguments = [queue as usize, path.as_ptr() as usize, mask as usize, 0, 0, 0];
    // SAFETY: reads a string.
    unsafe { call(libc::SYS_inotify_add_watch, arguments) }.map(|watch| watch as i32)
}

/// kcmp(2), KCMP_FILE: how the open file descriptions of two descriptors, each of the table of a thread, are ordered; equal
/// means the same.
///
/// # Errors
/// ENOSYS on a kernel without CONFIG_KCMP; EBADF when one is not open.
pub fn compare_descriptions(one: (i32, Fd), other: (i32, Fd)) -> Result<core::cmp::Ordering> {
    const KCMP_FILE: usize = 0;
    let numbers = [one.0 as usize, other.0 as usize, KCMP_FILE, one.1 as usize, other.1 as usize, 0];
    // SAFETY: no memory is touched.
    match unsafe { call(libc::SYS_kcmp, numbers) }? {
        0 => Ok(core::cmp::Ordering::Equal),
        1 => Ok(core::cmp::Ordering::Less),
        _ => Ok(core::cmp::Ordering::Greater),
    }
}

/// kcmp(2), KCMP_EPOLL_TFD: whether `fd` of the thread `tid` is what its epoll instance `epoll` watches under the
/// number `target`; `nth` counts targets of the same number.
///
/// # Errors
/// As for [`compare_descriptions`]; ENOENT when there is no such target.
pub fn is_epoll_target(tid: i32, fd: Fd, epoll: Fd, target: Fd, nth: u32) -> Result<bool> {
    const KCMP_EPOLL_TFD: usize = 7;
    // struct kcmp_epoll_slot (linux/kcmp.h).
    let slot = [epoll as u32, target as u32, nth];
    let tid = tid as usize;
    // SAFETY: reads the slot.
    unsafe { call(libc::SYS_kcmp, [tid, tid, KCMP_EPOLL_TFD, fd as usize, slot.as_ptr() as usize, 0]) }
        .map(|order| order == 0)
}
