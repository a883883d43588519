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
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use stasis_protocol::store::{Extent, Hash, MEMORY, kind};

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
    pack: Arc<Pack>,
    offset: u64,
    /// Of a block that holds them: its bytes, and how many of its pages come before.
    block: Option<(u32, u32)>,
    /// The index of its first name.
    first_name: usize,
}

struct Pack {
    path: PathBuf,
    file: File,
}

/// Pages of which it is known where they lie.
struct Listed {
    /// In address order.
    pieces: Vec<Piece>,
    names: Names,
}

enum Names {
    Shared(PageNames),
    Own(Vec<Hash>),
}

impl Names {
    fn get(&self, number: usize) -> Option<&Hash> {
        match self {
            Self::Shared(names) => names.get(number),
            Self::Own(names) => names.get(number),
        }
    }
}

/// Pages that are listed when one of them is wanted, or in their turn.
struct Part {
    pages: Pages,
    listed: OnceLock<Listed>,
    /// Held while they are listed.
    listing: Mutex<()>,
}

/// Pages of a part: 16 MiB. To list them takes half a millisecond.
const PART: u64 = 4096;

/// Lists the pages of a range: extents, and the names of their pages.
pub type List = Box<dyn FnMut(Pages) -> io::Result<(Vec<Extent>, Vec<Hash>)> + Send>;

