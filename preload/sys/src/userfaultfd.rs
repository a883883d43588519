//! userfaultfd(2) and its ioctls (ioctl_userfaultfd(2), linux/userfaultfd.h): asynchronous write protection for the
//! tracker, missing pages for lazy restarts.

use crate::{
    Errno, Result,
    file::{self, Fd},
    process,
};

/// UFFD_FEATURE_EVENT_FORK: a child's memory stays registered, with a userfaultfd of its own (CAP_SYS_PTRACE).
pub const EVENT_FORK: u64 = 1 << 1;
/// UFFD_FEATURE_EVENT_REMAP: memory that is moved stays registered.
pub const EVENT_REMAP: u64 = 1 << 2;
/// UFFD_FEATURE_EVENT_REMOVE: told of before memory is discarded.
pub const EVENT_REMOVE: u64 = 1 << 3;
/// UFFD_FEATURE_EVENT_UNMAP: told of when memory was unmapped.
pub const EVENT_UNMAP: u64 = 1 << 6;
/// UFFD_FEATURE_SIGBUS: nobody is told of a fault, which is an error to who made it.
pub const SIGBUS: u64 = 1 << 7;
/// UFFD_FEATURE_WP_UNPOPULATED: pages that are not there can be protected (Linux 6.4).
pub const WP_UNPOPULATED: u64 = 1 << 13;
/// UFFD_FEATURE_WP_ASYNC: the kernel lifts the protection at the first store by itself (Linux 6.7).
pub const WP_ASYNC: u64 = 1 << 15;

/// Faults of pages that are not there.
pub const MODE_MISSING: u64 = 1 << 0;
/// Write protection.
pub const MODE_WP: u64 = 1 << 1;

const API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
pub const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
const UFFDIO_POISON: u64 = 0xc020_aa08;
/// USERFAULTFD_IOC_NEW, of /dev/userfaultfd.
const NEW: u64 = 0xaa00;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// A userfaultfd for this process with exactly these features. It asks for user-mode faults only, which needs no
/// privilege (vm.unprivileged_userfaultfd does not matter) and is no limit to write protection.
///
/// # Errors
/// EINVAL where the kernel does not know a feature; EPERM, ENOSYS where there is no userfaultfd.
pub fn open(features: u64) -> Result<Fd> {
    const USER_MODE_ONLY: i32 = 1;
    let fd = call(USER_MODE_ONLY)?;
    match enable(fd, features) {
        Ok(()) => Ok(fd),
        Err(error) => {
            let _ = file::close(fd);
            Err(error)
        }
    }
}

/// A userfaultfd for this process that the kernel's own accesses (read(2) into memory) wait for, too; to be followed
/// by [`enable`]. `device`: an open /dev/userfaultfd, which gives one to whoever may open it.
///
/// # Errors
/// EPERM without CAP_SYS_PTRACE and vm.unprivileged_userfaultfd, where there is no device.
pub fn open_full(device: Option<Fd>) -> Result<Fd> {
    match device {
        Some(device) => {
            process::numbers(libc::SYS_ioctl, [device as usize, NEW as usize, FLAGS as usize, 0, 0])
                .map(|fd| fd as Fd)
        }
        None => call(0),
    }
}

const FLAGS: i32 = libc::O_CLOEXEC | libc::O_NONBLOCK;

fn call(flags: i32) -> Result<Fd> {
    process::numbers(libc::SYS_userfaultfd, [(FLAGS | flags) as usize, 0, 0, 0, 0]).map(|fd| fd as Fd)
}

