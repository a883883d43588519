//! Which pages are there: PAGEMAP_SCAN (Linux 6.7), or reading /proc/self/pagemap where that is missing.

use alloc::{vec, vec::Vec};

use stasis_protocol::PAGE_SIZE;
use stasis_sys::{
    Errno, Result, file,
    file::Fd,
    pagemap::{self, FILE, GUARD, PFNZERO, PRESENT, Region, SWAPPED, ScanArgument},
    process,
};

use crate::{procfs, tracker::Range};

/// Pages in a row that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub start: u64,
    pub end: u64,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The process' own page.
    Present,
    /// In swap, on its way to another page frame, or a marker: not to be loaded without care.
    Swapped,
    /// Nothing of the process' own: never touched, discarded, or the file's.
    Hole,
    /// A guard region (madvise(2), MADV_GUARD_INSTALL, Linux 6.13).
    Guard,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Populated, and not the shared page of zeros.
    Populated,
    /// Of those, the ones that are not a file's own.
    Modified,
}

/// A bit of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
mod entry {
    pub const PRESENT: u64 = 1 << 63;
    pub const SWAPPED: u64 = 1 << 62;
    pub const FILE: u64 = 1 << 61;
    pub const GUARD: u64 = 1 << 58;
    /// Mapped once. The shared page of zeros is not, nor is a page that a child has too.
    pub const EXCLUSIVE: u64 = 1 << 56;
    pub const SOFT_DIRTY: u64 = 1 << 55;
}

/// How many regions one scan may report.
const REGIONS: usize = 1024;

/// An open /proc/self/pagemap.
pub struct Pagemap {
    fd: Fd,
    /// Filled in by each scan: one array for all of them. 24 KiB for each mapping would be as many page faults
    /// of the arena while the program stands still.
    regions: Vec<Region>,
    /// [`GUARD`], or 0 where the kernel does not know it.
    guard: u64,
    /// Whether the kernel has PAGEMAP_SCAN.
    scans: bool,
}

impl Pagemap {
    pub fn open() -> Result<Self> {
        let fd = procfs::open(c"/proc/thread-self/pagemap")?;
        let (mut guard, mut scans) = (GUARD, true);
        let probe = ScanArgument { category_mask: GUARD, return_mask: GUARD, ..ScanArgument::default() };
        match pagemap::scan(fd, probe, &mut []) {
            Err(Errno(libc::EINVAL)) => guard = 0,
            Err(Errno(libc::ENOTTY)) => scans = false,
            _ => {}
        }
        Ok(Self { fd, regions: vec![Region::default(); REGIONS], guard, scans })
    }

    pub fn close(&self) {
        let _ = file::close(self.fd);
    }

    /// Finds the runs of `which` pages in a range, and of guards, in address order; what was found before is gone.
    ///
    /// # Errors
    /// The kernel's, of the ioctl or the read.
    pub fn populated(&mut self, start: u64, end: u64, which: Which, found: &mut Vec<Run>) -> Result<()> {
        if !self.scans {
            return self.read(start, end, which, found);
        }
        let unwanted = PFNZERO | if which == Which::Modified { FILE } else { 0 };
        let argument = ScanArgument {
            category_inverted: unwanted,
            category_mask: unwanted,
            category_anyof_mask: PRESENT | SWAPPED | self.guard,
            return_mask: PRESENT | SWAPPED | self.guard,
            ..ScanArgument::default()
        };
        found.clear();
        self.scan(start, end, which, argument, found)
    }

    /// Finds the guard regions of a range.
    ///
    /// # Errors
    /// The kernel's.
    pub fn guards(&mut self, start: u64, end: u64, found: &mut Vec<Run>) -> Result<()> {
        found.clear();
        if !self.scans || self.guard == 0 {
            return Ok(());
        }
        let argument = ScanArgument { category_mask: GUARD, return_mask: GUARD, ..ScanArgument::default() };
        self.scan(start, end, Which::Populated, argument, found)
    }

    /// Scans a range with `argument`'s flags and categories, in as many calls as it takes, and adds what they
    /// report to `runs`.
    ///
    /// # Errors
    /// The kernel's; with [`WP_MATCHING`](pagemap::WP_MATCHING), what is in `runs` may have been protected.
    pub fn scan(
        &mut self,
        start: u64,
        end: u64,
        which: Which,
        argument: ScanArgument,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        let mut at = start;
        while at < end {
            // The kernel takes memory for as many as there is room for, up to 12 KiB, which costs more than a small scan.
            let pages = (end - at).div_ceil(PAGE_SIZE as u64);
            let regions = &mut self.regions[..REGIONS.min(pages as usize)];
            let found = pagemap::scan(self.fd, ScanArgument { start: at, end, ..argument }, regions)?;
            for region in &regions[..found] {
                let state = Self::state(region.categories, which);
                runs.push(Run { start: region.start.max(at), end: region.end, state });
            }
            // `walk_end` may lie behind what was reported when the regions did not suffice.
            at = match regions[..found].last() {
                Some(last) if found == regions.len() => last.end,
                _ => end,
            };
        }
        Ok(())
    }

