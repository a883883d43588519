//! Names of pages: blake3 keyed with the store's secret, sixteen pages to a SIMD batch.
//!
//! A page is four blake3 chunks. Hashed one page at a time, four of sixteen AVX-512 lanes work;
//! here the same chunk of sixteen pages goes through `hash_many` at once, then their parents, then
//! their roots: three times the throughput, the same names as `blake3::Hasher::new_keyed`.
//! `blake3::platform` is not covered by that crate's promises, so its version is pinned and a test
//! compares every name with the public interface.
//!
//! This file needs `core` and `blake3` (default-features = false) only: the restorer compiles it
//! too. Not here: names of manifest nodes, which are hashed with another key.

use blake3::{IncrementCounter, platform::Platform};

/// The size in bytes of what is hashed.
pub const PAGE_SIZE: usize = 4096;

/// One page of memory.
pub type Page = [u8; PAGE_SIZE];

/// The name of a page.
pub type Hash = [u8; 32];

/// Pages per batch: the lanes of AVX-512. Narrower machines take a batch in several steps.
pub const BATCH: usize = 16;

const CHUNK: usize = 1024;
const CHUNKS: usize = PAGE_SIZE / CHUNK;

// Domain flags of the blake3 specification, section 2.2.
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// Names pages with one key.
#[derive(Clone)]
pub struct PageHasher {
    platform: Platform,
    key: [u32; 8],
    zero: Hash,
}

impl PageHasher {
    /// A hasher for the store whose secret is `key`.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let mut hasher = Self {
            platform: Platform::detect(),
            key: blake3::platform::words_from_le_bytes_32(key),
            zero: [0; 32],
        };
        let mut zero = [[0; 32]];
        hasher.name_pages(&[&[0; PAGE_SIZE]], &mut zero);
        hasher.zero = zero[0];
        hasher
    }

    /// The name of a page of zeros.
    #[must_use]
    pub fn zero(&self) -> &Hash {
        &self.zero
    }

    /// Names `pages`, in order; pages beyond the length of `names`, or the reverse, are left out.
    pub fn name_pages(&self, pages: &[&Page], names: &mut [Hash]) {
        for (pages, names) in pages.chunks(BATCH).zip(names.chunks_mut(BATCH)) {
            let count = pages.len().min(names.len());
            self.name_batch(&pages[..count], &mut names[..count]);
        }
    }

    fn name_batch(&self, pages: &[&Page], names: &mut [Hash]) {
        let count = pages.len();
        // chaining[page] holds the chaining values of its chunks side by side, which makes each
        // pair of them the input block of a parent.
        let mut chaining = [[[0u8; 32]; CHUNKS]; BATCH];
        let mut column = [[0u8; 32]; BATCH];
        for chunk in 0..CHUNKS {
            let mut inputs: [&[u8; CHUNK]; BATCH] = [&[0; CHUNK]; BATCH];
            for (input, page) in inputs.iter_mut().zip(pages) {
                *input = &page.as_chunks::<CHUNK>().0[chunk];
            }
            self.platform.hash_many(
                &inputs[..count],
                &self.key,
                chunk as u64,
                IncrementCounter::No,
                KEYED_HASH,
                CHUNK_START,
                CHUNK_END,
                column[..count].as_flattened_mut(),
            );
            for (values, value) in chaining.iter_mut().zip(&column[..count]) {
                values[chunk] = *value;
            }
        }

        let mut halves = [[[0u8; 32]; 2]; BATCH];
        {
            let mut inputs: [&[u8; 64]; 2 * BATCH] = [&[0; 64]; 2 * BATCH];
            let blocks = chaining.as_flattened().as_flattened().as_chunks::<64>().0;
            for (input, block) in inputs.iter_mut().zip(blocks) {
                *input = block;
            }
            self.platform.hash_many(
                &inputs[..2 * count],
                &self.key,
                0,
                IncrementCounter::No,
                KEYED_HASH | PARENT,
                0,
                0,
                halves[..count].as_flattened_mut().as_flattened_mut(),
            );
        }
        let mut inputs: [&[u8; 64]; BATCH] = [&[0; 64]; BATCH];
        let blocks = halves.as_flattened().as_flattened().as_chunks::<64>().0;
        for (input, block) in inputs.iter_mut().zip(blocks) {
            *input = block;
        }
        self.platform.hash_many(
            &inputs[..count],
            &self.key,
            0,
            IncrementCounter::No,
            KEYED_HASH | PARENT | ROOT,
            0,
            0,
            names.as_flattened_mut(),
        );
    }
}

/// Whether a page is all zero.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    page.as_chunks::<256>().0.iter().all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(seed: u64) -> Page {
        let mut page = [0; PAGE_SIZE];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page);
        page
    }

    #[test]
    fn a_batch_names_pages_as_the_public_interface_does() {
        let key = *blake3::hash(b"key").as_bytes();
        let hasher = PageHasher::new(&key);
        for count in [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 100] {
            let pages: Vec<Page> = (0..count).map(page).collect();
            let inputs: Vec<&Page> = pages.iter().collect();
            let mut names = vec![[0; 32]; pages.len()];
            hasher.name_pages(&inputs, &mut names);
            for (page, name) in pages.iter().zip(&names) {
                let expected = blake3::Hasher::new_keyed(&key).update(page).finalize();
                assert_eq!(name, expected.as_bytes());
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_names() {
        let key = *blake3::hash(b"other key").as_bytes();
        let pages: Vec<Page> = (0..21).map(page).collect();
        let inputs: Vec<&Page> = pages.iter().collect();
        let platforms = [Some(Platform::portable()), Platform::sse2(), Platform::sse41(), Platform::avx2()];
        for platform in platforms.into_iter().flatten() {
            let mut hasher = PageHasher::new(&key);
            hasher.platform = platform;
            let mut names = vec![[0; 32]; pages.len()];
            hasher.name_pages(&inputs, &mut names);
            for (page, name) in pages.iter().zip(&names) {
                assert_eq!(name, blake3::keyed_hash(&key, page).as_bytes(), "{platform:?}");
            }
        }
    }

    #[test]
    fn only_a_page_of_zeros_is_zero() {
        let key = [7; 32];
        assert_eq!(PageHasher::new(&key).zero(), blake3::keyed_hash(&key, &[0; PAGE_SIZE]).as_bytes());
        assert!(is_zero(&[0; PAGE_SIZE]));
        for at in [0, 1, 255, 256, 2048, PAGE_SIZE - 1] {
            let mut page = [0; PAGE_SIZE];
            page[at] = 1;
            assert!(!is_zero(&page), "byte {at} is not zero");
        }
    }
}
