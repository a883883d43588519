//! Bringing what nobody has asked for yet: first what was touched at the last restart, in that order, then the rest in the
//! order of addresses.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use stasis_protocol::pager::Map;

use super::{Pager, Pages, Stop, known::Known, priority, space::Space};
use crate::hash::PAGE_SIZE;

/// Pages that a thread takes at a time: 512 KiB.
const CHUNK: u64 = 128;

/// So many faults since it was last looked are many.
const BUSY: u64 = 2;

/// How long to give way before it is looked again: longer than other programs keep this one from its processor.
const PAUSE: Duration = Duration::from_millis(5);

/// How long the program has the processors for itself before all of its pages are listed, if it does not wait for one sooner: that it
/// goes on at all takes a few milliseconds of two processors.
const BEGINNING: Duration = Duration::from_millis(20);

/// So often the threads give way in all, for what the program touches first to be seen: to some the rest matters, too.
const LEARNING: usize = 400;

/// So often each does before it brings more, when that is over.
const GIVE_WAY: u32 = 1;

/// What is to be brought, in order.
pub struct Plan {
    known: Known,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the rest comes, too.
    all: AtomicBool,
    /// Whether somebody waits for all of it.
    hurry: AtomicBool,
    /// How often threads have given way.
    paused: AtomicUsize,
}

struct State {
    /// Where the search for the rest goes on: the region, and the page in it.
    region: usize,
    page: u64,
}

impl Plan {
    pub fn new(space: &Space, known: Known, all: bool) -> Self {
        let page = space.regions().first().map_or(0, |region| region.start);
        let state = State { region: 0, page };
        Self {
            known,
            state: Mutex::new(state),
            changed: Condvar::new(),
            all: AtomicBool::new(all),
            hurry: AtomicBool::new(false),
            paused: AtomicUsize::new(0),
        }
    }

    /// What is known to be touched together with a page: for the caller to bring.
    pub fn take_with(&self, page: u64) -> Option<&[Pages]> {
        self.known.take_with(page)
    }

    /// Whether there is something that is worth more than not to disturb the program.
    fn is_urgent(&self, space: &Space) -> bool {
        self.hurry.load(Ordering::Acquire) || space.is_urgent() || space.left() == 0 || self.known.any_left()
    }

    /// Brings everything from now on, without giving way.
    pub fn hurry(&self) {
        let _state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.all.store(true, Ordering::Release);
        self.hurry.store(true, Ordering::Release);
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
            if let Some(batch) = self.known.next() {
                return Some(batch.to_vec());
            }
            if self.all.load(Ordering::Acquire) {
                // What is listed comes into the table before.
                let is_listed = space.is_listed();
                let rest = state.rest(space);
                if rest.is_some() || is_listed {
                    return rest.map(|pages| vec![pages]);
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
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
            priority::bring_the_rest();
            if let Err(stop) = bring(&pager) {
                pager.stop(&pager.space, &stop);
            }
        })?;
    }
    Ok(())
}

/// Waits while the program waits for pages again and again: what it touches is what it needs, and bringing the rest would
/// take processor and memory from that, and hide what it touches from the record. `seen`: how many faults there had been
/// when this thread last looked.
pub fn give_way(pager: &Pager, seen: &mut u64) {
    let mut pauses = 0;
    loop {
        let before = std::mem::replace(seen, pager.statistics.faults());
        if *seen - before < BUSY || pager.prefetch.is_urgent(&pager.space) {
            return;
        }
        let is_learning = pager.prefetch.paused.fetch_add(1, Ordering::Relaxed) < LEARNING;
        if !is_learning && pauses >= GIVE_WAY {
            return;
        }
        pauses += 1;
        thread::sleep(PAUSE);
    }
}

/// Waits until the program runs, as far as can be seen from here.
pub fn await_beginning(pager: &Pager) {
    let end = Instant::now() + BEGINNING;
    let plan = &pager.prefetch;
    let mut state = plan.state.lock().unwrap_or_else(PoisonError::into_inner);
    while pager.statistics.faults() == 0 && !plan.is_urgent(&pager.space) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        state = plan.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn bring(pager: &Pager) -> Result<(), Stop> {
    let mut buffer = vec![0; CHUNK as usize * PAGE_SIZE];
    let mut faults = 0;
    loop {
        give_way(pager, &mut faults);
        let Some(pages) = pager.prefetch.next(&pager.space) else { break };
        pager.space.fetch_all(&pages, false, &mut buffer, || {
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
