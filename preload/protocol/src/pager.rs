//! What a lazily restarted process and its pager share: a table of pages, and a socket.
//!
//! The table is a file in memory (memfd), sparse: a header, then maps with one bit for each page of the address space,
//! of which only those parts exist that were ever written. The pager writes it; the process reads it when a checkpoint
//! is taken, and waits on the header.
//!
//! Over the socket the restorer sends two words, [`Handover`], each with a descriptor beside it: the userfaultfd, then a
//! pidfd of the process. After that the checkpoint thread asks by single bytes ([`request`]) and gets one back.

use crate::PAGE_SIZE;

/// The table's first word, 32 bits: 0 until all pages are in. Processes wait on it (futex(2), not private).
pub const COMPLETE: u64 = 0;

/// The second, 32 bits: set to 1, and woken, by a process that waits for the first; the pager waits on it.
pub const HURRY: u64 = 4;

/// The header's bytes.
pub const HEADER: u64 = PAGE_SIZE as u64;

/// Pages of the address space: 47 bits.
pub const PAGES: u64 = 1 << 35;

/// The bytes of a map.
pub const MAP: u64 = PAGES / 8;

/// Pages of which one page of a map tells: so much of it exists, or does not.
pub const TOLD_BY_ONE: u64 = 8 * PAGE_SIZE as u64;

/// The maps, in this order behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Still to come: its content is that of the checkpoint.
    Absent = 0,
    /// Discarded, or moved away, at some time since the restart; told of what is [`Map::Stored`]. Never taken back.
    Removed = 1,
    /// Was to come when the process was restarted, and has not been unmapped or moved since.
    Stored = 2,
}

/// The bytes of the whole table.
pub const LEN: u64 = HEADER + 3 * MAP;

impl Map {
    /// Where the word that holds a page's bit lies in the table, in bytes.
    #[must_use]
    pub fn offset(self, page: u64) -> u64 {
        HEADER + self as u64 * MAP + page / 64 * 8
    }

    /// The first page of which the table's byte there, or what is behind it, tells; the other way round.
    #[must_use]
    pub fn page(self, offset: u64) -> u64 {
        offset.saturating_sub(self.offset(0)) * 8
    }
}

/// What the restorer tells: the features of the userfaultfd that it sends, then its own pid.
pub type Handover = [u64; 2];

/// Questions of the checkpoint thread.
pub mod request {
    /// Answered when every event that the kernel has told of is in the table.
    pub const SETTLE: u8 = 1;
    /// Answered when all pages are in.
    pub const FINISH: u8 = 2;
    /// Answered when the table tells of all pages that are to come.
    pub const LIST: u8 = 3;
}