pub struct Source {
    directory: PathBuf,
    packs: Mutex<BTreeMap<u64, Arc<Pack>>>,
    hasher: PageHasher,
    /// What was listed beforehand.
    listed: Listed,
    /// In address order.
    parts: Vec<Part>,
    /// How many parts have not been listed.
    unlisted: AtomicUsize,
    /// How many pages are in them: for who asks how it goes.
    unlisted_pages: AtomicU64,
    /// Dropped when all parts are listed.
    list: Mutex<Option<List>>,
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
    #[error("where page {page:x}000 lies cannot be read from the store: {error}")]
    Unlisted { page: u64, error: io::Error },
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
        let mut source = Self {
            directory: directory.into(),
            packs: Mutex::default(),
            hasher: PageHasher::new(key),
            listed: Listed { pieces: Vec::new(), names: Names::Shared(names) },
            parts: Vec::new(),
            unlisted: AtomicUsize::new(0),
            unlisted_pages: AtomicU64::new(0),
            list: Mutex::default(),
        };
        source.listed.pieces = source.pieces(extents, wanted)?;
        Ok(source)
    }

    /// Has it list the pages of these ranges, which are in address order, when they are wanted: `count` pages.
    #[must_use]
    pub fn listing(mut self, ranges: &[Pages], count: u64, list: List) -> Self {
        let cut = |range: &Pages| {
            let range = range.clone();
            let starts = range.clone().step_by(PART as usize);
            starts.map(move |start| start..(start + PART).min(range.end))
        };
        let part = |pages| Part { pages, listed: OnceLock::new(), listing: Mutex::default() };
        self.parts = ranges.iter().flat_map(cut).map(part).collect();
        self.unlisted = AtomicUsize::new(self.parts.len());
        self.unlisted_pages = AtomicU64::new(count);
        self.list = Mutex::new((!self.parts.is_empty()).then_some(list));
        self
    }

    fn pieces(&self, extents: &[Extent], wanted: &[Pages]) -> io::Result<Vec<Piece>> {
        let mut pieces = Vec::new();
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
                let start = pages.start.max(extent.first_page);
                let skipped = start - extent.first_page;
                let (offset, block) = match extent.kind {
                    kind::RAW => (extent.offset + skipped * PAGE_SIZE as u64, None),
                    _ => {
                        let before = u32::try_from(u64::from(extent.skipped) + skipped);
                        (extent.offset, Some((extent.stored, before.unwrap_or(u32::MAX))))
                    }
                };
                pieces.push(Piece {
                    first_page: start,
                    pages: pages.end.min(end) - start,
                    pack: self.pack(extent.pack)?,
                    offset,
                    block,
                    first_name: first + skipped as usize,
                });
            }
        }
        Ok(pieces)
    }

    fn pack(&self, number: u64) -> io::Result<Arc<Pack>> {
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pack) = packs.get(&number) {
            return Ok(Arc::clone(pack));
        }
        let path = self.directory.join(format!("packs/{number:08x}.pack"));
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = File::open(&path).map_err(named)?;
        // What is asked for is read and no more: who waits for a page would wait for all that the kernel
        // reads ahead, on a slow disk for a quarter of a second.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
        let pack = Arc::new(Pack { path, file });
        packs.insert(number, Arc::clone(&pack));
        Ok(pack)
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        let packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner).len();
        let packs = if packs == 1 { "1 pack".into() } else { format!("{packs} packs") };
        format!("{packs} in {}", self.directory.join("packs").display())
    }

    /// The packs' descriptors, as far as it is known which are needed.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        packs.values().map(|pack| pack.file.as_raw_fd()).collect()
    }

    /// The runs of pages that were listed beforehand, in address order.
    pub fn runs(&self) -> impl Iterator<Item = Pages> {
        self.listed.runs()
    }

    /// Whether it is known of all pages where they lie.
    pub fn is_listed(&self) -> bool {
        self.unlisted.load(Ordering::Acquire) == 0
    }

    /// How many pages there are of which it is not known; never 0 where there is a part of which nothing is known.
    pub fn unlisted_pages(&self) -> u64 {
        match self.is_listed() {
            true => 0,
            false => self.unlisted_pages.load(Ordering::Relaxed).max(1),
        }
    }

    /// The ranges by which pages are listed, in address order.
    pub fn parts(&self) -> impl Iterator<Item = &Pages> {
        self.parts.iter().map(|part| &part.pages)
    }

    /// Lists what of a range is not listed yet, and tells `found` of the runs: once, and before anybody gets to know that
    /// they are listed.
    ///
    /// # Errors
    /// The store does not say, or a pack cannot be opened.
    pub fn list(&self, pages: &Pages, mut found: impl FnMut(Pages)) -> Result<(), Damage> {
        if self.is_listed() {
            return Ok(());
        }
        let from = self.parts.partition_point(|part| part.pages.end <= pages.start);
        for part in self.parts[from..].iter().take_while(|part| part.pages.start < pages.end) {
            if part.listed.get().is_some() {
                continue;
            }
            let _listing = part.listing.lock().unwrap_or_else(PoisonError::into_inner);
            if part.listed.get().is_some() {
                continue;
            }
            let unlisted = |error| Damage::Unlisted { page: part.pages.start, error };
            let (extents, names) = {
                let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
                let list = list.as_mut().ok_or_else(|| unlisted(io::ErrorKind::NotConnected.into()))?;
                list(part.pages.clone()).map_err(unlisted)?
            };
            let pieces = self.pieces(&extents, std::slice::from_ref(&part.pages)).map_err(unlisted)?;
            let count = names.len() as u64;
            let listed = Listed { pieces, names: Names::Own(names) };
            listed.runs().for_each(&mut found);
            let _ = part.listed.set(listed);
            let _ = self
                .unlisted_pages
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(count)));
            if self.unlisted.fetch_sub(1, Ordering::AcqRel) == 1 {
                // Nobody needs the store's server any more.
                *self.list.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        }
        Ok(())
    }

    /// What is known of the pages around one.
    fn listed(&self, page: u64) -> &Listed {
        let at = self.parts.partition_point(|part| part.pages.end <= page);
        let part = self.parts.get(at).filter(|part| part.pages.start <= page);
        part.and_then(|part| part.listed.get()).unwrap_or(&self.listed)
    }

    /// Fills `buffer` with the pages of `runs`, one run behind the other.
    ///
    /// # Errors
    /// One of them cannot be had as it was.
    pub fn load(&self, runs: &[Pages], buffer: &mut [u8]) -> Result<(), Damage> {
        /// So many are read and then checked: they are in the processor's own cache then.
        const STEP: usize = 64;
        // Pages that were not checked yet, each with where the number of its name is one, and where the first lies in the buffer.
        let mut read: Vec<(u64, &Listed, usize)> = Vec::with_capacity(STEP);
        let (mut unchecked, mut at) = (0, 0);
        let mut unpacker = Unpacker::default();
        for run in runs {
            self.announce(run);
            let mut page = run.start;
            while page < run.end {
                let listed = self.listed(page);
                let (piece, skipped) = listed.find(page)?;
                // A block is unpacked once.
                let wanted = (piece.pages - skipped).min(run.end - page);
                if piece.block.is_some() && wanted > (STEP - read.len()) as u64 {
                    self.verify(&read, &buffer[unchecked..at])?;
                    read.clear();
                    unchecked = at;
                }
                let pages = wanted.min((STEP - read.len()) as u64);
                let len = pages as usize * PAGE_SIZE;
                let Pack { path, file } = &*piece.pack;
                let to = &mut buffer[at..at + len];
                match piece.block {
                    None => file.read_exact_at(to, piece.offset + skipped * PAGE_SIZE as u64),
                    Some((stored, before)) => {
                        unpacker.read(file, piece.offset, stored, before.saturating_add(skipped as u32), to)
                    }
                }
                .map_err(|error| Damage::Unreadable { page, pack: path.clone(), error })?;
                let first = piece.first_name + skipped as usize;
                read.extend((page..page + pages).zip(first..).map(|(page, name)| (page, listed, name)));
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
        let known = &self.listed(run.start).pieces;
        let from = known.partition_point(|piece| piece.first_page + piece.pages <= run.start);
        let pieces = known[from..].iter().take_while(|piece| piece.first_page < run.end);
        let blocks = pieces.filter_map(|piece| Some((piece, piece.block?.0)));
        // One alone is read at once.
        if blocks.clone().nth(1).is_none() {
            return;
        }
        let mut read_ahead = ReadAhead::bridging(0);
        for (piece, stored) in blocks {
            read_ahead.add(piece.pack.file.as_raw_fd(), piece.offset, stored.into());
        }
    }

    /// Checks pages, each given with the number of its name.
    fn verify(&self, read: &[(u64, &Listed, usize)], bytes: &[u8]) -> Result<(), Damage> {
        for (read, bytes) in read.chunks(BATCH).zip(bytes.as_chunks::<PAGE_SIZE>().0.chunks(BATCH)) {
            let mut inputs: [&Page; BATCH] = [&bytes[0]; BATCH];
            for (input, page) in inputs.iter_mut().zip(bytes) {
                *input = page;
            }
            let mut names = [[0u8; 32]; BATCH];
            self.hasher.name_pages(&inputs[..read.len()], &mut names[..read.len()]);
            for (&(page, listed, number), name) in read.iter().zip(&names) {
                if listed.names.get(number) != Some(name) {
                    return Err(listed.corrupt(page, number));
                }
            }
        }
        Ok(())
    }
}

impl Listed {
    /// The runs of pages, in address order.
    fn runs(&self) -> impl Iterator<Item = Pages> {
        self.pieces.iter().map(|piece| piece.first_page..piece.first_page + piece.pages)
    }

    /// The piece that holds a page, and how many of its pages are before it.
    fn find(&self, page: u64) -> Result<(&Piece, u64), Damage> {
        let at = self.pieces.partition_point(|piece| piece.first_page + piece.pages <= page);
        let piece = self.pieces.get(at).filter(|piece| piece.first_page <= page);
        piece.map(|piece| (piece, page - piece.first_page)).ok_or(Damage::Unknown { page })
    }

    fn corrupt(&self, page: u64, number: usize) -> Damage {
        match self.find(page) {
            Err(damage) => damage,
            Ok((piece, skipped)) => Damage::Corrupt {
                page,
                pack: piece.pack.path.clone(),
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
