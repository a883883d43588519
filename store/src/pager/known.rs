//! What is known to be touched, and in which order: in batches, each of which is brought by one thread.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Pages;

/// Pages of a batch: the next ones are wanted soon, and whoever waits for one of them waits for all.
const BATCH: u64 = 64;

#[derive(Default)]
pub struct Known {
    /// Each in address order.
    batches: Vec<(Vec<Pages>, AtomicBool)>,
    /// The first that nobody may have taken.
    next: AtomicUsize,
    /// Runs with the batch that each is in, by address.
    index: Vec<(Pages, u32)>,
}

impl Known {
    #[must_use]
    pub fn new(order: &[Pages]) -> Self {
        let mut known = Self::default();
        let (mut batch, mut pages) = (Vec::new(), 0);
        for run in order {
            pages += run.end - run.start;
            batch.push(run.clone());
            if pages >= BATCH {
                known.push(std::mem::take(&mut batch));
                pages = 0;
            }
        }
        known.push(batch);
        known.index.sort_unstable_by_key(|(run, _)| run.start);
        known
    }

    fn push(&mut self, mut batch: Vec<Pages>) {
        if batch.is_empty() {
            return;
        }
        batch.sort_unstable_by_key(|run| run.start);
        let number = self.batches.len() as u32;
        self.index.extend(batch.iter().map(|run| (run.clone(), number)));
        self.batches.push((batch, AtomicBool::new(false)));
    }

    /// Whether there are batches that nobody has taken.
    pub fn any_left(&self) -> bool {
        self.next.load(Ordering::Acquire) < self.batches.len()
    }

    /// Takes the next batch.
    pub fn next(&self) -> Option<&[Pages]> {
        while self.any_left() {
            let at = self.next.fetch_add(1, Ordering::AcqRel);
            let batch = self.take(at);
            if batch.is_some() {
                return batch;
            }
        }
        None
    }

    /// Takes the batch that a page is in; also from one who has it and may not have run for a while.
    pub fn take_with(&self, page: u64) -> Option<&[Pages]> {
        let at = self.index.partition_point(|(run, _)| run.start <= page).checked_sub(1)?;
        let (run, batch) = &self.index[at];
        if !run.contains(&page) {
            return None;
        }
        let (batch, taken) = &self.batches[*batch as usize];
        taken.store(true, Ordering::Release);
        Some(batch)
    }

    fn take(&self, at: usize) -> Option<&[Pages]> {
        let (batch, taken) = self.batches.get(at)?;
        (!taken.swap(true, Ordering::AcqRel)).then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_batch_is_taken_once_in_order_or_by_a_page_of_it() {
        let order: Vec<Pages> = (0..200).map(|at| (1000 - at * 5)..(1000 - at * 5 + 1)).collect();
        let known = Known::new(&order);
        let first = known.next().unwrap();
        assert_eq!((first.len(), &first[0], &first[63]), (64, &(685..686), &(1000..1001)));
        assert_eq!(known.take_with(1000).unwrap()[63], 1000..1001);
        assert_eq!(known.take_with(999), None, "not known");
        assert_eq!(known.take_with(5).unwrap().len(), 8);
        assert_eq!([known.next().unwrap().len(), known.next().unwrap().len()], [64, 64]);
        assert!(known.next().is_none() && !known.any_left());
    }
}
