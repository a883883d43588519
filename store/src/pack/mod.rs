//! Packs: append-only files that hold the pages.
//!
//! `packs/{N:08x}.pack` is a header of one page, then segments. A segment is pages, in the order in
//! which they came (which is address order), and a footer that names them. Whatever follows the last
//! durable footer was never promised to anybody.
//!
//! Checkpoints write *plain* packs, in which a page's slot is where it lies. What is moved later goes to *compressed*
//! ones, where slots are given to pages one after the other and footers say where blocks of them lie: manifests and
//! index name pages of both in the same way.
//!
//! Not here: which pages are worth writing (`session`), where a page of a name lies (`index`).

pub mod block;
pub mod footer;
pub mod map;
pub mod open;
pub mod pool;
pub mod reader;
pub mod set;
pub mod state;
pub mod writer;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stasis_protocol::store::BLOCK_PAGES;

use crate::hash::PAGE_SIZE;

/// The size of a page as an offset.
pub const PAGE: u64 = PAGE_SIZE as u64;

/// A pack that has reached this length, in bytes, takes no more segments.
pub const FULL: u64 = 256 << 20;

/// Pages have slots below this one. Packs that are filled by this program end before, but earlier ones put the last block of a
/// compressed pack over the end.
pub const SLOTS: u64 = FULL / PAGE + BLOCK_PAGES as u64;

/// How a pack gives slots to pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// All pages are raw, and a slot is where one lies.
    #[default]
    Plain,
    /// Slots count pages. What pays is compressed.
    Compressed,
}

/// A page in memory aligned for direct I/O (open(2), O_DIRECT).
#[repr(C, align(4096))]
#[derive(Clone)]
pub struct AlignedPage(pub [u8; PAGE_SIZE]);

impl AlignedPage {
    /// Zeros.
    pub const ZERO: Self = Self([0; PAGE_SIZE]);
}

/// Where a page lies. Eight bytes, because there is one for each page of each manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub pack: u32,
    /// In a plain pack the offset divided by the page size, in a compressed one which page it is, counted from 1.
    /// Never 0 (there is the header) but for [`Place::ZERO`].
    pub slot: u32,
}

impl Place {
    /// The place of pages of zeros, which are not stored.
    pub const ZERO: Self = Self { pack: 0, slot: 0 };

    /// Where the page starts in its pack, in bytes, if that is a plain one.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.slot) * PAGE
    }
}

/// The path of a pack below the directory `packs`.
#[must_use]
pub fn path(packs: &Path, number: u32) -> PathBuf {
    packs.join(format!("{number:08x}.pack"))
}

/// The number in the name of a pack's file.
#[must_use]
pub fn number(file_name: &str) -> Option<u32> {
    let digits = file_name.strip_suffix(".pack")?;
    if digits.len() == 8 { u32::from_str_radix(digits, 16).ok() } else { None }
}
