//! userfaultfd(2), as far as asynchronous write protection needs it (linux/userfaultfd.h).

use crate::{
    Result,
    file::{self, Fd},
    process,
};

/// UFFD_FEATURE_WP_UNPOPULATED: pages that are not there can be protected (Linux 6.4).
pub const WP_UNPOPULATED: u64 = 1 << 13;
/// UFFD_FEATURE_WP_ASYNC: the kernel lifts the protection at the first store by itself (Linux 6.7).
pub const WP_ASYNC: u64 = 1 << 15;

const API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
pub const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const MODE_WP: u64 = 1 << 1;

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
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    let fd = process::numbers(libc::SYS_userfaultfd, [flags as usize, 0, 0, 0, 0])? as Fd;
    let mut api = Api { api: API, features, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one uffdio_api.
    match unsafe { file::ioctl(fd, UFFDIO_API, &mut api) } {
        Ok(_) => Ok(fd),
        Err(error) => {
            let _ = file::close(fd);
            Err(error)
        }
    }
}

/// Registers a range for write protection.
///
/// # Errors
/// EBUSY where it is another userfaultfd's, EINVAL where it cannot be.
pub fn register(uffd: Fd, start: u64, end: u64) -> Result<()> {
    let mut argument = Register { start, len: end - start, mode: MODE_WP, ioctls: 0 };
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
