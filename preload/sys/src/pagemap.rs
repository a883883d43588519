//! PAGEMAP_SCAN (Linux 6.7, fs/proc/task_mmu.c; linux/fs.h): which pages are there, and which were written.

use crate::{
    Result,
    file::{self, Fd},
};

/// struct pm_scan_arg.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanArgument {
    pub size: u64,
    pub flags: u64,
    pub start: u64,
    pub end: u64,
    pub walk_end: u64,
    pub regions: u64,
    pub regions_len: u64,
    pub max_pages: u64,
    pub category_inverted: u64,
    pub category_mask: u64,
    pub category_anyof_mask: u64,
    pub return_mask: u64,
}

/// struct page_region.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

/// Protects what matches.
pub const WP_MATCHING: u64 = 1 << 0;
/// EPERM where the range is not registered for asynchronous write protection.
pub const CHECK_WPASYNC: u64 = 1 << 1;

/// Not write-protected, in a range that is registered for it.
pub const WRITTEN: u64 = 1 << 1;
pub const FILE: u64 = 1 << 2;
pub const PRESENT: u64 = 1 << 3;
/// Also a marker: of write protection where nothing is populated, or of a guard on kernels without [`GUARD`].
pub const SWAPPED: u64 = 1 << 4;
/// The shared page of zeros.
pub const PFNZERO: u64 = 1 << 5;
/// A guard region (madvise(2), MADV_GUARD_INSTALL); known since Linux 6.15.
pub const GUARD: u64 = 1 << 8;

const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// One PAGEMAP_SCAN on an open /proc/PID/pagemap. How many regions were filled in; `argument.walk_end` says how far it
/// came, but may lie behind what was reported when the regions did not suffice.
///
/// # Errors
/// EPERM with [`CHECK_WPASYNC`], EINVAL for a category that the kernel does not know, ENOTTY before Linux 6.7.
pub fn scan(pagemap: Fd, argument: ScanArgument, regions: &mut [Region]) -> Result<usize> {
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        regions: regions.as_mut_ptr() as u64,
        regions_len: regions.len() as u64,
        ..argument
    };
    // SAFETY: PAGEMAP_SCAN takes this structure and fills in at most `regions_len` regions.
    unsafe { file::ioctl(pagemap, PAGEMAP_SCAN, &mut argument) }.map(|found| found.min(regions.len()))
}
