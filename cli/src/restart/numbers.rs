//! Descriptor numbers that the image does not use: where our own descriptors wait until the restored
//! program takes over.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context as _, bail};
use stasis_protocol::image::ProcessImage;

pub struct Numbers {
    /// Numbers of the image.
    used: BTreeSet<RawFd>,
    next: RawFd,
    limit: RawFd,
    placed: Vec<OwnedFd>,
}

impl Numbers {
    /// Raises the soft limit on descriptors as far as it goes; the image's own is set later.
    pub fn new(image: &ProcessImage) -> Self {
        let mut limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
        // SAFETY: both calls use one struct rlimit.
        unsafe {
            if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
                limit.rlim_cur = limit.rlim_max;
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            }
        }
        let limit = RawFd::try_from(limit.rlim_max).unwrap_or(RawFd::MAX);
        let used: BTreeSet<RawFd> = image.descriptors.iter().map(|descriptor| descriptor.fd).collect();
        let behind = used.last().map_or(3, |last| last + 1).max(64);
        let next = if limit - behind > 1024 { behind } else { 3 };
        Self { used, next, limit, placed: Vec::new() }
    }

    /// Moves a descriptor to a number of ours; it survives exec, and is closed with the value.
    ///
    /// # Errors
    /// When no number is free below the limit.
    pub fn place(&mut self, fd: OwnedFd) -> anyhow::Result<RawFd> {
        while self.next < self.limit {
            let number = self.next;
            self.next += 1;
            if self.used.contains(&number) {
                continue;
            }
            // SAFETY: fcntl(2) with numbers.
            let at = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&fd), libc::F_DUPFD, number) };
            if at < 0 {
                return Err(io::Error::last_os_error()).context("no descriptor is free for the restart");
            }
            // SAFETY: F_DUPFD gave it to us.
            let at = unsafe { OwnedFd::from_raw_fd(at) };
            let got = std::os::fd::AsRawFd::as_raw_fd(&at);
            if self.used.contains(&got) {
                // Numbers up to here are taken by others of ours; the next round looks behind.
                self.next = got + 1;
                continue;
            }
            self.next = got + 1;
            self.placed.push(at);
            return Ok(got);
        }
        bail!(
            "no descriptor number is free below the limit of {} for the restart: raise it (ulimit -n)",
            self.limit
        )
    }

    /// What was placed, for [`super::descriptors::install`] to leave alone.
    pub fn placed(&self) -> Vec<RawFd> {
        self.placed.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect()
    }
}
