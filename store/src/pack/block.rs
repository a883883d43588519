//! Pages on their way into a compressed pack: sixteen together, compressed where that pays.
//!
//! LZ4, because whoever restarts decompresses: the restorer, in which there is no library, keeps up with a disk.

use stasis_protocol::store::{BLOCK, BLOCK_PAGES, kind};

use crate::hash::{Hash, PAGE_SIZE, Page};

/// Of a block that takes more than this after compressing, pages lie raw: they can be read directly then, and past the page
/// cache.
const PAYS: usize = BLOCK / 4 * 3;

/// Up to [`BLOCK_PAGES`] pages as they are to lie in a pack.
pub struct Block {
    pub names: Vec<Hash>,
    /// See [`kind`].
    pub kind: u32,
    pub bytes: Vec<u8>,
}

/// Compresses pages, with what that needs kept for the next ones.
pub struct Compressor {
    table: lz4_flex::block::CompressTable,
    buffer: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        let buffer = vec![0; lz4_flex::block::get_maximum_output_size(BLOCK)];
        Self { table: lz4_flex::block::CompressTable::large(), buffer }
    }
}

impl Compressor {
    /// At most [`BLOCK_PAGES`] pages, whose bytes are `pages`; `None`: it does not pay.
    pub fn compress(&mut self, pages: &[u8]) -> Option<&[u8]> {
        debug_assert!(pages.len() <= BLOCK && pages.len().is_multiple_of(PAGE_SIZE));
        let len = lz4_flex::block::compress_into_with_table(pages, &mut self.buffer, &mut self.table).ok()?;
        // In proportion, for fewer pages than a block has.
        (len * BLOCK <= PAYS * pages.len()).then(|| &self.buffer[..len])
    }

    /// The pages, which are called `names`, as blocks.
    pub fn blocks(&mut self, names: &[Hash], pages: &[Page]) -> Vec<Block> {
        let parts = names.chunks(BLOCK_PAGES).zip(pages.chunks(BLOCK_PAGES));
        parts
            .map(|(names, pages)| {
                let (kind, bytes) = match self.compress(pages.as_flattened()) {
                    Some(bytes) => (kind::LZ4, bytes.to_vec()),
                    None => (kind::RAW, pages.as_flattened().to_vec()),
                };
                Block { names: names.to_vec(), kind, bytes }
            })
            .collect()
    }
}
