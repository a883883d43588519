//! The staging buffer of a connection: memory that a process fills and the server reads.
//!
//! It must be a memfd sealed against shrinking (fcntl(2), F_SEAL_SHRINK): the server reads it through
//! a mapping, and a mapping of a file that somebody truncates raises SIGBUS.
//!
//! The process may write to it at any time; that is its own loss. What is hashed and what is written
//! can then differ, and the page is reported as damaged when it is read.

use std::{fs::File, io, num::NonZeroUsize, os::fd::OwnedFd, ptr::NonNull};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        mman::{MapFlags, ProtFlags, mmap, munmap},
        statfs::{TMPFS_MAGIC, fstatfs},
    },
};

use crate::hash::{PAGE_SIZE, Page};

/// The largest staging buffer, in bytes.
const MAX_LEN: u64 = 4 << 30;

/// A mapped staging buffer.
#[derive(Debug)]
pub struct Staging {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is only read through `&self`, and lives until the last owner drops it.
unsafe impl Send for Staging {}
// SAFETY: as above; no method changes anything.
unsafe impl Sync for Staging {}

impl Staging {
    /// Maps the first `len` bytes of `memfd`.
    ///
    /// # Errors
    /// Why it cannot be used, to be told to the process.
    pub fn map(memfd: OwnedFd, len: u64) -> Result<Self, String> {
        let refuse = |problem: String| {
            format!("the staging buffer cannot be used: {problem}; give a memfd sealed with F_SEAL_SHRINK")
        };
        let failed = |action: &str, error: io::Error| refuse(format!("{action}: {error}"));
        let seals =
            fcntl(&memfd, FcntlArg::F_GET_SEALS).map_err(|errno| failed("F_GET_SEALS", errno.into()))?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(refuse("it can be truncated".into()));
        }
        // A huge-page memfd raises SIGBUS where the pool of huge pages is empty.
        let filesystem = fstatfs(&memfd).map_err(|errno| failed("fstatfs", errno.into()))?;
        if filesystem.filesystem_type() != TMPFS_MAGIC {
            return Err(refuse("it is not ordinary shared memory".into()));
        }
        let file = File::from(memfd);
        let size = file.metadata().map_err(|error| failed("fstat", error))?.len();
        if len > size || len > MAX_LEN || !len.is_multiple_of(PAGE_SIZE as u64) {
            return Err(refuse(format!(
                "{len} bytes are announced, it has {size}, at most {MAX_LEN} are taken"
            )));
        }
        let length = NonZeroUsize::new(len as usize).ok_or_else(|| refuse("it is empty".into()))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory; the file
        // is at least `length` long and cannot shrink, so that reading it never faults.
        let start = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }
            .map_err(|errno| failed("mmap", errno.into()))?;
        Ok(Self { start: start.cast(), len: length.get() })
    }

    /// A range of the buffer, in bytes; `None` when it does not lie in it.
    #[must_use]
    pub fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        if at.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: the range lies in the mapping, which lives as long as `self`. The process may write
        // to it meanwhile, from another address space: the bytes read are then arbitrary, but nothing
        // here depends on reading the same bytes twice.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at), len) })
    }

    /// The pages of a range of the buffer.
    #[must_use]
    pub fn pages(&self, at: usize, pages: usize) -> Option<&[Page]> {
        Some(self.bytes(at, pages.checked_mul(PAGE_SIZE)?)?.as_chunks().0)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}
