//! Bringing what nobody has asked for yet: first what was touched at the last restart, in that order, then the rest in the
//! order of addresses.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use stasis_protocol::pager::Map;

use super::{Pager, Pages, Stop, space::Space};
use crate::hash::PAGE_SIZE;

/// Pages that a thread takes at a time: 1 MiB.
const CHUNK: u64 = 256;

/// The same where they come in the order in which they were touched: the next ones are wanted soon.
const ORDERED: u64 = 64;

/// What is to be brought, in order.
pub struct Plan {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the rest comes, too.
    all: AtomicBool,
}

struct State {
    /// Each for one thread to take, in address order.
    ordered: std::vec::IntoIter<Vec<Pages>>,
    /// Where the search for the rest goes on: the region, and the page in it.
    region: usize,
    page: u64,
}

impl Plan {
    pub fn new(space: &Space, order: &[Pages], all: bool) -> Self {
        let page = space.regions().first().map_or(0, |region| region.start);
        let state = State { ordered: batches(order).into_iter(), region: 0, page };
        Self { state: Mutex::new(state), changed: Condvar::new(), all: AtomicBool::new(all) }
    }

    /// Brings everything from now on.
    pub fn hurry(&self) {
        let _state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.all.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Wakes the threads: something urgent has come.
    pub fn look_again(&self) {
        let _state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// The next range; waits where nothing is to be brought now. `None`: nothing will be.
    fn next(&self, space: &Space) -> Option<Vec<Pages>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if space.left() == 0 {
                return None;
            }
            if let Some(urgent) = space.next_urgent() {
                return Some(vec![urgent]);
            }
            if let Some(pages) = state.ordered.next() {
                return Some(pages);
            }
            if self.all.load(Ordering::Acquire) {
                return state.rest(space).map(|pages| vec![pages]);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// An order in parts.
fn batches(order: &[Pages]) -> Vec<Vec<Pages>> {
    let (mut batches, mut batch, mut pages) = (Vec::new(), Vec::new(), 0);
    for run in order {
        pages += run.end - run.start;
        batch.push(run.clone());
        if pages >= ORDERED {
            batch.sort_unstable_by_key(|run| run.start);
            batches.push(std::mem::take(&mut batch));
            pages = 0;
        }
    }
    batch.sort_unstable_by_key(|run| run.start);
    batches.push(batch);
    batches
}

impl State {
    /// The next absent pages in the order of addresses; from the beginning again when the end is reached: what was moved
    /// meanwhile may have been overlooked.
    fn rest(&mut self, space: &Space) -> Option<Pages> {
        let regions = space.regions();
        for _ in 0..=regions.len() {
            let region = regions.get(self.region)?;
            let from = self.page.clamp(region.start, region.end);
            if let Some(run) = space.table.run(Map::Absent, from..region.end) {
                // Whole chunks, and what is between the absent parts of one: threads need not ask for each.
                let end = ((run.start / CHUNK + 1) * CHUNK).min(region.end);
                self.page = end;
                return Some(run.start..end);
            }
            self.region = (self.region + 1) % regions.len();
            self.page = regions[self.region].start;
        }
        // The last ones are on their way, in other threads.
        None
    }
}

/// Starts the threads.
///
/// # Errors
/// There is no room for a thread.
pub fn start(pager: &Arc<Pager>) -> io::Result<()> {
    let processors = thread::available_parallelism().map_or(2, usize::from);
    for _ in 0..processors.clamp(2, 4) {
        let pager = Arc::clone(pager);
        thread::Builder::new().name("stasis-fetch".into()).spawn(move || {
            // Takes the processor from nobody, the program least of all, but has its share beside others.
            let none = libc::sched_param { sched_priority: 0 };
            // SAFETY: sched_setscheduler(2) of the calling thread reads one structure.
            unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) };
            if let Err(stop) = bring(&pager) {
                pager.stop(&pager.space, &stop);
            }
        })?;
    }
    Ok(())
}

fn bring(pager: &Pager) -> Result<(), Stop> {
    let mut buffer = vec![0; CHUNK as usize * PAGE_SIZE];
    while let Some(pages) = pager.prefetch.next(&pager.space) {
        pager.space.fetch_all(&pages, &mut buffer, || {
            // Those who answer faults read the event.
            thread::yield_now();
            if pager.ended.load(Ordering::Acquire) { Err(Stop::Ended) } else { Ok(()) }
        })?;
        if pager.ended.load(Ordering::Acquire) {
            break;
        }
    }
    if pager.space.left() == 0 {
        pager.announce();
    }
    Ok(())
}
