//! The memory of one process while it arrives: what of it is absent, where that comes from, and what the process has done
//! to its mappings meanwhile.
//!
//! The kernel holds back who discards, moves, unmaps or forks until that was read from the userfaultfd, and refuses to
//! place pages until then (EAGAIN). So nothing old is ever placed where something was discarded, provided that nobody
//! places a page between an event's being read and its being noted: events are read and noted under the layout's lock
//! (written), and pages are placed under it (read).

use std::{
    collections::{BTreeMap, VecDeque},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use stasis_protocol::pager::{Map, PAGES};
use stasis_sys::{
    Errno,
    userfaultfd::{self, Event},
};

use super::{
    source::{Damage, Source},
    table::{Pages, Table},
};
use crate::hash::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;

/// So many pages are looked at around a fault, and placed at a time: a fault does not wait longer for one that goes
/// before.
pub const GRANULE: u64 = 16;

/// Why no more pages are placed.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The process is gone.
    #[error("the process has ended")]
    Ended,
    #[error(transparent)]
    Damaged(#[from] Damage),
    #[error("page {page:x}000 cannot be given to the process: {error}")]
    Refused { page: u64, error: Errno },
}

/// What an attempt to place pages may also end in.
enum Unplaced {
    /// An event must be read first.
    Again,
    Stop(Stop),
}

pub struct Space {
    uffd: OwnedFd,
    /// Whose it is; of a child it is not told.
    pid: Option<u64>,
    /// Pages are placed so that the write tracker counts them as not written.
    clean: bool,
    pub table: Table,
    source: Arc<Source>,
    layout: RwLock<Layout>,
    /// The kernel has carried something out since an event was read last: none was on its way.
    quiet: AtomicBool,
    left: AtomicU64,
    /// Ranges that are to be fetched before others.
    urgent: Mutex<VecDeque<Pages>>,
}

#[derive(Clone, Default)]
struct Layout {
    /// Ranges that were moved: the first page, the one behind the last, and where the first was at the restart.
    moved: BTreeMap<u64, (u64, u64)>,
    /// Of those, the ones that another thread may have unmapped before, of which is told later.
    disordered: Vec<Pages>,
    /// Where pages may be absent.
    regions: Vec<Pages>,
    /// Moved pages that the write tracker is to count as written.
    unprotect: Vec<Pages>,
}

impl Space {
    /// The memory of the process `pid` behind `uffd`; what `source` has is absent.
    pub fn new(
        (uffd, pid): (OwnedFd, u64),
        clean: bool,
        table: Table,
        source: Arc<Source>,
        regions: Vec<Pages>,
    ) -> Self {
        let mut left = 0;
        for run in source.runs() {
            left += run.end - run.start;
            table.set(Map::Stored, run.clone());
            table.set(Map::Absent, run);
        }
        Self {
            uffd,
            pid: Some(pid),
            clean,
            table,
            source,
            layout: RwLock::new(Layout { regions, ..Layout::default() }),
            quiet: AtomicBool::default(),
            left: AtomicU64::new(left),
            urgent: Mutex::default(),
        }
    }

    /// The memory of a child that was forked while pages were absent.
    fn child(&self, layout: &Layout, uffd: OwnedFd) -> std::io::Result<Self> {
        let (table, mut left) = (Table::make()?, 0);
        for region in &layout.regions {
            let mut at = region.start;
            while let Some(run) = self.table.run(Map::Absent, at..region.end) {
                at = run.end;
                left += run.end - run.start;
                table.set(Map::Absent, run);
            }
        }
        let (disordered, unprotect) = (Vec::new(), Vec::new());
        Ok(Self {
            uffd,
            pid: None,
            clean: false,
            table,
            source: Arc::clone(&self.source),
            layout: RwLock::new(Layout { disordered, unprotect, ..layout.clone() }),
            quiet: AtomicBool::default(),
            left: AtomicU64::new(left),
            urgent: Mutex::default(),
        })
    }

    pub fn uffd(&self) -> i32 {
        self.uffd.as_raw_fd()
    }

    /// How many pages are still to come.
    pub fn left(&self) -> u64 {
        // First: what is listed meanwhile is in the other number before.
        let unlisted = self.source.unlisted_pages();
        self.left.load(Ordering::Acquire) + unlisted
    }

    /// Sees to it that the table tells of the pages of a range.
    ///
    /// # Errors
    /// The store does not tell of them.
    pub fn list(&self, pages: &Pages) -> Result<(), Damage> {
        self.source.list(pages, |run| {
            self.left.fetch_add(run.end - run.start, Ordering::AcqRel);
            self.table.set(Map::Stored, run.clone());
            self.table.set(Map::Absent, run);
        })
    }

    /// Whether the table tells of all pages.
    pub fn is_listed(&self) -> bool {
        self.source.is_listed()
    }

    /// The ranges by which pages are listed.
    pub fn parts(&self) -> impl Iterator<Item = &Pages> {
        self.source.parts()
    }

    pub fn describe_source(&self) -> String {
        self.source.describe()
    }

    pub fn is_absent(&self, page: u64) -> bool {
        self.table.get(Map::Absent, page)
    }

    /// Where pages may be absent.
    pub fn regions(&self) -> Vec<Pages> {
        self.read().regions.clone()
    }

    /// Whether anything is to be fetched before the rest.
    pub fn is_urgent(&self) -> bool {
        !self.urgent.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What is to be fetched before anything else.
    pub fn next_urgent(&self) -> Option<Pages> {
        self.urgent.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn read(&self) -> RwLockReadGuard<'_, Layout> {
        self.layout.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Layout> {
        self.layout.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events.
impl Space {
    /// Reads what the kernel tells next and notes it: the page that somebody waits for, or a child's memory. What is told of
    /// is listed before: what comes into the table later would be what was there at the restart.
    ///
    /// # Errors
    /// The store does not tell of the pages.
    pub fn next_event(&self) -> Result<Option<Told>, Stop> {
        let mut layout = self.write();
        if self.quiet.swap(false, Ordering::Relaxed) {
            layout.disordered.clear();
        }
        let Ok(event) = userfaultfd::next(self.uffd()) else { return Ok(None) };
        let pages = |start: u64, end: u64| start / PAGE..end.div_ceil(PAGE);
        match event {
            Event::Fault { address } => return Ok(Some(Told::Fault(address / PAGE))),
            Event::Fork { uffd } => {
                use std::os::fd::FromRawFd;
                // SAFETY: the kernel has just made it for the reader.
                let uffd = unsafe { OwnedFd::from_raw_fd(uffd) };
                self.list(&(0..PAGES))?;
                if self.left() == 0 {
                    return Ok(Some(Told::Noted));
                }
                let child = self.child(&layout, uffd);
                return Ok(Some(child.map_or_else(Told::Orphan, Told::Child)));
            }
            Event::Remove { start, end } => {
                let pages = pages(start, end);
                self.list(&pages)?;
                self.gone(self.table.clear(Map::Absent, pages.clone()));
                self.table.set_where(Map::Removed, Map::Stored, pages);
            }
            Event::Unmap { start, end } => {
                let pages = pages(start, end);
                self.list(&pages)?;
                self.unmapped(&layout, pages);
            }
            Event::Remap { from, to, len } => {
                self.list(&pages(from, from + len))?;
                self.list(&pages(to, to + len))?;
                self.remapped(&mut layout, pages(from, from + len), to / PAGE);
            }
        }
        Ok(Some(Told::Noted))
    }

    /// Unmapped pages need not come. But two threads' events are not told in the order of what they did: something may have
    /// been moved to where another thread had unmapped something. What was moved there is placed at once then: where nothing
    /// is registered any more the kernel does not take it, and it counts as gone. Otherwise it is gone, and must not be
    /// placed: a mapping in front of it may grow to there.
    fn unmapped(&self, layout: &Layout, pages: Pages) {
        // What is mapped there next is not what was there at the restart.
        self.table.clear(Map::Stored, pages.clone());
        for (part, _, moved) in layout.pieces(pages) {
            let overlaps = |other: &Pages| other.start < part.end && part.start < other.end;
            if !moved || !layout.disordered.iter().any(overlaps) {
                self.gone(self.table.clear(Map::Absent, part));
            } else if self.table.run(Map::Absent, part.clone()).is_some() {
                self.urgent.lock().unwrap_or_else(PoisonError::into_inner).push_back(part);
            }
        }
    }

    /// Whether what is told may be told in another order than it was done in: by several threads. That of the library, which takes
    /// checkpoints, neither moves anything nor unmaps what is the program's. A child has one thread at first.
    fn has_several_threads(&self) -> bool {
        /// `.` and `..`, the program's and the library's.
        const ALONE: u64 = 4;
        let Some(pid) = self.pid else { return false };
        std::fs::metadata(format!("/proc/{pid}/task")).map_or(true, |tasks| tasks.nlink() > ALONE)
    }

    fn remapped(&self, layout: &mut Layout, from: Pages, to: u64) {
        let len = from.end - from.start;
        let pieces = layout.pieces(from.clone());
        layout.forget_moves(from.clone());
        layout.forget_moves(to..to + len);
        self.gone(self.table.clear(Map::Absent, to..to + len));
        for (part, origin, _) in pieces {
            let new = to + (part.start - from.start);
            layout.moved.insert(new, (new + (part.end - part.start), origin));
            let mut at = part.start;
            while let Some(run) = self.table.run(Map::Absent, at..part.end) {
                at = run.end;
                let new = to + (run.start - from.start);
                self.table.set(Map::Absent, new..new + (run.end - run.start));
                self.table.clear(Map::Absent, run);
            }
        }
        self.table.set_where(Map::Removed, Map::Stored, from);
        // Whatever was there before: for a checkpoint only what is absent or written counts now.
        self.table.clear(Map::Stored, to..to + len);
        if self.has_several_threads() {
            layout.disordered.push(to..to + len);
        }
        layout.regions.push(to..to + len);
        layout.unprotect.push(to..to + len);
        self.urgent.lock().unwrap_or_else(PoisonError::into_inner).push_back(to..to + len);
    }

    /// Makes pages that were moved count as written, where they are now, unless an event must be read first; whether that
    /// was done. The write tracker took them for what they were before, at another address.
    pub fn settle_moves(&self) -> bool {
        let mut layout = self.write();
        while let Some(pages) = layout.unprotect.pop() {
            let len = pages.end - pages.start;
            match userfaultfd::unprotect(self.uffd(), pages.start * PAGE, len * PAGE) {
                Err(Errno(libc::EAGAIN)) if self.clean => {
                    layout.unprotect.push(pages);
                    return false;
                }
                // Parts of it are gone again, or other mappings'.
                Err(Errno(libc::ENOENT)) if len > 1 => {
                    let middle = pages.start + len / 2;
                    layout.unprotect.extend([pages.start..middle, middle..pages.end]);
                }
                _ => {}
            }
        }
        true
    }

    fn gone(&self, pages: u64) {
        self.left.fetch_sub(pages, Ordering::AcqRel);
    }
}

/// What was read from a userfaultfd.
pub enum Told {
    /// Somebody waits for this page.
    Fault(u64),
    Child(Space),
    /// A child whose memory cannot be looked after.
    Orphan(std::io::Error),
    Noted,
}

impl Layout {
    /// A range in pieces: each with where it was at the restart, and whether it was moved.
    fn pieces(&self, pages: Pages) -> Vec<(Pages, u64, bool)> {
        let mut pieces = Vec::new();
        let mut at = pages.start;
        let first = self.moved.range(..=at).next_back().map_or(at, |(&start, _)| start);
        for (&start, &(end, origin)) in self.moved.range(first..pages.end) {
            if end <= at {
                continue;
            }
            if at < start {
                pieces.push((at..start, at, false));
                at = start;
            }
            let until = end.min(pages.end);
            pieces.push((at..until, origin + (at - start), true));
            at = until;
        }
        if at < pages.end {
            pieces.push((at..pages.end, at, false));
        }
        pieces
    }

    fn forget_moves(&mut self, pages: Pages) {
        let first = self.moved.range(..=pages.start).next_back().map_or(pages.start, |(&start, _)| start);
        let overlapping: Vec<_> =
            self.moved.range(first..pages.end).map(|(&start, &to)| (start, to)).collect();
        for (start, (end, origin)) in overlapping {
            if end <= pages.start {
                continue;
            }
            self.moved.remove(&start);
            if start < pages.start {
                self.moved.insert(start, (pages.start, origin));
            }
            if pages.end < end {
                self.moved.insert(pages.end, (end, origin + (pages.end - start)));
            }
        }
    }
}

/// Pages.
impl Space {
    /// Brings what is absent of a range; how many pages. `relieve` is called where an event must be read first.
    ///
    /// # Errors
    /// A page cannot be had or given: the process must not run on.
    pub fn fetch(
        &self,
        pages: Pages,
        buffer: &mut [u8],
        mut relieve: impl FnMut() -> Result<(), Stop>,
    ) -> Result<u64, Stop> {
        let (mut at, mut placed) = (pages.start, 0);
        while let Some(run) = self.table.run(Map::Absent, at..pages.end) {
            let most = (buffer.len() / PAGE_SIZE) as u64;
            let wanted = run.start..run.end.min(run.start + most);
            let Some((piece, origin, moved)) = self.read().pieces(wanted).into_iter().next() else { break };
            at = piece.end;
            let bytes = &mut buffer[..((piece.end - piece.start) * PAGE) as usize];
            let from = origin..origin + (piece.end - piece.start);
            if let Err(damage) = self.source.load(std::slice::from_ref(&from), bytes) {
                let layout = self.read();
                // What the program has discarded or moved meanwhile is none of our business.
                let unchanged = layout.pieces(piece.clone()) == [(piece.clone(), origin, moved)];
                if unchanged && self.table.run(Map::Absent, piece.clone()) == Some(piece) {
                    return Err(damage.into());
                }
                at = run.start;
                continue;
            }
            let mut page = piece.start;
            while page < piece.end {
                let end = ((page / GRANULE + 1) * GRANULE).min(piece.end);
                let from = ((page - piece.start) * PAGE) as usize;
                let bytes = &bytes[from..from + ((end - page) * PAGE) as usize];
                match self.place_absent(page, bytes, (origin + (page - piece.start), moved), false) {
                    Ok(done) => (placed, page) = (placed + done, end),
                    Err(Unplaced::Again) => relieve()?,
                    Err(Unplaced::Stop(stop)) => return Err(stop),
                }
            }
        }
        Ok(placed)
    }

    /// Brings what is absent of several ranges, together as far as possible: pages that lie apart are read one by one but
    /// checked side by side, which takes a third of the time. `hold`: who waits for any of them goes on when all are there.
    ///
    /// # Errors
    /// As for [`Space::fetch`].
    pub fn fetch_all(
        &self,
        ranges: &[Pages],
        hold: bool,
        buffer: &mut [u8],
        mut relieve: impl FnMut() -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let (mut together, mut pages): (Vec<Pages>, u64) = (Vec::new(), 0);
        let most = (buffer.len() / PAGE_SIZE) as u64;
        for range in ranges {
            self.list(range)?;
            let mut at = range.start;
            while let Some(run) = self.table.run(Map::Absent, at..range.end) {
                at = run.end;
                let len = run.end - run.start;
                let is_moved = self.read().pieces(run.clone()) != [(run.clone(), run.start, false)];
                if is_moved || pages + len > most {
                    self.fetch(run, buffer, &mut relieve)?;
                } else {
                    pages += len;
                    together.push(run);
                }
            }
        }
        let bytes = &mut buffer[..(pages * PAGE) as usize];
        if self.source.load(&together, bytes).is_err() {
            // Damage to what the program has discarded meanwhile is none: one by one it is looked at again.
            for run in together {
                self.fetch(run, buffer, &mut relieve)?;
            }
            return Ok(());
        }
        let mut bytes = &bytes[..];
        for run in &together {
            let mut page = run.start;
            while page < run.end {
                let end = ((page / GRANULE + 1) * GRANULE).min(run.end);
                let (part, _) = bytes.split_at(((end - page) * PAGE) as usize);
                match self.place_absent(page, part, (page, false), hold) {
                    Ok(_) => {
                        bytes = &bytes[part.len()..];
                        page = end;
                    }
                    Err(Unplaced::Again) => relieve()?,
                    Err(Unplaced::Stop(stop)) => return Err(stop),
                }
            }
        }
        for run in together.iter().filter(|_| hold) {
            userfaultfd::wake(self.uffd(), run.start * PAGE, (run.end - run.start) * PAGE);
        }
        Ok(())
    }

    /// Places those of a few pages that are still absent, and still what they were when they were read.
    fn place_absent(
        &self,
        first: u64,
        bytes: &[u8],
        (origin, moved): (u64, bool),
        hold: bool,
    ) -> Result<u64, Unplaced> {
        let layout = self.read();
        let end = first + bytes.len() as u64 / PAGE;
        let (mut at, mut placed) = (first, 0);
        while let Some(run) = self.table.run(Map::Absent, at..end) {
            at = run.end;
            if layout.pieces(run.clone()) != [(run.clone(), origin + (run.start - first), moved)] {
                continue;
            }
            let part = &bytes[((run.start - first) * PAGE) as usize..((run.end - first) * PAGE) as usize];
            placed += self.place(run.start, part, !moved, hold)?;
        }
        Ok(placed)
    }

    /// `clean`: as the checkpoint has them at these addresses.
    fn place(&self, mut page: u64, mut bytes: &[u8], clean: bool, hold: bool) -> Result<u64, Unplaced> {
        let mut placed = 0;
        while !bytes.is_empty() {
            let (to, len) = (page * PAGE, bytes.len() as u64);
            let done =
                match userfaultfd::copy(self.uffd(), to, bytes.as_ptr(), len, clean && self.clean, hold) {
                    Ok(done) => {
                        self.quiet.store(true, Ordering::Relaxed);
                        placed += done / PAGE;
                        done / PAGE
                    }
                    // Several mappings, perhaps, where there was one.
                    Err(Errno(libc::ENOENT)) if len > PAGE => {
                        placed += self.place(page, &bytes[..PAGE_SIZE], clean, hold)?;
                        1
                    }
                    // Another thread of ours was faster; or it is unmapped, or another mapping's by now.
                    Err(Errno(libc::EEXIST | libc::ENOENT)) => {
                        userfaultfd::wake(self.uffd(), to, PAGE);
                        1
                    }
                    Err(error) => return Err(unplaced(page, error)),
                };
            self.gone(self.table.clear(Map::Absent, page..page + done));
            page += done;
            bytes = &bytes[(done * PAGE) as usize..];
        }
        Ok(placed)
    }

    /// Gives zeros where the program touches what it had discarded or never used; a few pages at a time.
    ///
    /// # Errors
    /// As for [`Space::fetch`].
    pub fn zero(&self, page: u64, mut relieve: impl FnMut() -> Result<(), Stop>) -> Result<(), Stop> {
        static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        let granule = (page / GRANULE + 1) * GRANULE;
        // Zeros where nothing is known of a page would be taken for the page.
        self.list(&(page..granule))?;
        loop {
            let layout = self.read();
            if self.is_absent(page) {
                // By an event that was read just now; whoever waits for it asks again.
                userfaultfd::wake(self.uffd(), page * PAGE, PAGE);
                return Ok(());
            }
            let end = self.table.run(Map::Absent, page..granule).map_or(granule, |absent| absent.start);
            let len = (end - page) * PAGE;
            let mut given = userfaultfd::zero(self.uffd(), page * PAGE, len);
            if given == Err(Errno(libc::ENOENT)) {
                given = userfaultfd::zero(self.uffd(), page * PAGE, PAGE);
            }
            if given == Err(Errno(libc::EEXIST)) {
                // There, or marked by the write tracker.
                given = userfaultfd::copy(self.uffd(), page * PAGE, ZEROS.as_ptr(), PAGE, false, false);
            }
            match given {
                Ok(_) => return Ok(()),
                Err(Errno(libc::EEXIST | libc::ENOENT)) => {
                    userfaultfd::wake(self.uffd(), page * PAGE, PAGE);
                    return Ok(());
                }
                Err(error) => match unplaced(page, error) {
                    Unplaced::Again => {
                        drop(layout);
                        relieve()?;
                    }
                    Unplaced::Stop(stop) => return Err(stop),
                },
            }
        }
    }

    /// Makes the use of what is absent a SIGBUS: it will never come.
    pub fn poison(&self) {
        for region in self.regions() {
            let mut at = region.start;
            while let Some(run) = self.table.run(Map::Absent, at..region.end) {
                at = run.end;
                for page in run {
                    let _ = userfaultfd::poison(self.uffd(), page * PAGE, PAGE);
                }
            }
        }
    }
}

fn unplaced(page: u64, error: Errno) -> Unplaced {
    match error {
        Errno(libc::EAGAIN) => Unplaced::Again,
        Errno(libc::ESRCH) => Unplaced::Stop(Stop::Ended),
        error => Unplaced::Stop(Stop::Refused { page, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_moved_is_found_where_it_was() {
        let mut layout = Layout::default();
        assert_eq!(layout.pieces(5..9), [(5..9, 5, false)]);
        layout.moved.insert(100, (110, 10));
        layout.moved.insert(110, (120, 50));
        let expected =
            [(95..100, 95, false), (100..110, 10, true), (110..120, 50, true), (120..125, 120, false)];
        assert_eq!(layout.pieces(95..125), expected);
        assert_eq!(layout.pieces(104..106), [(104..106, 14, true)]);
        layout.forget_moves(104..112);
        let expected = [(100..104, 10, true), (104..112, 104, false), (112..120, 52, true)];
        assert_eq!(layout.pieces(100..120), expected);
    }
}
