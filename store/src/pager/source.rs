//! Where absent pages come from: packs, read through the page cache (several restarts of a checkpoint read it once), each
//! page compared with its name.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use stasis_protocol::store::{Extent, MEMORY, kind};

use super::table::Pages;
use crate::{
    hash::{BATCH, PAGE_SIZE, Page, PageHasher},
    read_ahead::ReadAhead,
    stored::PageNames,
    unpack::Unpacker,
};

/// Where a run of pages lies.
struct Piece {
    first_page: u64,
    pages: u64,
    pack: usize,
    offset: u64,
    /// Of a block that holds them: its bytes, and how many of its pages come before.
    block: Option<(u32, u32)>,
    /// The index of its first name.
    first_name: usize,
}

pub struct Source {
    /// In address order.
    pieces: Vec<Piece>,
    packs: Vec<(PathBuf, File)>,
    names: PageNames,
    hasher: PageHasher,
}

/// Why a page cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("page {page:x}000 cannot be read from {}: {error}; run `stasis verify`, and restart from another checkpoint", pack.display())]
    Unreadable { page: u64, pack: PathBuf, error: io::Error },
    #[error(
        "page {page:x}000 is damaged: {}, offset {offset}, does not hold what its hash {name} says; run `stasis verify`, \
         and restart from another checkpoint", pack.display()
    )]
    Corrupt { page: u64, pack: PathBuf, offset: u64, name: String },
    #[error("page {page:x}000 is not in the checkpoint")]
    Unknown { page: u64 },
}

impl Source {
    /// Opens the packs that hold pages of memory in `wanted`, which is in address order.
    ///
    /// # Errors
    /// A pack cannot be opened.
    pub fn open(
        directory: &Path,
        key: &[u8; 32],
        extents: &[Extent],
        names: PageNames,
        wanted: &[Pages],
    ) -> io::Result<Self> {
        let mut source = Self { pieces: Vec::new(), packs: Vec::new(), names, hasher: PageHasher::new(key) };
        let mut numbers = BTreeMap::new();
        let mut first_name = 0;
        for extent in extents {
            let first = first_name;
            first_name += extent.pages as usize;
            if extent.space != MEMORY || extent.kind == kind::ZERO {
                continue;
            }
            let end = extent.first_page + extent.pages;
            let from = wanted.partition_point(|pages| pages.end <= extent.first_page);
            for pages in wanted[from..].iter().take_while(|pages| pages.start < end) {
                let pack = match numbers.get(&extent.pack) {
                    Some(&pack) => pack,
                    None => {
                        let path = directory.join(format!("packs/{:08x}.pack", extent.pack));
                        let named = |error: io::Error| {
                            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                        };
                        let file = File::open(&path).map_err(named)?;
                        // What is asked for is read and no more: who waits for a page would wait for all that the kernel
                        // reads ahead, on a slow disk for a quarter of a second.
                        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
                        source.packs.push((path, file));
                        numbers.insert(extent.pack, source.packs.len() - 1);
                        source.packs.len() - 1
                    }
                };
                let start = pages.start.max(extent.first_page);
                let skipped = start - extent.first_page;
                let (offset, block) = match extent.kind {
                    kind::RAW => (extent.offset + skipped * PAGE_SIZE as u64, None),
                    _ => {
                        let before = u32::try_from(u64::from(extent.skipped) + skipped);
                        (extent.offset, Some((extent.stored, before.unwrap_or(u32::MAX))))
                    }
                };
                source.pieces.push(Piece {
                    first_page: start,
                    pages: pages.end.min(end) - start,
                    pack,
                    offset,
                    block,
                    first_name: first + skipped as usize,
                });
            }
        }
        Ok(source)
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        let directory = self.packs.first().and_then(|(path, _)| path.parent());
        directory.map_or("nothing".into(), |directory| {
            format!("{} packs in {}", self.packs.len(), directory.display())
        })
    }

