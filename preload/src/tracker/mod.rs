//! Which pages the program has written since the last checkpoint, so that a checkpoint takes only those.
//!
//! A tracker is used after it has found a written page in a self-test in this process: kernels without
//! CONFIG_MEM_SOFT_DIRTY, for one, take every request and report nothing. STASIS_DISABLE, a list of names, keeps one
//! from being used, for tests of the others.
//!
//! Not here: what is done with the pages (`dump`), and what was taken for which checkpoint (`checkpoint`).

mod ahead;
mod soft_dirty;
mod wp_async;

use alloc::vec::Vec;

use stasis_protocol::PAGE_SIZE;
use stasis_sys::{Result, memory};

pub use ahead::Ahead;
pub use soft_dirty::SoftDirty;
pub use wp_async::{WpAsync, adopt};

use crate::{
    pagemap::{Pagemap, Run, State, Which},
    start,
};

/// A mapping to look at.
#[derive(Clone, Copy)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    pub which: Which,
    /// Most of it is populated, or it is small: unpopulated pages may get page tables.
    pub dense: bool,
    /// Whether threads may read it.
    pub readable: bool,
}

/// What a tracker has found of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// What has changed since it was asked last, holes that came to be included.
    Changes,
    /// All that is populated: it knows nothing of the past. Everything else is a hole.
    All,
}

/// Whether threads run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Running,
    Stopped,
}

/// Finds written pages. A tracker that was asked about a range knows what is written there from then on.
pub trait DirtyTracker {
    /// The name, as in `stasis doctor` and in checkpoint records.
    fn name(&self) -> &'static str;

    /// Whether it may be asked again and again while threads run, each page being reported until it was not written
    /// between two answers.
    fn works_while_running(&self) -> bool {
        false
    }

    /// Watches a mapping. Only while threads stand still: a program that maps and unmaps meanwhile could find a mapping
    /// of its own cut in two, and mremap(2) fail.
    ///
    /// # Errors
    /// The kernel's: EBUSY for one that the program watches itself.
    fn watch(&mut self, _range: Range) -> Result<()> {
        Ok(())
    }

    /// Finds the pages of one mapping that have changed; `all`: those that are populated. What was in `found` is gone.
    ///
    /// # Errors
    /// EPERM where not all of the range is watched, and the kernel's. Some of it may count as unchanged from now on.
    fn look(
        &mut self,
        pagemap: &mut Pagemap,
        range: Range,
        all: bool,
        moment: Moment,
        found: &mut Vec<Run>,
    ) -> Result<Shown>;

    /// Every range has been asked about, threads stand still, and nothing has been copied since: what is written from
    /// now on is new.
    fn looked_at_all(&mut self) {}
}

/// Knows nothing: every page is taken, and the store finds out which are new by their hashes.
pub struct Hash;

impl DirtyTracker for Hash {
    fn name(&self) -> &'static str {
        "hash"
    }

    fn look(
        &mut self,
        pagemap: &mut Pagemap,
        range: Range,
        _: bool,
        _: Moment,
        found: &mut Vec<Run>,
    ) -> Result<Shown> {
        pagemap.populated(range.start, range.end, range.which, found)?;
        Ok(Shown::All)
    }
}

/// The tracker of this process.
pub enum Tracker {
    WpAsync(WpAsync),
    SoftDirty(SoftDirty),
    Hash(Hash),
}

impl Tracker {
    /// The best one that works here.
    pub fn choose() -> Self {
        if let Some(mut tracker) = WpAsync::open() {
            if works(&mut tracker) {
                return Self::WpAsync(tracker);
            }
            tracker.close();
        }
        if works(&mut SoftDirty::default()) {
            Self::SoftDirty(SoftDirty::default())
        } else {
            Self::Hash(Hash)
        }
    }

    pub fn get(&mut self) -> &mut dyn DirtyTracker {
        match self {
            Self::WpAsync(tracker) => tracker,
            Self::SoftDirty(tracker) => tracker,
            Self::Hash(tracker) => tracker,
        }
    }
}

fn works(tracker: &mut dyn DirtyTracker) -> bool {
    !start::is_disabled(tracker.name()) && finds_what_is_written(tracker)
}

const PAGES: usize = 8;

/// The page that is written, the one that is discarded, and the one that is discarded and then read, between two looks.
const WRITTEN: usize = 5;
const DISCARDED: usize = 2;
const ZEROS: usize = 7;

/// Writes and discards pages, and looks whether the tracker tells just those.
fn finds_what_is_written(tracker: &mut dyn DirtyTracker) -> bool {
    let len = PAGES * PAGE_SIZE;
    let Ok(start) = memory::map_anonymous(len, libc::MAP_NORESERVE) else { return false };
    let found = test(tracker, start, len);
    // SAFETY: mapped above, and nobody else's.
    let _ = unsafe { memory::unmap(start, len) };
    found
}

fn test(tracker: &mut dyn DirtyTracker, start: usize, len: usize) -> bool {
    let Ok(mut pagemap) = Pagemap::open() else { return false };
    let write = |page: usize| {
        // SAFETY: inside the mapping, to which nothing refers.
        unsafe { ((start + page * PAGE_SIZE) as *mut u8).write_volatile(1) };
    };
    (0..PAGES).for_each(write);
    let (first, end) = (start as u64, (start + len) as u64);
    let range = Range { start: first, end, which: Which::Populated, dense: true, readable: true };
    let mut found = Vec::new();
    let mut look = |tracker: &mut dyn DirtyTracker, all, found: &mut Vec<Run>| {
        tracker.look(&mut pagemap, range, all, Moment::Running, found)
    };
    let mut good = tracker.watch(range).is_ok() && look(tracker, true, &mut found).is_ok();
    tracker.looked_at_all();
    write(WRITTEN);
    for page in [DISCARDED, ZEROS] {
        // SAFETY: as above.
        good &= unsafe { memory::advise(start + page * PAGE_SIZE, PAGE_SIZE, libc::MADV_DONTNEED) }.is_ok();
    }
    // SAFETY: as above. The shared page of zeros comes there, and no store has set a bit.
    good &= unsafe { ((start + ZEROS * PAGE_SIZE) as *const u8).read_volatile() } == 0;
    let mut pages = [None; PAGES];
    let shown = look(tracker, false, &mut found);
    pagemap.close();
    for run in &found {
        let page = |address: u64| (address as usize - start) / PAGE_SIZE;
        pages[page(run.start)..page(run.end)].fill(Some(run.state));
    }
    let expected = |page| match (page, pages[page]) {
        (WRITTEN, state) => state == Some(State::Present),
        // Protected again, it is a marker, which looks like a page in swap.
        (DISCARDED | ZEROS, state) => matches!(state, Some(State::Hole | State::Swapped)),
        (_, state) => state.is_none(),
    };
    good && shown == Ok(Shown::Changes) && (0..PAGES).all(expected)
}
