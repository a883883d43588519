//! In which order pages were touched before they were there: what is recorded at a restart, and what the next one makes of
//! it.

use std::collections::{HashSet, VecDeque};

use stasis_protocol::store::WorkingSet;

use super::{GRANULE, Pages};

/// Runs of pages, in the order in which they were touched first.
pub type Order = Vec<Pages>;

/// So many pages are recorded, of 4 GiB: more than can be touched before all are there.
const MOST: u64 = 1 << 20;

/// So many faults back it is looked for neighbours: more threads than this seldom read memory at a time.
const RECENT: usize = 8;

/// What has been touched since the restart.
#[derive(Default)]
pub struct Recorder {
    runs: Order,
    pages: u64,
    recent: VecDeque<u64>,
}

impl Recorder {
    /// Notes that somebody waited for a page; what else is to be brought with it: its neighbours, where pages near it
    /// were touched just before. Who touches pages at random has no use for them.
    pub fn touched(&mut self, page: u64) -> Pages {
        let is_near = self.recent.iter().any(|recent| recent.abs_diff(page) <= GRANULE);
        self.recent.push_front(page);
        self.recent.truncate(RECENT);
        let granule = page / GRANULE * GRANULE;
        let wanted = if is_near { granule..granule + GRANULE } else { page..page + 1 };
        if self.pages < MOST && self.runs.last() != Some(&wanted) {
            self.pages += wanted.end - wanted.start;
            self.runs.push(wanted.clone());
        }
        wanted
    }

    /// What is to be kept for the next restart, given what this one had (`None`: just that). What was known may not have
    /// been touched this time; who can tell, it was there. So it stays, behind what is new where that is more.
    pub fn merged(&self, known: &[Pages]) -> Option<Order> {
        let pages = |runs: &[Pages]| runs.iter().map(|run| run.end.saturating_sub(run.start)).sum::<u64>();
        let seen: HashSet<u64> = known.iter().cloned().flatten().collect();
        let is_fresh = |run: &&Pages| (*run).clone().any(|page| !seen.contains(&page));
        let fresh: Order = self.runs.iter().filter(is_fresh).cloned().collect();
        if fresh.is_empty() {
            return None;
        }
        let fresh_first = pages(&fresh) > pages(known);
        let (first, then) = if fresh_first { (&fresh[..], known) } else { (known, &fresh[..]) };
        let mut left = MOST;
        let fits = |run: &&Pages| {
            let len = run.end.saturating_sub(run.start);
            let fits = len <= left;
            left = left.saturating_sub(len);
            fits
        };
        Some(first.iter().chain(then).take_while(fits).cloned().collect())
    }
}

/// As it is kept.
#[must_use]
pub fn encode(order: &[Pages]) -> WorkingSet {
    let mut before = 0;
    let step = |run: &Pages| {
        let step = run.start.wrapping_sub(before).cast_signed();
        before = run.start;
        (step, u32::try_from(run.end.saturating_sub(run.start)).unwrap_or(u32::MAX))
    };
    order.iter().map(step).collect()
}

/// From what was kept; pages that cannot be are left out.
#[must_use]
pub fn decode(set: &WorkingSet) -> Order {
    let mut at = 0u64;
    let mut pages = 0;
    set.iter()
        .map(|&(step, len)| {
            at = at.wrapping_add_signed(step);
            at..at.saturating_add(len.into())
        })
        .filter(|run| run.end <= stasis_protocol::pager::PAGES)
        .take_while(|run| {
            pages += run.end - run.start;
            pages <= MOST
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_come_along_where_pages_near_by_were_touched() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.touched(1000), 1000..1001);
        assert_eq!(recorder.touched(5), 5..6);
        assert_eq!(recorder.touched(1001), 992..1008);
        assert_eq!(recorder.touched(1008), 1008..1024);
        assert_eq!(recorder.touched(1_000_000), 1_000_000..1_000_001);
        assert_eq!(
            recorder.merged(&[]).unwrap(),
            [1000..1001, 5..6, 992..1008, 1008..1024, 1_000_000..1_000_001]
        );
    }

    #[test]
    fn what_was_known_stays_and_the_greater_part_comes_first() {
        let mut recorder = Recorder::default();
        recorder.touched(7000);
        recorder.touched(50);
        assert_eq!(recorder.merged(&[10..20, 50..51]).unwrap(), [10..20, 50..51, 7000..7001]);
        assert_eq!(recorder.merged(&[50..51, 7000..7001]), None);
        recorder.touched(9000);
        recorder.touched(8000);
        assert_eq!(recorder.merged(&[50..51, 50..51]).unwrap()[..3], [7000..7001, 9000..9001, 8000..8001]);
    }

    #[test]
    fn an_order_is_kept_and_read_back() {
        let order = vec![0x7f00_0000..0x7f00_0010, 3..4, 0x5_5000..0x5_5001];
        assert_eq!(decode(&encode(&order)), order);
        assert_eq!(decode(&vec![(-1, 1), (2, 3), (1, 1)]), [1..4, 2..3]);
        assert_eq!(decode(&vec![(1, u32::MAX)]), []);
    }
}