    /// What to return of each page so that [`Self::scan`] can tell its state.
    pub fn states(&self) -> u64 {
        PRESENT | SWAPPED | FILE | PFNZERO | self.guard
    }

    fn state(categories: u64, which: Which) -> State {
        let is = |category| categories & category != 0;
        if is(GUARD) {
            State::Guard
        } else if is(PFNZERO) || which == Which::Modified && is(FILE) {
            State::Hole
        } else if is(SWAPPED) {
            State::Swapped
        } else if is(PRESENT) {
            State::Present
        } else {
            State::Hole
        }
    }

    /// Finds the populated pages of a range that have the soft-dirty bit, and all holes. What was found before is gone.
    ///
    /// A page that was discarded and then read is the shared page of zeros, without the bit: another that reads as
    /// zeros may be it (which page it is, the kernel tells only to CAP_SYS_ADMIN), and counts as a hole, which it equals.
    ///
    /// # Errors
    /// The kernel's.
    pub fn changed(&mut self, range: Range, found: &mut Vec<Run>) -> Result<()> {
        let Range { start, end, which, readable, .. } = range;
        self.entries(start, end, found, |at, bits| {
            let state = Self::state_of_entry(bits, which);
            let changed = matches!(state, State::Hole | State::Guard) || bits & entry::SOFT_DIRTY != 0;
            let not_zeros = changed
                || which == Which::Modified
                || state != State::Present
                || bits & entry::EXCLUSIVE != 0
                // SAFETY: it is populated and readable, and every thread that could change that is stopped.
                || readable && !unsafe { is_zeros(at) };
            match (changed, not_zeros) {
                (true, _) => Some(state),
                (false, true) => None,
                (false, false) if readable => Some(State::Hole),
                (false, false) => Some(State::Present),
            }
        })
    }

    /// Reads the entries of a range: what [`Self::populated`] finds.
    fn read(&mut self, start: u64, end: u64, which: Which, found: &mut Vec<Run>) -> Result<()> {
        self.entries(start, end, found, |_, bits| match Self::state_of_entry(bits, which) {
            State::Hole => None,
            state => Some(state),
        })
    }

    fn state_of_entry(bits: u64, which: Which) -> State {
        let is = |bit| bits & bit != 0;
        if is(entry::GUARD) {
            State::Guard
        } else if which == Which::Modified && is(entry::FILE) {
            State::Hole
        } else if is(entry::SWAPPED) {
            State::Swapped
        } else if is(entry::PRESENT) {
            State::Present
        } else {
            State::Hole
        }
    }

    /// Reads the entries of a range, 64 bits a page, and finds those of which `state` says one.
    fn entries(
        &mut self,
        start: u64,
        end: u64,
        found: &mut Vec<Run>,
        state: impl Fn(u64, u64) -> Option<State>,
    ) -> Result<()> {
        let page = PAGE_SIZE as u64;
        found.clear();
        let mut entries = vec![0u8; 32 << 10];
        let mut at = start;
        while at < end {
            let len = entries.len().min(((end - at) / page * 8) as usize);
            let read = file::pread(self.fd, &mut entries[..len], at / page * 8)?;
            if read < 8 {
                break;
            }
            for bits in entries[..read].as_chunks::<8>().0 {
                let run = state(at, u64::from_ne_bytes(*bits)).map(|state| Run {
                    start: at,
                    end: at + page,
                    state,
                });
                at += page;
                match (run, found.last_mut()) {
                    (None, _) => {}
                    (Some(run), Some(last)) if last.end == run.start && last.state == run.state => {
                        last.end = run.end;
                    }
                    (Some(run), _) => found.push(run),
                }
            }
        }
        Ok(())
    }
}

/// Whether a page reads as zeros.
///
/// # Safety
/// It is readable, and nobody writes to it meanwhile.
unsafe fn is_zeros(at: u64) -> bool {
    // SAFETY: the caller's promise; a page is aligned.
    let words = unsafe { core::slice::from_raw_parts(at as *const u64, PAGE_SIZE / 8) };
    words.iter().all(|&word| word == 0)
}

/// mincore(2): for each page of a mapping whether its object holds it; bit 0.
pub fn resident(address: u64, len: u64) -> Result<Vec<u8>> {
    let mut states = vec![0u8; (len as usize).div_ceil(PAGE_SIZE)];
    let states_at = states.as_mut_ptr() as usize;
    process::numbers(libc::SYS_mincore, [address as usize, len as usize, states_at, 0, 0])?;
    Ok(states)
}
