//! Descriptor numbers that the image does not use: for what is in the making, and where our own descriptors wait
//! until the restored program takes over.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use anyhow::Context as _;
use stasis_protocol::image::ProcessImage;

use super::kernel::{done, owned};

/// By default, no number is used by an image.
pub struct Numbers {
    used: BTreeSet<RawFd>,
    /// Below this, all numbers are used by the image or taken.
    next: RawFd,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { used: BTreeSet::new(), next: 3 }
    }
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

    /// As [`Numbers::copy`], and where no number is left, at `home`: the one of the image that it is made for.
    ///
    /// # Errors
    /// As for [`Numbers::copy`], also where something of ours is at home.
    pub fn copy_or_home(&mut self, fd: RawFd, home: Option<RawFd>) -> io::Result<OwnedFd> {
        let error = match self.copy(fd) {
            // EINVAL: beyond the limit (fcntl(2)).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::EINVAL)) => error,
            copy => return copy,
        };
        let Some(home) = home else { return Err(error) };
        // SAFETY: fcntl(2) with numbers; it takes no number that is in use.
        let copy = owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, home) })?;
        if copy.as_raw_fd() == home { Ok(copy) } else { Err(error) }
    }

    /// Moves a descriptor where it can stay until all are made; `home`: see [`Numbers::copy_or_home`].
    ///
    /// # Errors
    /// As for [`Numbers::copy_or_home`].
    pub fn out_of_the_way(&mut self, fd: OwnedFd, home: Option<RawFd>) -> io::Result<OwnedFd> {
        let number = fd.as_raw_fd();
        if !self.used.contains(&number) || home == Some(number) {
            return Ok(fd);
        }
        self.copy_or_home(number, home)
    }
}

/// Descriptors of ours that survive exec, to be used by the restorer.
pub struct Places {
    numbers: Numbers,
    placed: Vec<OwnedFd>,
}

impl Places {
    /// Raises the soft limit on descriptors as far as it goes; the image's own is set later.
    pub fn new(image: &ProcessImage) -> Self {
        let limit = raise_limit();
        let mut numbers = Numbers::new(image);
        let behind = numbers.used.last().map_or(3, |last| last.saturating_add(1)).max(64);
        // Where there is room, behind all of the image's, out of the way of what is made next.
        if limit.saturating_sub(behind) > 1024 {
            numbers.next = behind;
        }
        Self { numbers, placed: Vec::new() }
    }

    /// Moves a descriptor to a number of ours; it survives exec, and is closed with the value.
    ///
    /// # Errors
    /// When no number is free below the limit.
    pub fn place(&mut self, fd: OwnedFd) -> anyhow::Result<RawFd> {
        let place = self
            .numbers
            .copy(fd.as_raw_fd())
            .context("no descriptor number is free for the restart: raise the limit (ulimit -Hn)")?;
        let number = place.as_raw_fd();
        // SAFETY: fcntl(2) with numbers.
        done(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
        self.placed.push(place);
        Ok(number)
    }

    /// What was placed, for [`super::install`] to leave alone.
    pub fn placed(&self) -> Vec<RawFd> {
        self.placed.iter().map(AsRawFd::as_raw_fd).collect()
    }
}

/// Raises the soft limit on descriptors as far as it goes, which is returned.
pub fn raise_limit() -> RawFd {
    let mut limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
    // SAFETY: both calls use one struct rlimit.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    RawFd::try_from(limit.rlim_max).unwrap_or(RawFd::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_number_is_left_a_description_is_made_at_its_own_and_never_over_another() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let free = file().as_raw_fd() + 100;
        let taken = file();
        let mut numbers = Numbers { used: (0..=free).collect(), next: RawFd::MAX };
        assert!(numbers.out_of_the_way(file(), None).is_err());
        assert!(numbers.out_of_the_way(file(), Some(taken.as_raw_fd())).is_err());
        let made = numbers.out_of_the_way(file(), Some(free)).unwrap();
        assert_eq!(made.as_raw_fd(), free);
        assert_eq!(numbers.out_of_the_way(made, Some(free)).unwrap().as_raw_fd(), free);
    }
}
