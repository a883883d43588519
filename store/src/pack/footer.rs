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
//! That is version 1, of header and footers of plain packs. Compressed packs have version 2, in which each run goes on with
//! the slot of its first page u32 and the bytes that it takes u32. A run of raw pages lies aligned; a compressed one
//! is one block of up to 16 pages, anywhere.
//!
//! Segments follow each other without a gap, so footers can be read from the last to the first: each
//! ends where the next segment starts.

use stasis_protocol::store::{BLOCK, BLOCK_PAGES, kind};

use super::{AlignedPage, Form, PAGE, SLOTS};
use crate::hash::{Hash, PAGE_SIZE};

const HEADER_MAGIC: &[u8; 8] = b"STASISPK";
const FOOTER_MAGIC: &[u8; 8] = b"STASISFT";
const TRAILER_MAGIC: &[u8; 8] = b"STASISTR";
const PLAIN: u32 = 1;
const COMPRESSED: u32 = 2;

const FIXED: usize = 32;
const PLAIN_RUN: usize = 16;
const COMPRESSED_RUN: usize = 24;
const TRAILER: usize = 56;

/// Pages of one kind, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// See [`stasis_protocol::store::kind`].
    pub kind: u32,
    pub pages: u32,
    /// Where the first lies in the pack, in bytes; where a block of compressed ones does.
    pub offset: u64,
    /// Of the first; the others follow it.
    pub slot: u32,
    /// Bytes in the pack.
    pub stored: u32,
}

impl Run {
    /// Raw pages, of a plain pack.
    #[must_use]
    pub fn raw(pages: u32, offset: u64) -> Self {
        let slot = u32::try_from(offset / PAGE).unwrap_or(u32::MAX);
        Self { kind: kind::RAW, pages, offset, slot, stored: pages.saturating_mul(PAGE_SIZE as u32) }
    }

    fn decode(bytes: &[u8], form: Form) -> Option<Self> {
        let kind = read_u32(bytes, 0)?;
        let raw = Self { kind, ..Self::raw(read_u32(bytes, 4)?, read_u64(bytes, 8)?) };
        Some(match form {
            Form::Plain => raw,
            Form::Compressed => Self { slot: read_u32(bytes, 16)?, stored: read_u32(bytes, 20)?, ..raw },
        })
    }

    /// Whether it can be one of a segment from `segment` to `end`. What is of a kind that this program does not know
    /// can not be read either.
    fn is_sound(&self, segment: u64, end: u64) -> bool {
        let fits = match self.kind {
            kind::RAW => {
                self.offset.is_multiple_of(PAGE) && u64::from(self.stored) == u64::from(self.pages) * PAGE
            }
            kind::LZ4 => self.pages as usize <= BLOCK_PAGES && self.stored as usize <= BLOCK,
            _ => false,
        };
        let slots = u64::from(self.slot) + u64::from(self.pages);
        fits && self.slot > 0
            && slots <= SLOTS + 1
            && self.offset >= segment
            && self.offset.checked_add(self.stored.into()).is_some_and(|behind| behind <= end)
    }
}

/// What a footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    pub form: Form,
    /// Where the segment starts in the pack, in bytes.
    pub segment: u64,
    pub runs: Vec<Run>,
    /// The names of the pages of all runs, in order.
    pub names: Vec<Hash>,
}

fn version(form: Form) -> u32 {
    match form {
        Form::Plain => PLAIN,
        Form::Compressed => COMPRESSED,
    }
}

/// The first page of pack `number`.
#[must_use]
pub fn header(number: u32, form: Form) -> AlignedPage {
    let mut page = AlignedPage::ZERO;
    page.0[..8].copy_from_slice(HEADER_MAGIC);
    page.0[8..12].copy_from_slice(&version(form).to_le_bytes());
    page.0[12..16].copy_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
    page.0[16..24].copy_from_slice(&u64::from(number).to_le_bytes());
    page
}

/// The form of pack `number`, whose header `page` is, in a version that this program knows.
///
/// # Errors
/// What is wrong with it.
pub fn check_header(page: &[u8; PAGE_SIZE], number: u32) -> Result<Form, String> {
    let version = read_u32(page, 8).unwrap_or(0);
    let form = if version == COMPRESSED { Form::Compressed } else { Form::Plain };
    if &page[..8] != HEADER_MAGIC {
        Err("it does not begin as a pack does".into())
    } else if version > COMPRESSED {
        Err(format!("it has pack format {version}, this program knows formats up to {COMPRESSED}"))
    } else if page[..] != header(number, form).0[..] {
        Err("its header is not that of this pack".into())
    } else {
        Ok(form)
    }
}

