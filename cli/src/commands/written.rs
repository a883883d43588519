//! How much memory of processes has been written since their last checkpoint: what the next one has to copy. Asked of the
//! kernel, beside the tracker in the process, which is not disturbed: nothing is protected here.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
};

use stasis_sys::{
    Errno,
    pagemap::{self, CHECK_WPASYNC, FILE, PRESENT, Region, SWAPPED, ScanArgument, WRITTEN},
};

/// Bytes of a process' tracked memory that were written. `None` where nothing of it is tracked (before its first checkpoint,
/// without `wp-async`), or it may not be looked at.
pub fn bytes(pid: u32) -> Option<u64> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    });
    ranges.filter_map(|(start, end)| in_range(&pagemap, start, end)).reduce(|one, other| one + other)
}

/// Of one mapping, which is tracked as a whole or not.
fn in_range(pagemap: &File, mut start: u64, end: u64) -> Option<u64> {
    let mut regions = [Region::default(); 512];
    let mut bytes = 0;
    while start < end {
        let argument = ScanArgument {
            flags: CHECK_WPASYNC,
            start,
            end,
            // Pages of files are not the process' own before they are written.
            category_inverted: FILE,
            category_mask: WRITTEN | FILE,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: WRITTEN,
            ..ScanArgument::default()
        };
        let found = match pagemap::scan(pagemap.as_raw_fd(), argument, &mut regions) {
            Ok(found) => found,
            Err(Errno(_)) => return None,
        };
        let found = &regions[..found];
        bytes += found.iter().map(|region| region.end - region.start).sum::<u64>();
        match found.last() {
            // Where the kernel says that it came to may lie behind what it told.
            Some(last) if found.len() == regions.len() => start = last.end,
            _ => break,
        }
    }
    Some(bytes)
}
