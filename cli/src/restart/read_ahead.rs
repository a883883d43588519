//! What will be read of packs in small pieces, told to the kernel beforehand in large ones.
//!
//! Raw pages are read some MiB at a time, past the page cache. A compressed block has some KiB, and threads take one after
//! the other: the disk would wait for each of them.

use std::os::fd::RawFd;

#[derive(Default)]
pub struct ReadAhead {
    /// Descriptor, offset, length.
    range: Option<(RawFd, u64, u64)>,
}

impl ReadAhead {
    /// `len` bytes at `offset` will be read.
    pub fn add(&mut self, fd: RawFd, offset: u64, len: u64) {
        /// What lies between two blocks is read with them.
        const BETWEEN: u64 = 64 << 10;
        match &mut self.range {
            Some((same, start, so_far))
                if *same == fd && (*start..=*start + *so_far + BETWEEN).contains(&offset) =>
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