/// Makes a new userfaultfd ready for use, with these features. After a failure others may be tried.
///
/// # Errors
/// EINVAL where the kernel does not know a feature, EPERM where one is not for this user.
pub fn enable(uffd: Fd, features: u64) -> Result<()> {
    let mut api = Api { api: API, features, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one uffdio_api.
    unsafe { file::ioctl(uffd, UFFDIO_API, &mut api) }.map(drop)
}

/// Registers a range: [`MODE_MISSING`], [`MODE_WP`] or both.
///
/// # Errors
/// EBUSY where it is another userfaultfd's, EINVAL where it cannot be.
pub fn register(uffd: Fd, start: u64, end: u64, mode: u64) -> Result<()> {
    let mut argument = Register { start, len: end - start, mode, ioctls: 0 };
    // SAFETY: UFFDIO_REGISTER reads and writes one uffdio_register.
    unsafe { file::ioctl(uffd, UFFDIO_REGISTER, &mut argument) }.map(drop)
}

/// Ends that, for `len` bytes.
///
/// # Errors
/// EINVAL where nothing can be registered.
pub fn unregister(uffd: Fd, start: u64, len: u64) -> Result<()> {
    let mut range = [start, len];
    // SAFETY: UFFDIO_UNREGISTER reads one uffdio_range.
    unsafe { file::ioctl(uffd, UFFDIO_UNREGISTER, &mut range) }.map(drop)
}

/// Gives `len` bytes at `to` a copy of those at `from`; how many were done, at least a page. `clean`: for the write tracker
/// they count as not written. `hold`: who waits for them is not woken ([`wake`]).
///
/// # Errors
/// Of the first page. EEXIST: it is there; EAGAIN: an event waits to be read; ENOENT: nothing is registered there, or
/// several mappings are; ESRCH: the process is gone.
pub fn copy(uffd: Fd, to: u64, from: *const u8, len: u64, clean: bool, hold: bool) -> Result<u64> {
    const DONTWAKE: u64 = 1 << 0;
    const WP: u64 = 1 << 1;
    let mode = if clean { WP } else { 0 } | if hold { DONTWAKE } else { 0 };
    let mut argument = [to, from as u64, len, mode, 0];
    // SAFETY: UFFDIO_COPY reads and writes one uffdio_copy; it reads `from` as a system call does, and fills only
    // what the userfaultfd's owner has registered.
    let result = unsafe { file::ioctl(uffd, UFFDIO_COPY, &mut argument) };
    done(result, argument[4])
}

/// Gives `len` bytes at `to` zeros; otherwise like [`copy`].
///
/// # Errors
/// As for [`copy`]; EEXIST also where write protection was asked for before.
pub fn zero(uffd: Fd, to: u64, len: u64) -> Result<u64> {
    let mut argument = [to, len, 0, 0];
    // SAFETY: UFFDIO_ZEROPAGE reads and writes one uffdio_zeropage.
    let result = unsafe { file::ioctl(uffd, UFFDIO_ZEROPAGE, &mut argument) };
    done(result, argument[3])
}

/// What a partial copy means: the kernel gives EAGAIN, and in `bytes` how many were done or a negated errno.
fn done(result: Result<usize>, bytes: u64) -> Result<u64> {
    match (result, bytes as i64) {
        (Ok(_), _) => Ok(bytes),
        (Err(_), done @ 1..) => Ok(done as u64),
        (Err(_), failed @ -4095..=-1) => Err(Errno(-failed as i32)),
        (Err(error), _) => Err(error),
    }
}

/// Wakes who waits for pages of a range: each looks again.
pub fn wake(uffd: Fd, start: u64, len: u64) {
    let mut argument = [start, len];
    // SAFETY: UFFDIO_WAKE reads one uffdio_range.
    let _ = unsafe { file::ioctl(uffd, UFFDIO_WAKE, &mut argument) };
}

/// Lifts write protection: all pages of the range count as written.
///
/// # Errors
/// EAGAIN: an event waits to be read; ENOENT: nothing is registered there.
pub fn unprotect(uffd: Fd, start: u64, len: u64) -> Result<()> {
    write_protect(uffd, start, len, 0)
}

/// Protects a range: its pages, those that are not there included, count as not written.
///
/// # Errors
/// As for [`unprotect`]; ENOMEM.
pub fn protect(uffd: Fd, start: u64, len: u64) -> Result<()> {
    const WP: u64 = 1 << 0;
    write_protect(uffd, start, len, WP)
}

fn write_protect(uffd: Fd, start: u64, len: u64, mode: u64) -> Result<()> {
    let mut argument = [start, len, mode];
    // SAFETY: UFFDIO_WRITEPROTECT reads one uffdio_writeprotect.
    unsafe { file::ioctl(uffd, UFFDIO_WRITEPROTECT, &mut argument) }.map(drop)
}

/// Makes pages that are not there ones whose use is a SIGBUS (Linux 6.6).
///
/// # Errors
/// As for [`copy`].
pub fn poison(uffd: Fd, start: u64, len: u64) -> Result<u64> {
    let mut argument = [start, len, 0, 0];
    // SAFETY: UFFDIO_POISON reads and writes one uffdio_poison.
    let result = unsafe { file::ioctl(uffd, UFFDIO_POISON, &mut argument) };
    done(result, argument[3])
}

/// What a userfaultfd tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for the page at this address.
    Fault {
        address: u64,
    },
    /// A child has a copy of the memory; its userfaultfd.
    Fork {
        uffd: Fd,
    },
    Remap {
        from: u64,
        to: u64,
        len: u64,
    },
    /// About to be discarded.
    Remove {
        start: u64,
        end: u64,
    },
    /// Gone already.
    Unmap {
        start: u64,
        end: u64,
    },
}

/// Reads one event; does not wait.
///
/// # Errors
/// EAGAIN: there is none.
pub fn next(uffd: Fd) -> Result<Event> {
    // struct uffd_msg: what it is in the first byte, from the eighth on three words.
    let mut message = [0u8; 32];
    loop {
        match file::read(uffd, &mut message) {
            Ok(32) => {}
            Err(Errno(libc::EINTR)) => continue,
            Err(error) => return Err(error),
            Ok(_) => return Err(Errno(libc::EAGAIN)),
        }
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&message[8 + index * 8..16 + index * 8]);
            u64::from_ne_bytes(word)
        };
        return Ok(match message[0] {
            0x12 => Event::Fault { address: word(1) },
            0x13 => Event::Fork { uffd: word(0) as u32 as Fd },
            0x14 => Event::Remap { from: word(0), to: word(1), len: word(2) },
            0x15 => Event::Remove { start: word(0), end: word(1) },
            0x16 => Event::Unmap { start: word(0), end: word(1) },
            _ => continue,
        });
    }
}
