//! A dumped process as the server hands it out: what must be read, and where it lies.
//!
//! Not here: reading the packs. Whoever does checks each page against its name ([`crate::hash`]).

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::PathBuf,
};

use stasis_protocol::store::{Extent, Hash};

/// A dumped process, as [`crate::client::Client::read_process`] hands it out.
#[derive(Debug)]
pub struct StoredProcess {
    /// The encoded [`stasis_protocol::image::ProcessImage`].
    pub record: Vec<u8>,
    /// The key that page names are made with.
    pub key: [u8; 32],
    /// The store's directory; pack N is `packs/{N:08x}.pack` in it.
    pub directory: PathBuf,
    /// Sealed; first the extents, then the names of the pages.
    pub memfd: OwnedFd,
    pub extents: u64,
    pub pages: u64,
}

impl StoredProcess {
    /// The extents, sorted by space and first page, and the names of their pages, in the same order.
    ///
    /// # Errors
    /// The memfd is not as long as the reply says.
    pub fn pages(&self) -> io::Result<(Vec<Extent>, Vec<Hash>)> {
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
        file.read_exact_at(&mut table, 0)?;
        let mut names = vec![[0; 32]; self.pages as usize];
        file.read_exact_at(names.as_flattened_mut(), table_len)?;
        Ok((table.as_chunks::<EXTENT>().0.iter().map(extent).collect(), names))
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
    }
}
