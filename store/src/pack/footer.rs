//! The header of a pack and the footers of its segments, as bytes.
//!
//! All numbers are little-endian. The header page: magic, version u32, page size u32, pack number u64,
//! zeros. A footer, padded with zeros to whole pages:
//!
//! ```text
//! start:  magic 8 | version u32 | runs u32 | pages u64 | segment start u64
//!         runs  × (kind u32 | pages u32 | offset u64)
//!         pages × name 32
//! end:    … | footer start u64 | segment start u64 | magic 8 | blake3 of all before 32
//! ```
//!
//! Segments follow each other without a gap, so footers can be read from the last to the first: each
//! ends where the next segment starts. The runs leave room for records of other kinds.

use super::{AlignedPage, PAGE};
use crate::hash::{Hash, PAGE_SIZE};

const HEADER_MAGIC: &[u8; 8] = b"STASISPK";
const FOOTER_MAGIC: &[u8; 8] = b"STASISFT";
const TRAILER_MAGIC: &[u8; 8] = b"STASISTR";
const VERSION: u32 = 1;

const FIXED: usize = 32;
const RUN: usize = 16;
const TRAILER: usize = 56;

/// Pages of one kind, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// See [`stasis_protocol::store::kind`].
    pub kind: u32,
    pub pages: u32,
    /// Where the first lies in the pack, in bytes.
    pub offset: u64,
}

/// What a footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the segment starts in the pack, in bytes.
    pub segment: u64,
    pub runs: Vec<Run>,
    /// The names of the pages of all runs, in order.
    pub names: Vec<Hash>,
}

/// The first page of pack `number`.
#[must_use]
pub fn header(number: u32) -> AlignedPage {
    let mut page = AlignedPage::ZERO;
    page.0[..8].copy_from_slice(HEADER_MAGIC);
    page.0[8..12].copy_from_slice(&VERSION.to_le_bytes());
    page.0[12..16].copy_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
    page.0[16..24].copy_from_slice(&u64::from(number).to_le_bytes());
    page
}

/// Whether `page` is the header of pack `number`, in a version that this program knows.
///
/// # Errors
/// What is wrong with it.
pub fn check_header(page: &[u8; PAGE_SIZE], number: u32) -> Result<(), String> {
    let version = read_u32(page, 8).unwrap_or(0);
    if &page[..8] != HEADER_MAGIC {
        Err("it does not begin as a pack does".into())
    } else if version > VERSION {
        Err(format!("it has pack format {version}, this program knows formats up to {VERSION}"))
    } else if page[..] != header(number).0[..] {
        Err("its header is not that of this pack".into())
    } else {
        Ok(())
    }
}

impl Footer {
    /// The footer as it lies in the pack from `start` on, in bytes.
    #[must_use]
    pub fn encode(&self, start: u64) -> Vec<AlignedPage> {
        let used = FIXED + self.runs.len() * RUN + self.names.len() * 32 + TRAILER;
        let mut bytes = Vec::with_capacity(used.next_multiple_of(PAGE_SIZE));
        bytes.extend_from_slice(FOOTER_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.names.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        for run in &self.runs {
            bytes.extend_from_slice(&run.kind.to_le_bytes());
            bytes.extend_from_slice(&run.pages.to_le_bytes());
            bytes.extend_from_slice(&run.offset.to_le_bytes());
        }
        bytes.extend_from_slice(self.names.as_flattened());
        bytes.resize(used.next_multiple_of(PAGE_SIZE) - TRAILER, 0);
        bytes.extend_from_slice(&start.to_le_bytes());
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(TRAILER_MAGIC);
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes.as_chunks::<PAGE_SIZE>().0.iter().map(|page| AlignedPage(*page)).collect()
    }

    /// Reads a footer back.
    ///
    /// # Errors
    /// What is wrong with it: every number in it is checked against the others.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let bad = || "its footer contradicts itself".to_owned();
        let (body, checksum) = bytes.split_last_chunk::<32>().ok_or_else(bad)?;
        if blake3::hash(body).as_bytes() != checksum {
            return Err("a footer does not have its checksum".into());
        }
        if body.get(..8) != Some(&FOOTER_MAGIC[..]) || read_u32(body, 8) != Some(VERSION) {
            return Err("a footer has an unknown format".into());
        }
        let runs = read_u32(body, 12).ok_or_else(bad)? as usize;
        let pages = read_u64(body, 16).ok_or_else(bad)? as usize;
        let segment = read_u64(body, 24).ok_or_else(bad)?;
        let names_at = runs.checked_mul(RUN).and_then(|len| len.checked_add(FIXED)).ok_or_else(bad)?;
        let names_len = pages.checked_mul(32).ok_or_else(bad)?;
        let table = body.get(FIXED..names_at).ok_or_else(bad)?;
        let names =
            names_at.checked_add(names_len).and_then(|end| body.get(names_at..end)).ok_or_else(bad)?;
        let runs: Vec<Run> = table
            .as_chunks::<RUN>()
            .0
            .iter()
            .filter_map(|run| {
                Some(Run { kind: read_u32(run, 0)?, pages: read_u32(run, 4)?, offset: read_u64(run, 8)? })
            })
            .collect();
        if runs.iter().map(|run| u64::from(run.pages)).sum::<u64>() != pages as u64 {
            return Err(bad());
        }
        Ok(Self { segment, runs, names: names.as_chunks::<32>().0.to_vec() })
    }

    /// How many bytes the footer of a segment with so many pages in one run takes.
    #[must_use]
    pub fn len_for(pages: usize) -> u64 {
        ((FIXED + RUN + pages * 32 + TRAILER) as u64).next_multiple_of(PAGE)
    }
}

/// Where the footer that ends with `last` (the last page before a segment's end) starts, and where its
/// segment does, in bytes.
#[must_use]
pub fn trailer(last: &[u8; PAGE_SIZE]) -> Option<(u64, u64)> {
    let at = PAGE_SIZE - TRAILER;
    if &last[at + 16..at + 24] != TRAILER_MAGIC {
        return None;
    }
    Some((read_u64(last, at)?, read_u64(last, at + 8)?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|part| u32::from_le_bytes(*part))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|part| u64::from_le_bytes(*part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(pages: &[AlignedPage]) -> Vec<u8> {
        pages.iter().flat_map(|page| page.0).collect()
    }

    #[test]
    fn a_footer_reads_back_and_a_flipped_bit_is_seen() {
        for pages in [0, 1, 125, 126, 1000] {
            let names: Vec<Hash> = (0..pages).map(|i| *blake3::hash(&[i as u8]).as_bytes()).collect();
            let runs = vec![Run { kind: 0, pages: pages as u32, offset: 4096 }];
            let footer = Footer { segment: 4096, runs, names };
            let start = 4096 + pages as u64 * PAGE;
            let mut bytes = flat(&footer.encode(start));
            assert_eq!(bytes.len() as u64, Footer::len_for(pages));
            assert_eq!(trailer(bytes.last_chunk().unwrap()), Some((start, 4096)));
            assert_eq!(Footer::decode(&bytes), Ok(footer));
            bytes[20] ^= 1;
            assert!(Footer::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_header_names_its_pack() {
        assert_eq!(check_header(&header(5).0, 5), Ok(()));
        assert!(check_header(&header(5).0, 6).is_err());
        assert!(check_header(&[0; PAGE_SIZE], 0).is_err());
    }
}
