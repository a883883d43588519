//! How the pages came: counts, and how long threads waited for the pager.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Buckets of fault times: eight for each power of two, so that a bound is off by an eighth at most.
const BUCKETS: usize = 256;

pub struct Statistics {
    begun: Instant,
    complete_ns: AtomicU64,
    /// Absent pages that somebody waited for.
    faults: AtomicU64,
    /// Pages of zeros, in memory that was never used or was discarded.
    zeros: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            complete_ns: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            zeros: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Statistics {
    /// Counts a page that was waited for; whether it is the first.
    pub fn fault(&self, took: Duration) -> bool {
        self.times[bucket(took.as_nanos() as u64)].fetch_add(1, Ordering::Relaxed);
        self.faults.fetch_add(1, Ordering::Relaxed) == 0
    }

    pub fn zero(&self) {
        self.zeros.fetch_add(1, Ordering::Relaxed);
    }

    pub fn complete(&self) {
        self.complete_ns.store(self.begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    pub fn zeros(&self) -> u64 {
        self.zeros.load(Ordering::Relaxed)
    }

    /// How long it took until all pages were in; `None`: they are not.
    pub fn complete_us(&self) -> Option<u64> {
        Some(self.complete_ns.load(Ordering::Relaxed) / 1000).filter(|&us| us > 0)
    }

    /// The time that so many of a thousand faults did not exceed, in nanoseconds.
    pub fn quantile(&self, of_a_thousand: u64) -> Option<u64> {
        let counts: Vec<u64> = self.times.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let mut before = 0;
        counts.iter().enumerate().find_map(|(bucket, count)| {
            before += count;
            (total > 0 && before * 1000 >= total * of_a_thousand).then(|| upper(bucket))
        })
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(8);
    let power = ns.ilog2();
    (((power - 3) * 8) as usize + (ns >> (power - 3) & 7) as usize).min(BUCKETS - 1)
}

/// The greatest time in a bucket.
fn upper(bucket: usize) -> u64 {
    let (power, part) = (bucket as u32 / 8 + 3, bucket as u64 % 8);
    ((part + 9) << (power - 3)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_off_by_an_eighth_at_most() {
        for ns in [8, 9, 100, 1_000, 12_345, 1_000_000, 123_456_789] {
            let upper = upper(bucket(ns));
            assert!(ns <= upper && upper <= ns + ns / 8, "{ns}: {upper}");
        }
        let statistics = Statistics::default();
        assert_eq!(statistics.quantile(500), None);
        let firsts = (1..=1000).filter(|&us| statistics.fault(Duration::from_micros(us)));
        assert_eq!(firsts.count(), 1);
        let (median, p99) = (statistics.quantile(500).unwrap(), statistics.quantile(990).unwrap());
        assert!(
            (500_000..570_000).contains(&median) && (990_000..1_120_000).contains(&p99),
            "{median} {p99}"
        );
    }
}
