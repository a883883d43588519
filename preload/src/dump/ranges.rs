//! Ranges of addresses: which mappings are tracked in what way, and lists of ranges.

use alloc::vec::Vec;

use crate::{
    pagemap::{Run, State, Which},
    procfs,
    snapshot::mappings::{Content, Found},
    tracker::Range,
};

use super::{PAGE, is_readable};

/// Which mappings are scanned with their holes: those that are populated for the most part, as far as can be told
/// without looking. What page tables cost is bounded: a 512th of four times the resident memory.
#[derive(Clone, Copy)]
pub struct Density {
    /// In bytes.
    left: u64,
}

impl Density {
    pub fn of_this_process() -> Self {
        let content = procfs::read(c"/proc/thread-self/statm").unwrap_or_default();
        let resident = procfs::words(&content).nth(1).and_then(procfs::decimal).unwrap_or(0);
        Self { left: resident * PAGE * 4 }
    }

    /// The range of a mapping that can be tracked.
    pub fn range(&mut self, found: &Found) -> Option<Range> {
        let which = match found.content {
            Content::Populated => Which::Populated,
            Content::Modified => Which::Modified,
            Content::All | Content::None => return None,
        };
        let (start, end) = (found.mapping.start, found.mapping.end);
        let dense = end - start <= self.left;
        if dense {
            self.left -= end - start;
        }
        Some(Range { start, end, which, dense, readable: is_readable(&found.mapping) })
    }
}

/// Whether a sorted list of ranges that do not touch each other holds a range.
pub fn covers(ranges: &[(u64, u64)], start: u64, end: u64) -> bool {
    let at = ranges.partition_point(|range| range.1 <= start);
    ranges.get(at).is_some_and(|range| range.0 <= start && end <= range.1)
}

/// Adds a range to such a list.
pub fn add(ranges: &mut Vec<(u64, u64)>, mut start: u64, mut end: u64) {
    let first = ranges.partition_point(|range| range.1 < start);
    let behind = ranges.partition_point(|range| range.0 <= end);
    if let (Some(one), Some(last)) = (ranges[..behind].get(first), ranges[first..behind].last()) {
        (start, end) = (start.min(one.0), end.max(last.1));
    }
    ranges.splice(first..behind, [(start, end)]);
}

/// Adds holes where nothing was found.
pub fn fill_gaps(found: &mut Vec<Run>, start: u64, end: u64) {
    let mut whole = Vec::with_capacity(2 * found.len() + 1);
    let mut at = start;
    for &run in found.iter() {
        if at < run.start {
            whole.push(Run { start: at, end: run.start, state: State::Hole });
        }
        whole.push(run);
        at = run.end;
    }
    if at < end {
        whole.push(Run { start: at, end, state: State::Hole });
    }
    *found = whole;
}
