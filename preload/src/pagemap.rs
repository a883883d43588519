//! Which pages are there: PAGEMAP_SCAN (Linux 6.7, fs/proc/task_mmu.c), or reading
//! /proc/self/pagemap where that is missing.

use alloc::{vec, vec::Vec};

use stasis_protocol::PAGE_SIZE;
use stasis_sys::{Errno, Result, file, file::Fd, process};

use crate::procfs;

/// Pages in a row that are alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    pub start: u64,
    pub end: u64,
    /// In swap, or a marker: not to be loaded without care.
    pub swapped: bool,
    /// A guard region (madvise(2), MADV_GUARD_INSTALL, Linux 6.13).
    pub guard: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Populated, and not the shared page of zeros.
    Populated,
    /// Of those, the ones that are not a file's own.
    Modified,
}

/// struct pm_scan_arg (linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// struct page_region (linux/fs.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// How many regions one scan may report.
const REGIONS: usize = 1024;

const PAGEMAP_SCAN: u64 = 0xc060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Linux 6.15.
const PAGE_IS_GUARD: u64 = 1 << 8;

/// An open /proc/self/pagemap.
pub struct Pagemap {
    fd: Fd,
    /// Filled in by each scan: one array for all of them. 24 KiB for each mapping would be as many page faults
    /// of the arena while the program stands still.
    regions: Vec<Region>,
}

impl Pagemap {
    pub fn open() -> Result<Self> {
        let fd = procfs::open(c"/proc/thread-self/pagemap")?;
        Ok(Self { fd, regions: vec![Region::default(); REGIONS] })
    }

    pub fn close(self) {
        let _ = file::close(self.fd);
    }

    /// The runs of `which` pages in a range, in address order.
    ///
    /// # Errors
    /// The kernel's, of the ioctl or the read.
    pub fn scan(&mut self, start: u64, end: u64, which: Which) -> Result<Vec<Run>> {
        for guard in [PAGE_IS_GUARD, 0] {
            match self.scan_regions(start, end, which, guard) {
                // An unknown category: an older kernel.
                Err(Errno(libc::EINVAL)) => {}
                Err(Errno(libc::ENOTTY)) => break,
                result => return result,
            }
        }
        self.read(start, end, which)
    }

    fn scan_regions(&mut self, start: u64, end: u64, which: Which, guard: u64) -> Result<Vec<Run>> {
        let regions = &mut self.regions;
        let mut runs = Vec::new();
        let mut at = start;
        while at < end {
            let unwanted = PAGE_IS_PFNZERO | if which == Which::Modified { PAGE_IS_FILE } else { 0 };
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: at,
                end,
                regions: regions.as_mut_ptr() as u64,
                regions_len: REGIONS as u64,
                category_inverted: unwanted,
                category_mask: unwanted,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED | guard,
                return_mask: PAGE_IS_SWAPPED | guard,
                ..ScanArgument::default()
            };
            // SAFETY: PAGEMAP_SCAN takes this structure and fills in at most `regions_len` regions.
            let found = unsafe { file::ioctl(self.fd, PAGEMAP_SCAN, &mut argument)? };
            for region in &regions[..found.min(REGIONS)] {
                runs.push(Run {
                    start: region.start.max(at),
                    end: region.end,
                    swapped: region.categories & PAGE_IS_SWAPPED != 0,
                    guard: region.categories & guard != 0,
                });
            }
            // `walk_end` may lie behind what was reported when the regions did not suffice.
            at = match regions[..found.min(REGIONS)].last() {
                Some(last) if found == REGIONS => last.end,
                _ => end,
            };
        }
        Ok(runs)
    }

    /// pagemap(5): 64 bits a page.
    fn read(&self, start: u64, end: u64, which: Which) -> Result<Vec<Run>> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE: u64 = 1 << 61;
        const GUARD: u64 = 1 << 58;
        let page = PAGE_SIZE as u64;
        let mut runs: Vec<Run> = Vec::new();
        let mut entries = vec![0u8; 32 << 10];
        let mut at = start;
        while at < end {
            let len = entries.len().min(((end - at) / page * 8) as usize);
            let read = file::pread(self.fd, &mut entries[..len], at / page * 8)?;
            if read < 8 {
                break;
            }
            for entry in entries[..read].as_chunks::<8>().0 {
                let entry = u64::from_ne_bytes(*entry);
                let wanted = entry & (PRESENT | SWAPPED | GUARD) != 0
                    && !(which == Which::Modified && entry & FILE != 0);
                let run = Run {
                    start: at,
                    end: at + page,
                    swapped: entry & SWAPPED != 0,
                    guard: entry & GUARD != 0,
                };
                at += page;
                match runs.last_mut() {
                    _ if !wanted => {}
                    Some(last)
                        if last.end == run.start
                            && (last.swapped, last.guard) == (run.swapped, run.guard) =>
                    {
                        last.end = run.end;
                    }
                    _ => runs.push(run),
                }
            }
        }
        Ok(runs)
    }
}

/// mincore(2): for each page of a mapping whether its object holds it; bit 0.
pub fn resident(address: u64, len: u64) -> Result<Vec<u8>> {
    let mut states = vec![0u8; (len as usize).div_ceil(PAGE_SIZE)];
    let states_at = states.as_mut_ptr() as usize;
    process::numbers(libc::SYS_mincore, [address as usize, len as usize, states_at, 0, 0])?;
    Ok(states)
}
