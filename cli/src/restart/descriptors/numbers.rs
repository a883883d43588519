//! Descriptor numbers that the image does not use, for what is in the making.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use stasis_protocol::image::ProcessImage;

use super::kernel::{done, owned};

pub struct Numbers {
    used: BTreeSet<RawFd>,
    /// Below this, all numbers are used by the image or taken.
    next: RawFd,
}

impl Numbers {
    pub fn new(image: &ProcessImage) -> Self {
        Self { used: image.descriptors.iter().map(|descriptor| descriptor.fd).collect(), next: 3 }
    }

    /// A copy of `fd` at a number that is out of the way.
    ///
    /// # Errors
    /// EBADF when it is not open, EMFILE when no number is free.
    pub fn copy(&mut self, fd: RawFd) -> io::Result<OwnedFd> {
        loop {
            while self.used.contains(&self.next) {
                self.next += 1;
            }
            // SAFETY: fcntl(2) with numbers.
            let copy = owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, self.next) })?;
            self.next = copy.as_raw_fd() + 1;
            if !self.used.contains(&copy.as_raw_fd()) {
                return Ok(copy);
            }
        }
    }

    /// Moves a descriptor where it can stay until all are made.
    ///
    /// # Errors
    /// As for [`Numbers::copy`].
    pub fn out_of_the_way(&mut self, fd: OwnedFd) -> io::Result<OwnedFd> {
        if self.used.contains(&fd.as_raw_fd()) { self.copy(fd.as_raw_fd()) } else { Ok(fd) }
    }
}

/// Closes everything but `kept` (close_range(2), Linux 5.9), and makes those survive exec.
pub fn close_others(kept: BTreeSet<RawFd>) {
    let close = |first: u32, last: u32| {
        // SAFETY: the caller owns the table (see `install`).
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    };
    let mut first = 0;
    for fd in kept {
        if fd as u32 > first {
            close(first, fd as u32 - 1);
        }
        first = fd as u32 + 1;
        // SAFETY: fcntl(2) with numbers.
        let _ = done(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) });
    }
    close(first, u32::MAX);
}
