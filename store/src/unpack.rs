//! Reading pages out of compressed blocks.
//!
//! What says where a block lies and how long it is comes from a file: whoever reads is told at most what a block may have,
//! into memory of that size, and compares each page with its name.

use std::{fs::File, io, os::unix::fs::FileExt};

use stasis_protocol::store::BLOCK;

use crate::hash::PAGE_SIZE;

/// Reads blocks, with the room that this needs kept for the next ones.
#[derive(Default)]
pub struct Unpacker {
    stored: Vec<u8>,
    pages: Vec<u8>,
}

impl Unpacker {
    /// Fills `to` with the pages behind the first `skipped` ones of the block of `stored` bytes at `offset`.
    ///
    /// # Errors
    /// The block cannot be read, is no block, or has fewer pages.
    pub fn read(
        &mut self,
        file: &File,
        offset: u64,
        stored: u32,
        skipped: u32,
        to: &mut [u8],
    ) -> io::Result<()> {
        let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let (stored, skipped) = (stored as usize, skipped as usize * PAGE_SIZE);
        let end = skipped.saturating_add(to.len());
        if stored > BLOCK || end > BLOCK {
            return Err(damaged("a compressed block that is larger than any"));
        }
        self.stored.resize(stored, 0);
        file.read_exact_at(&mut self.stored, offset)?;
        let unpack = |to: &mut [u8]| lz4_flex::block::decompress_into(&self.stored, to);
        // All of a block, for the most part: there is no second copy.
        if to.len() == BLOCK {
            return match unpack(to) {
                Ok(BLOCK) => Ok(()),
                _ => Err(damaged("a compressed block is damaged")),
            };
        }
        self.pages.resize(BLOCK, 0);
        match unpack(&mut self.pages) {
            Ok(len) if len >= end => to.copy_from_slice(&self.pages[skipped..end]),
            _ => return Err(damaged("a compressed block is damaged")),
        }
        Ok(())
    }
}
