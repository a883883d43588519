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

use stasis_protocol::store::{BLOCK_PAGES, kind};

use super::{
    AlignedPage, FULL, Form, PAGE, Place,
    block::Block,
    footer::{Footer, Run, header},
    path,
    writer::{PackFile, write_all_at},
};
use crate::{
    directory::sync_directory,
    error::StoreError,
    failpoint::FailPoint,
    hash::{Hash, PAGE_SIZE},
    index::PackRecord,
};

/// A dump that has added this much to a pack, in bytes, is a large one.
const LARGE: u64 = 8 << 20;

/// How much room is allocated at a time for large dumps, in bytes.
const STEP: u64 = 64 << 20;

/// Blocks are written when there are so many bytes of them.
const BLOCKS_AT_ONCE: usize = 1 << 20;

/// A pack and its end. Between two calls of [`OpenPack::close_segment`], `names` names the pages
/// from `segment` to `end`.
#[derive(Debug)]
pub struct OpenPack {
    pub file: Arc<PackFile>,
    pub form: Form,
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
    /// How many before.
    committed_pages: u64,
    /// Of a compressed pack: the runs of the segment.
    runs: Vec<Run>,
    /// Of a compressed pack: what lies before `end` and has not been handed out to be written. Begins on a page.
    tail: Vec<u8>,
}

impl OpenPack {
    /// Makes pack `number`, durable with its header.
    ///
    /// # Errors
    /// The file cannot be made or written; then there is none.
    pub fn create(packs: &Path, number: u32, form: Form) -> Result<Self, StoreError> {
        let path = path(packs, number);
        let make = || -> Result<PackFile, StoreError> {
            let (file, direct) = open(&path, true).map_err(StoreError::io("cannot make", &path))?;
            FailPoint::PackCreated.hit();
            let AlignedPage(header) = &header(number, form);
            write_all_at(&file, &[header], 0).map_err(StoreError::io("cannot write to", &path))?;
            file.sync_data().map_err(StoreError::io("cannot sync", &path))?;
            sync_directory(packs)?;
            Ok(PackFile { number, path: path.clone(), file, direct })
        };
        let file = make().inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        })?;
        Ok(Self::at(file, &PackRecord::new(form)))
    }

    /// Opens pack `number` to go on at the end of its last committed segment.
    ///
    /// # Errors
    /// The file cannot be opened or is shorter.
    pub fn reopen(packs: &Path, number: u32, record: &PackRecord) -> Result<Self, StoreError> {
        let (path, committed) = (path(packs, number), record.committed);
        let (file, direct) = open(&path, false).map_err(StoreError::io("cannot open", &path))?;
        let len = file.metadata().map_err(StoreError::io("cannot look at", &path))?.len();
        if len < committed {
            return Err(StoreError::Damaged(format!("{} has {len} bytes of {committed}", path.display())));
        }
        let pack = Self::at(PackFile { number, path, file, direct }, record);
        pack.truncate()?;
        Ok(pack)
    }

    fn at(file: PackFile, record: &PackRecord) -> Self {
        let end = record.committed;
        Self {
            file: Arc::new(file),
            form: record.form,
            committed: end,
            durable: end,
            segment: end,
            end,
            names: Vec::new(),
            allocated: end,
            pages: 0,
            committed_pages: record.pages,
            runs: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// What of it is committed.
    #[must_use]
    pub fn record(&self) -> PackRecord {
        let Self { form, committed, committed_pages: pages, .. } = *self;
        PackRecord { committed, pages, ..PackRecord::new(form) }
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

    /// How many pages it still takes. A compressed pack takes blocks, and has no room where it has none for a whole one.
    #[must_use]
    pub fn room(&self) -> u64 {
        room(self.form, self.end, self.next_slot())
    }

    /// Of a compressed pack: which page comes next.
    fn next_slot(&self) -> u64 {
        1 + self.committed_pages + self.pages
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

    /// Puts a block behind the last one, of a compressed pack, and gives slots to its pages; returns the place of the first.
    pub fn append_block(&mut self, block: &Block) -> Place {
        let slot = self.next_slot() as u32;
        if block.kind == kind::RAW {
            self.pad();
        }
        let (pages, stored) = (block.names.len() as u32, block.bytes.len() as u32);
        match self.runs.last_mut() {
            Some(run)
                if block.kind == kind::RAW
                    && run.kind == kind::RAW
                    && run.offset + u64::from(run.stored) == self.end =>
            {
                run.pages += pages;
                run.stored += stored;
            }
            _ => self.runs.push(Run { kind: block.kind, pages, offset: self.end, slot, stored }),
        }
        self.tail.extend_from_slice(&block.bytes);
        self.end += u64::from(stored);
        self.pages += u64::from(pages);
        self.names.extend_from_slice(&block.names);
        Place { pack: self.file.number, slot }
    }

    fn pad(&mut self) {
        let padding = self.end.next_multiple_of(PAGE) - self.end;
        self.tail.resize(self.tail.len() + padding as usize, 0);
        self.end += padding;
    }

    /// Blocks to write now and where, in bytes, if there are enough of them.
    pub fn take_blocks(&mut self) -> Option<(Vec<AlignedPage>, u64)> {
        if self.tail.len() < BLOCKS_AT_ONCE {
            return None;
        }
        let start = self.end - self.tail.len() as u64;
        let (pages, rest) = self.tail.as_chunks::<PAGE_SIZE>();
        let (pages, rest) = (pages.iter().map(|page| AlignedPage(*page)).collect(), rest.to_vec());
        self.tail = rest;
        Some((pages, start))
    }

    /// Ends the segment: the footer to write and where, in bytes. `None` when there is no page in it.
    pub fn close_segment(&mut self) -> Option<(Vec<AlignedPage>, u64)> {
        if self.names.is_empty() {
            return None;
        }
        let names = std::mem::take(&mut self.names);
        let runs = match self.form {
            Form::Plain => vec![Run::raw(names.len() as u32, self.segment)],
            Form::Compressed => std::mem::take(&mut self.runs),
        };
        self.pad();
        let start = self.end;
        let footer = Footer { form: self.form, segment: self.segment, runs, names }.encode(start);
        self.end += footer.len() as u64 * PAGE;
        self.segment = self.end;
        let tail = std::mem::take(&mut self.tail);
        let written = start - tail.len() as u64;
        let blocks = tail.as_chunks::<PAGE_SIZE>().0.iter().map(|page| AlignedPage(*page));
        Some((blocks.chain(footer).collect(), written))
    }

    /// Where the last segment that has a footer ends, in bytes.
    #[must_use]
    pub fn segment_start(&self) -> u64 {
        self.segment
    }

    /// All that is durable now belongs to a committed checkpoint.
    pub fn commit(&mut self) {
        self.committed = self.durable;
        self.committed_pages += self.pages;
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
        self.runs.clear();
        self.tail.clear();
        self.pages = 0;
        self.allocated = self.end;
        self.truncate()
    }

    fn truncate(&self) -> Result<(), StoreError> {
        self.file.file.set_len(self.end).map_err(StoreError::io("cannot truncate", &self.file.path))
    }
}

/// How many pages a pack takes that ends at `end`, in bytes, and whose next page has the slot `next`.
pub fn room(form: Form, end: u64, next: u64) -> u64 {
    let lying = FULL.saturating_sub(end) / PAGE;
    match form {
        Form::Plain => lying,
        Form::Compressed => {
            let room = lying.min((FULL / PAGE).saturating_sub(next));
            if room < BLOCK_PAGES as u64 { 0 } else { room }
        }
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
