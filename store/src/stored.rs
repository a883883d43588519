//! A dumped process as the server hands it out: what must be read, and where it lies.
//!
//! Not here: reading the packs. Whoever does checks each page against its name ([`crate::hash`]).

use std::{
    fs::File,
    io,
    num::NonZero,
    ops::{Deref, Range},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
    ptr::NonNull,
    slice,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};
use stasis_protocol::store::{Extent, Hash};

/// A dumped process, as [`crate::client::Client::read_process`] hands it out.
#[derive(Debug)]
pub struct StoredProcess {
    /// The key that page names are made with.
    pub key: [u8; 32],
    /// The store's directory; pack N is `packs/{N:08x}.pack` in it.
    pub directory: PathBuf,
    pub list: ListedPages,
    /// What of its memory is not listed, in pages and in address order.
    pub later: Vec<Range<u64>>,
    /// How many pages that are.
    pub later_pages: u64,
}

/// A list of pages.
#[derive(Debug)]
pub struct ListedPages {
    /// Sealed; first the names of the pages, then the extents.
    pub memfd: OwnedFd,
    pub extents: u64,
    pub pages: u64,
}

impl StoredProcess {
    /// See [`ListedPages::pages`].
    ///
    /// # Errors
    /// The memfd is not as long as the reply says, or may still change.
    pub fn pages(&self) -> io::Result<(Vec<Extent>, PageNames)> {
        self.list.pages()
    }
}

impl ListedPages {
    /// The extents, sorted by space and first page, and the names of their pages, in the same order.
    ///
    /// # Errors
    /// The memfd is not as long as the reply says, or may still change.
    pub fn pages(&self) -> io::Result<(Vec<Extent>, PageNames)> {
        const EXTENT: usize = size_of::<Extent>();
        let file = File::from(self.memfd.try_clone()?);
        let table_len = self.extents.checked_mul(EXTENT as u64);
        let names_len = self.pages.checked_mul(32);
        let (Some(table_len), Some(names_len)) = (table_len, names_len) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if table_len.checked_add(names_len) != Some(file.metadata()?.len()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut table = vec![0; table_len as usize];
        file.read_exact_at(&mut table, names_len)?;
        let names = PageNames::map(file.into(), self.pages as usize)?;
        Ok((table.as_chunks::<EXTENT>().0.iter().map(extent).collect(), names))
    }
}

/// The names of a process' pages, where the server wrote them: a copy of what is 8 MiB for each GiB of the
/// process would take longer than making them.
#[derive(Debug)]
pub struct PageNames {
    memfd: OwnedFd,
    pages: usize,
    mapping: NonNull<u8>,
    len: NonZero<usize>,
}

// SAFETY: sealed memory that nobody writes.
unsafe impl Send for PageNames {}
// SAFETY: as above.
unsafe impl Sync for PageNames {}

impl PageNames {
    /// The same once more.
    ///
    /// # Errors
    /// No descriptor or no address space is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::map(self.memfd.try_clone()?, self.pages)
    }

    /// `memfd` begins with `pages` names.
    fn map(memfd: OwnedFd, pages: usize) -> io::Result<Self> {
        let seals = SealFlag::from_bits_retain(fcntl(&memfd, FcntlArg::F_GET_SEALS)?);
        if !seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the list of pages is not sealed"));
        }
        // A mapping of no bytes cannot be had; one beyond the end is not touched.
        let len = NonZero::new(pages * size_of::<Hash>()).unwrap_or(NonZero::<usize>::MIN);
        // SAFETY: a new mapping, where the kernel finds room.
        let mapping = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &memfd, 0) }?;
        Ok(Self { memfd, pages, mapping: mapping.cast(), len })
    }
}

/// The memfd that they are the first bytes of.
impl AsFd for PageNames {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Deref for PageNames {
    type Target = [Hash];

    fn deref(&self) -> &[Hash] {
        // SAFETY: mapped as long as `self` lives, inside the memfd's length (`pages` checked it, and the seals
        // keep it), and any bytes are valid names.
        unsafe { slice::from_raw_parts(self.mapping.cast().as_ptr(), self.pages) }
    }
}

impl Drop for PageNames {
    fn drop(&mut self) {
        // SAFETY: nobody borrows from it any more.
        let _ = unsafe { munmap(self.mapping.cast(), self.len.get()) };
    }
}

/// An extent from its `repr(C)` bytes.
fn extent(bytes: &[u8; size_of::<Extent>()]) -> Extent {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    let half = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Extent {
        space: half(0),
        kind: half(4),
        first_page: word(8),
        pages: word(16),
        pack: word(24),
        offset: word(32),
        stored: half(40),
        skipped: half(44),
    }
}
