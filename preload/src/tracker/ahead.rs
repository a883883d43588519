//! What was found before anything was copied, by a tracker that looks and forgets in two steps. The checkpoint thread
//! itself writes to this library's state while it copies: looked at before and forgotten after that, it would be lost.

use alloc::vec::Vec;

use super::{DirtyTracker, Moment, Range, Shown};
use crate::pagemap::{Pagemap, Run};

#[derive(Default)]
pub struct Ahead {
    runs: Vec<Run>,
    /// Of each mapping: where it starts, what its runs are, and how many there are up to it.
    ranges: Vec<(u64, Shown, usize)>,
    /// How many of them have been asked for.
    next: usize,
}

impl Ahead {
    /// Looks at all ranges, while threads stand still, and has the tracker forget.
    pub fn look(
        tracker: &mut dyn DirtyTracker,
        pagemap: &mut Pagemap,
        ranges: impl Iterator<Item = Range>,
        all: bool,
    ) -> Self {
        let mut ahead = Self::default();
        let mut found = Vec::new();
        for range in ranges {
            // What cannot be looked at is taken whole.
            if let Ok(shown) = tracker.look(pagemap, range, all, Moment::Stopped, &mut found) {
                ahead.runs.extend_from_slice(&found);
                ahead.ranges.push((range.start, shown, ahead.runs.len()));
            }
        }
        tracker.looked_at_all();
        ahead
    }

    /// What the tracker has said of a range; they are asked for in order.
    pub fn next(&mut self, range: Range, found: &mut Vec<Run>) -> Option<Shown> {
        let &(_, shown, end) = self.ranges.get(self.next).filter(|(start, ..)| *start == range.start)?;
        let start = self.next.checked_sub(1).map_or(0, |last| self.ranges[last].2);
        self.next += 1;
        found.clear();
        found.extend_from_slice(&self.runs[start..end]);
        Some(shown)
    }
}
