//! The staging buffer of a connection: memory that a process fills and the server reads.
//!
//! It must be a memfd sealed against shrinking (fcntl(2), F_SEAL_SHRINK): the server reads it through
//! a mapping, and a mapping of a file that somebody truncates raises SIGBUS.
//!
//! The process may write to it at any time. What is hashed and what is written can then differ, and the page is
//! reported as damaged when it is read, by whichever checkpoint has a page of this name. Who could also write to
//! the store's files does no more harm by that; of a process of another user a copy is taken first
//! ([`Staging::copy`]).

use std::{fs::File, io, num::NonZeroUsize, ops::Range, os::fd::OwnedFd, ptr::NonNull};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap},
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

    /// A copy that no process can write to, with the content of `range` (bytes, in the buffer) where it was.
    ///
    /// # Errors
    /// There is no memory, or the range does not lie in the buffer.
    pub fn copy(&self, range: Range<usize>) -> Result<Self, String> {
        let content =
            range.end.checked_sub(range.start).and_then(|len| self.bytes(range.start, len)).ok_or_else(
                || format!("bytes {range:?} lie outside of the staging buffer, which has {}", self.len),
            )?;
        let length = NonZeroUsize::new(self.len).ok_or("the staging buffer is empty")?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start =
            unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
                .map_err(|errno| format!("no memory for a copy of the staging buffer: {errno}"))?;
        let copy = Self { start: start.cast(), len: self.len };
        // SAFETY: the copy is as long as the buffer, and nobody else knows it yet.
        unsafe {
            copy.start.as_ptr().add(range.start).copy_from_nonoverlapping(content.as_ptr(), content.len());
        }
        Ok(copy)
    }

    /// Nothing is read from it for a while: what was is not counted as this process' memory any more. The process that made it
    /// keeps it.
    pub fn rest(&self) {
        // SAFETY: of shared memory only the page tables' entries go (madvise(2)); reading it brings them back.
        let _ = unsafe { madvise(self.start.cast(), self.len, MmapAdvise::MADV_DONTNEED) };
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
        // SAFETY: this is the mapping made in `map` or `copy`, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn what_was_copied_stays_whatever_is_written_to_the_buffer() {
        let memfd = memfd_create("staging", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let file = File::from(memfd.try_clone().unwrap());
        file.write_all_at(&[1; 3 * PAGE_SIZE], 0).unwrap();
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        let staging = Staging::map(memfd, 3 * PAGE_SIZE as u64).unwrap();
        let copy = staging.copy(PAGE_SIZE..2 * PAGE_SIZE).unwrap();
        file.write_all_at(&[2; 3 * PAGE_SIZE], 0).unwrap();
        assert_eq!(staging.pages(PAGE_SIZE, 1), Some(&[[2; PAGE_SIZE]][..]));
        assert_eq!(copy.pages(PAGE_SIZE, 1), Some(&[[1; PAGE_SIZE]][..]));
        assert!(staging.copy(PAGE_SIZE..4 * PAGE_SIZE).is_err());
    }
}
