//! A pack that is being appended to.
//!
//! Not here: who may append when (`session`), and the writing itself (`writer`).

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use stasis_protocol::store::kind;

use super::{
    AlignedPage, FULL, PAGE, Place,
    footer::{Footer, Run, header},
    path,
    writer::{PackFile, write_all_at},
};
use crate::{directory::sync_directory, error::StoreError, failpoint::FailPoint, hash::Hash};

/// A dump that has added this much to a pack, in bytes, is a large one.
const LARGE: u64 = 8 << 20;

/// How much room is allocated at a time for large dumps, in bytes.
const STEP: u64 = 64 << 20;

/// A pack and its end. Between two calls of [`OpenPack::close_segment`], `names` names the pages
/// from `segment` to `end`.
#[derive(Debug)]
pub struct OpenPack {
    pub file: Arc<PackFile>,
    /// Up to here it belongs to committed checkpoints, in bytes.
    pub committed: u64,
    /// Up to here it has been synced, in bytes; the end of a footer, or of the header.
    pub durable: u64,
    /// Where the segment starts that has no footer yet, in bytes.
    segment: u64,
    /// Where the next page goes, in bytes.
    end: u64,
    names: Vec<Hash>,
    /// The length of the file, in bytes, where that is more than `end`.
    allocated: u64,
    /// How many pages went into it behind what is committed.
    pub pages: u64,
}

impl OpenPack {
    /// Makes pack `number`, durable with its header.
    ///
    /// # Errors
    /// The file cannot be made or written; then there is none.
    pub fn create(packs: &Path, number: u32) -> Result<Self, StoreError> {
        let path = path(packs, number);
        let make = || -> Result<PackFile, StoreError> {
            let (file, direct) = open(&path, true).map_err(StoreError::io("cannot make", &path))?;
            FailPoint::PackCreated.hit();
            let AlignedPage(header) = &header(number);
            write_all_at(&file, &[header], 0).map_err(StoreError::io("cannot write to", &path))?;
            file.sync_data().map_err(StoreError::io("cannot sync", &path))?;
            sync_directory(packs)?;
            Ok(PackFile { number, path: path.clone(), file, direct })
        };
        let file = make().inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        })?;
        Ok(Self::at(file, PAGE))
    }

    /// Opens pack `number` to go on at `committed`, the end of its last committed segment in bytes.
    ///
    /// # Errors
    /// The file cannot be opened or is shorter.
    pub fn reopen(packs: &Path, number: u32, committed: u64) -> Result<Self, StoreError> {
        let path = path(packs, number);
        let (file, direct) = open(&path, false).map_err(StoreError::io("cannot open", &path))?;
        let len = file.metadata().map_err(StoreError::io("cannot look at", &path))?.len();
        if len < committed {
            return Err(StoreError::Damaged(format!("{} has {len} bytes of {committed}", path.display())));
        }
        let pack = Self::at(PackFile { number, path, file, direct }, committed);
        pack.truncate()?;
        Ok(pack)
    }

    fn at(file: PackFile, end: u64) -> Self {
        Self {
            file: Arc::new(file),
            committed: end,
            durable: end,
            segment: end,
            end,
            names: Vec::new(),
            allocated: end,
            pages: 0,
        }
    }

    /// Allocates room ahead of a large dump. Writes that neither grow the file nor need new blocks go on
    /// side by side (ext4 takes its inode lock shared for them), which makes two writers a sixth faster.
    /// Only an improvement: where it is impossible nothing is said.
    pub fn allocate_ahead(&mut self) {
        if self.end + STEP / 4 <= self.allocated
            || self.end - self.committed < LARGE
            || self.allocated >= FULL
        {
            return;
        }
        let end = FULL.min(self.end + STEP);
        let len = end.saturating_sub(self.allocated.max(self.end));
        // SAFETY: fallocate(2) takes a descriptor, open as long as `self.file`, and numbers.
        let result =
            unsafe { libc::fallocate(self.file.file.as_raw_fd(), 0, (end - len) as i64, len as i64) };
        // Without support there is none later either.
        self.allocated = if result == 0 { end } else { FULL };
    }

    /// How many pages it still takes.
    #[must_use]
    pub fn room(&self) -> u64 {
        FULL.saturating_sub(self.end) / PAGE
    }

    /// Where the next page goes, in bytes.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Gives the next slot to the page called `name`.
    pub fn append(&mut self, name: Hash) -> Place {
        let place = Place { pack: self.file.number, slot: (self.end / PAGE) as u32 };
        self.names.push(name);
        self.end += PAGE;
        self.pages += 1;
        place
    }

    /// Ends the segment: the footer to write and where, in bytes. `None` when there is no page in it.
    pub fn close_segment(&mut self) -> Option<(Vec<AlignedPage>, u64)> {
        if self.names.is_empty() {
            return None;
        }
        let names = std::mem::take(&mut self.names);
        let run = Run { kind: kind::RAW, pages: names.len() as u32, offset: self.segment };
        let start = self.end;
        let pages = Footer { segment: self.segment, runs: vec![run], names }.encode(start);
        self.end += pages.len() as u64 * PAGE;
        self.segment = self.end;
        Some((pages, start))
    }

    /// Where the last segment that has a footer ends, in bytes.
    #[must_use]
    pub fn segment_start(&self) -> u64 {
        self.segment
    }

    /// All that is durable now belongs to a committed checkpoint.
    pub fn commit(&mut self) {
        self.committed = self.durable;
        self.pages = 0;
    }

    /// Drops everything behind what is committed and gives its room back. Nothing may be being
    /// written to the pack.
    ///
    /// # Errors
    /// The file cannot be truncated.
    pub fn rewind(&mut self) -> Result<(), StoreError> {
        if self.end == self.committed && self.allocated <= self.end {
            return Ok(());
        }
        self.end = self.committed;
        self.segment = self.committed;
        self.durable = self.committed;
        self.names.clear();
        self.pages = 0;
        self.allocated = self.end;
        self.truncate()
    }

    fn truncate(&self) -> Result<(), StoreError> {
        self.file.file.set_len(self.end).map_err(StoreError::io("cannot truncate", &self.file.path))
    }
}

/// Opens a pack for writing; with O_DIRECT where the file system has it (EINVAL: it has not).
fn open(path: &Path, create: bool) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(create).mode(0o600);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
    match direct {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // A refused O_DIRECT may have made the file already (open(2), BUGS).
            let file = OpenOptions::new().write(true).create(create).mode(0o600).open(path)?;
            Ok((file, false))
        }
        other => other.map(|file| (file, true)),
    }
}