    /// The packs' descriptors.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.packs.iter().map(|(_, file)| file.as_raw_fd())
    }

    /// The runs of pages that it has, in address order.
    pub fn runs(&self) -> impl Iterator<Item = Pages> {
        self.pieces.iter().map(|piece| piece.first_page..piece.first_page + piece.pages)
    }

    /// Fills `buffer` with the pages of `runs`, one run behind the other.
    ///
    /// # Errors
    /// One of them cannot be had as it was.
    pub fn load(&self, runs: &[Pages], buffer: &mut [u8]) -> Result<(), Damage> {
        /// So many are read and then checked: they are in the processor's own cache then.
        const STEP: usize = 64;
        // Pages that were not checked yet, each with the number of its name, and where the first lies in the buffer.
        let mut read: Vec<(u64, usize)> = Vec::with_capacity(STEP);
        let (mut unchecked, mut at) = (0, 0);
        let mut unpacker = Unpacker::default();
        for run in runs {
            self.announce(run);
            let mut page = run.start;
            while page < run.end {
                let (piece, skipped) = self.find(page)?;
                // A block is unpacked once.
                let wanted = (piece.pages - skipped).min(run.end - page);
                if piece.block.is_some() && wanted > (STEP - read.len()) as u64 {
                    self.verify(&read, &buffer[unchecked..at])?;
                    read.clear();
                    unchecked = at;
                }
                let pages = wanted.min((STEP - read.len()) as u64);
                let len = pages as usize * PAGE_SIZE;
                let (path, file) = &self.packs[piece.pack];
                let to = &mut buffer[at..at + len];
                match piece.block {
                    None => file.read_exact_at(to, piece.offset + skipped * PAGE_SIZE as u64),
                    Some((stored, before)) => {
                        unpacker.read(file, piece.offset, stored, before.saturating_add(skipped as u32), to)
                    }
                }
                .map_err(|error| Damage::Unreadable { page, pack: path.clone(), error })?;
                read.extend((page..page + pages).zip(piece.first_name + skipped as usize..));
                (page, at) = (page + pages, at + len);
                if read.len() == STEP {
                    self.verify(&read, &buffer[unchecked..at])?;
                    read.clear();
                    unchecked = at;
                }
            }
        }
        self.verify(&read, &buffer[unchecked..at])
    }

    /// Tells the kernel of the blocks that hold a run: they have some KiB each, and the disk would wait for who unpacks them.
    fn announce(&self, run: &Pages) {
        let from = self.pieces.partition_point(|piece| piece.first_page + piece.pages <= run.start);
        let pieces = self.pieces[from..].iter().take_while(|piece| piece.first_page < run.end);
        let blocks = pieces.filter_map(|piece| Some((piece, piece.block?.0)));
        // One alone is read at once.
        if blocks.clone().nth(1).is_none() {
            return;
        }
        let mut read_ahead = ReadAhead::bridging(0);
        for (piece, stored) in blocks {
            read_ahead.add(self.packs[piece.pack].1.as_raw_fd(), piece.offset, stored.into());
        }
    }

    /// The piece that holds a page, and how many of its pages are before it.
    fn find(&self, page: u64) -> Result<(&Piece, u64), Damage> {
        let at = self.pieces.partition_point(|piece| piece.first_page + piece.pages <= page);
        let piece = self.pieces.get(at).filter(|piece| piece.first_page <= page);
        piece.map(|piece| (piece, page - piece.first_page)).ok_or(Damage::Unknown { page })
    }

    /// Checks pages, each given with the number of its name.
    fn verify(&self, read: &[(u64, usize)], bytes: &[u8]) -> Result<(), Damage> {
        for (read, bytes) in read.chunks(BATCH).zip(bytes.as_chunks::<PAGE_SIZE>().0.chunks(BATCH)) {
            let mut inputs: [&Page; BATCH] = [&bytes[0]; BATCH];
            for (input, page) in inputs.iter_mut().zip(bytes) {
                *input = page;
            }
            let mut names = [[0u8; 32]; BATCH];
            self.hasher.name_pages(&inputs[..read.len()], &mut names[..read.len()]);
            for (&(page, number), name) in read.iter().zip(&names) {
                if self.names.get(number) != Some(name) {
                    return Err(self.corrupt(page, number));
                }
            }
        }
        Ok(())
    }

    fn corrupt(&self, page: u64, number: usize) -> Damage {
        match self.find(page) {
            Err(damage) => damage,
            Ok((piece, skipped)) => Damage::Corrupt {
                page,
                pack: self.packs[piece.pack].0.clone(),
                offset: if piece.block.is_some() {
                    piece.offset
                } else {
                    piece.offset + skipped * PAGE_SIZE as u64
                },
                name: self
                    .names
                    .get(number)
                    .copied()
                    .unwrap_or_default()
                    .iter()
                    .fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
            },
        }
    }
}
