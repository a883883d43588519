//! What will be read of packs in small pieces, told to the kernel beforehand in large ones.
//!
//! Raw pages are read some MiB at a time, past the page cache. A compressed block has some KiB, and threads take one after
//! the other: the disk would wait for each of them.

use std::os::fd::RawFd;

pub struct ReadAhead {
    /// What lies between two pieces is read with them, up to so many bytes.
    between: u64,
    /// Descriptor, offset, length.
    range: Option<(RawFd, u64, u64)>,
}

impl ReadAhead {
    /// Takes pieces that are at most `between` bytes apart for one.
    #[must_use]
    pub fn bridging(between: u64) -> Self {
        Self { between, range: None }
    }

    /// `len` bytes at `offset` will be read.
    pub fn add(&mut self, fd: RawFd, offset: u64, len: u64) {
        let between = self.between;
        match &mut self.range {
            Some((same, start, so_far))
                if *same == fd && (*start..=*start + *so_far + between).contains(&offset) =>
            {
                *so_far = (*so_far).max((offset - *start).saturating_add(len));
            }
            other => {
                if let Some(range) = other.replace((fd, offset, len)) {
                    tell(range);
                }
            }
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        if let Some(range) = self.range {
            tell(range);
        }
    }
}

fn tell((fd, offset, len): (RawFd, u64, u64)) {
    // SAFETY: posix_fadvise(3) takes numbers. A hint: an error changes nothing.
    unsafe { libc::posix_fadvise(fd, offset.cast_signed(), len.cast_signed(), libc::POSIX_FADV_WILLNEED) };
}