impl Footer {
    /// The footer as it lies in the pack from `start` on, in bytes.
    #[must_use]
    pub fn encode(&self, start: u64) -> Vec<AlignedPage> {
        let run_len = if self.form == Form::Plain { PLAIN_RUN } else { COMPRESSED_RUN };
        let used = FIXED + self.runs.len() * run_len + self.names.len() * 32 + TRAILER;
        let mut bytes = Vec::with_capacity(used.next_multiple_of(PAGE_SIZE));
        bytes.extend_from_slice(FOOTER_MAGIC);
        bytes.extend_from_slice(&version(self.form).to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.names.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        for run in &self.runs {
            bytes.extend_from_slice(&run.kind.to_le_bytes());
            bytes.extend_from_slice(&run.pages.to_le_bytes());
            bytes.extend_from_slice(&run.offset.to_le_bytes());
            if self.form == Form::Compressed {
                bytes.extend_from_slice(&run.slot.to_le_bytes());
                bytes.extend_from_slice(&run.stored.to_le_bytes());
            }
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
        let (form, run_len) = match read_u32(body, 8).filter(|_| body.starts_with(FOOTER_MAGIC)) {
            Some(PLAIN) => (Form::Plain, PLAIN_RUN),
            Some(COMPRESSED) => (Form::Compressed, COMPRESSED_RUN),
            _ => return Err("a footer has an unknown format".into()),
        };
        let runs = read_u32(body, 12).ok_or_else(bad)? as usize;
        let pages = read_u64(body, 16).ok_or_else(bad)? as usize;
        let segment = read_u64(body, 24).ok_or_else(bad)?;
        let end = body.len().checked_sub(TRAILER - 32).and_then(|at| read_u64(body, at)).ok_or_else(bad)?;
        let names_at = runs.checked_mul(run_len).and_then(|len| len.checked_add(FIXED)).ok_or_else(bad)?;
        let names_len = pages.checked_mul(32).ok_or_else(bad)?;
        let table = body.get(FIXED..names_at).ok_or_else(bad)?;
        let names =
            names_at.checked_add(names_len).and_then(|end| body.get(names_at..end)).ok_or_else(bad)?;
        let runs: Vec<Run> = table.chunks_exact(run_len).filter_map(|run| Run::decode(run, form)).collect();
        if runs.iter().map(|run| u64::from(run.pages)).sum::<u64>() != pages as u64
            || !runs.iter().all(|run| run.is_sound(segment, end))
        {
            return Err(bad());
        }
        Ok(Self { form, segment, runs, names: names.as_chunks::<32>().0.to_vec() })
    }

    /// How many bytes the footer of a segment with so many pages in one run takes.
    #[must_use]
    pub fn len_for(pages: usize) -> u64 {
        ((FIXED + PLAIN_RUN + pages * 32 + TRAILER) as u64).next_multiple_of(PAGE)
    }

    /// No footer takes more bytes.
    #[must_use]
    pub fn longest() -> u64 {
        let pages = SLOTS as usize + 1;
        ((FIXED + pages * (COMPRESSED_RUN + 32) + TRAILER) as u64).next_multiple_of(PAGE)
    }
}

/// How many runs the footer of a compressed pack that begins with `bytes` has.
#[must_use]
pub fn run_count(bytes: &[u8]) -> usize {
    read_u32(bytes, 12).map_or(0, |runs| runs as usize).min(SLOTS as usize)
}

/// The bytes of such a footer up to the end of its runs.
#[must_use]
pub fn table_len(runs: usize) -> usize {
    FIXED + runs * COMPRESSED_RUN
}

/// The runs of such a footer that can be ones of a segment from `segment` to `end`.
pub fn sound_runs(bytes: &[u8], segment: u64, end: u64) -> impl Iterator<Item = Run> {
    let table = bytes.get(FIXED..).unwrap_or_default().chunks_exact(COMPRESSED_RUN);
    let runs = table.filter_map(|run| Run::decode(run, Form::Compressed));
    runs.filter(move |run| run.is_sound(segment, end))
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
            let runs = vec![Run::raw(pages as u32, 4096)];
            let footer = Footer { form: Form::Plain, segment: 4096, runs, names };
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
    fn a_footer_of_blocks_reads_back_and_lies_within_its_segment() {
        let block = Run { kind: kind::LZ4, pages: 16, offset: 4096, slot: 1, stored: 1000 };
        let raw = Run { slot: 17, ..Run::raw(2, 8192) };
        let last = Run { pages: 3, offset: 16384, slot: 19, stored: 77, ..block };
        let encode = |runs: Vec<Run>| {
            let footer = Footer { form: Form::Compressed, segment: 4096, runs, names: vec![[1; 32]; 21] };
            (flat(&footer.encode(20480)), footer)
        };
        let (bytes, footer) = encode(vec![block, raw, last]);
        assert_eq!(
            (Footer::decode(&bytes), trailer(bytes.last_chunk().unwrap())),
            (Ok(footer), Some((20480, 4096)))
        );
        for wrong in [
            Run { kind: 9, ..last },
            Run { stored: BLOCK as u32 + 1, offset: 4096, ..last },
            Run { offset: 20480 - 76, ..last },
            Run { offset: 4095, ..last },
            Run { offset: u64::MAX, ..last },
            Run { slot: 0, ..last },
            Run { slot: SLOTS as u32, ..last },
            Run { kind: kind::RAW, ..last },
        ] {
            assert!(Footer::decode(&encode(vec![block, raw, wrong]).0).is_err(), "{wrong:?}");
        }
        let many = Run { pages: 19, ..block };
        assert!(Footer::decode(&encode(vec![many, Run { slot: 20, ..raw }]).0).is_err());
    }

    #[test]
    fn a_header_names_its_pack() {
        for form in [Form::Plain, Form::Compressed] {
            assert_eq!(check_header(&header(5, form).0, 5), Ok(form));
            assert!(check_header(&header(5, form).0, 6).is_err());
        }
        assert!(check_header(&[0; PAGE_SIZE], 0).is_err());
    }
}
