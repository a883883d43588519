//! Copying in rounds while the program runs, so that little is left for when it stands still.
//!
//! Each round copies what was written during the one before, so what is left becomes less if the program writes slower
//! than this copies. Where it does not become less fast enough, the next gear is taken:
//!
//! 1. the store is waited for: rounds go as fast as its disk;
//! 2. what the store has no room for is kept in memory (`dump::backlog`), as far as there is some to spare;
//! 3. the program runs for slices of time only (`slices`).

use alloc::{vec, vec::Vec};

use stasis_protocol::coordinator::Refusal;
use stasis_sys::sync::monotonic_ns;

use crate::{
    arena,
    dump::Dump,
    quiesce::{self, Quiet},
    slices::Slices,
    snapshot::{
        Objects,
        mappings::{self, Found},
    },
    state::Stop,
};

/// How long the program has stood still, in microseconds.
#[derive(Clone, Copy, Default)]
pub struct Stood {
    /// At a time.
    pub longest_us: u64,
    pub total_us: u64,
}

impl Stood {
    /// Adds what the program has stood still between slices of time, and lets it run.
    pub fn run_freely(&mut self, dump: &mut Dump<'_>) {
        if let Some(slices) = dump.run_freely() {
            self.longest_us = self.longest_us.max(slices.longest_us);
            self.total_us += slices.total_us;
        }
    }

    pub const fn add(&mut self, us: u64) {
        if us > self.longest_us {
            self.longest_us = us;
        }
        self.total_us += us;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gear {
    Disk,
    Memory,
    Slices,
}

/// As many pages are copied faster than a round is begun.
const FEW: u64 = 32;
/// So many (768 KiB) take a tenth of a millisecond. A round takes as long from the program: it splits huge pages, makes page faults of
/// what is written on, and interrupts all its processors for each 2 MiB that were written to.
const LITTLE: u64 = 192;
/// So many (1 MiB) are copied faster than threads are stopped once more.
const UNWATCHED: u64 = 256;
/// So many (4 MiB) take a millisecond: not worth memory.
const SOME: u64 = 1024;
/// So many (24 MiB) take 4 ms: not worth slowing the program down.
const MANY: u64 = 6144;
const MOST_ROUNDS: u32 = 20;
/// In nanoseconds: of five milliseconds, the program runs for one; then for less.
const SLICE: u64 = 1_000_000;
const SHORTEST_SLICE: u64 = 200_000;
/// For so long, in microseconds, it may stand still in slices.
const MOST_SLICED: u64 = 2_000_000;

/// Copies in rounds while threads run, for as long as that makes what is left less; `progress` is called before each.
/// Nothing that takes time comes between the last round and the stop: the program writes on, perhaps in slices of time
/// until then. `looked_ns`: when the last checkpoint looked at what is written (CLOCK_MONOTONIC), where this one goes on from
/// it.
pub fn precopy(
    dump: &mut Dump<'_>,
    first: Vec<Found>,
    looked_ns: Option<u64>,
    stood: &mut Stood,
    progress: impl Fn(),
) -> Result<(), Vec<Refusal>> {
    dump.look_for_guards(&first);
    arena::prefault();
    let mut rounds = Rounds { before: u64::MAX, looked_ns, gear: Gear::Disk };
    let (mut mappings, mut watched, mut left) = (first, false, 0);
    for round in 1..=MOST_ROUNDS {
        progress();
        let begun_ns = monotonic_ns();
        let pages = dump.round(&mappings)?;
        if !dump.is_up_to_date()? {
            dump.make_room()?;
        }
        left = rounds.left(pages, begun_ns);
        if dump.unwatched() > UNWATCHED && !watched {
            // Once: the first checkpoint of a program, or one that has mapped much since the last.
            stood.add(watch_all(dump)?);
            watched = true;
        } else if round == MOST_ROUNDS || !rounds.is_worth_another(pages, left, dump) {
            break;
        }
        dump.make_room()?;
        mappings = present()?;
    }
    // What is left goes there if it is more than a half of the staging buffer.
    dump.allow_backlog();
    dump.make_last_room(left.min(2 * FEW) + dump.unwatched())
}

struct Rounds {
    /// How many pages the last round took.
    before: u64,
    /// When it began, or the last checkpoint looked.
    looked_ns: Option<u64>,
    gear: Gear,
}

impl Rounds {
    /// How many pages are to be expected now after a round that began then and took so many: written as fast as those.
    fn left(&mut self, pages: u64, begun_ns: u64) -> u64 {
        let took = monotonic_ns().saturating_sub(begun_ns);
        match self.looked_ns.replace(begun_ns).and_then(|before| begun_ns.checked_sub(before)) {
            Some(since) if since > took => (u128::from(pages) * u128::from(took) / u128::from(since)) as u64,
            _ => pages,
        }
    }

    /// Whether to go on after a round that took so many pages, in this gear or the next; `left` are to be expected otherwise.
    fn is_worth_another(&mut self, pages: u64, left: u64, dump: &mut Dump<'_>) -> bool {
        let before = core::mem::replace(&mut self.before, pages);
        if pages <= FEW || left <= LITTLE {
            return false;
        }
        if pages < before / 3 {
            return true;
        }
        match self.gear {
            Gear::Disk if pages > SOME => {
                dump.allow_backlog();
                self.gear = Gear::Memory;
                true
            }
            Gear::Memory if pages > MANY => {
                dump.slice(Slices::new(SLICE));
                self.gear = Gear::Slices;
                true
            }
            Gear::Slices if pages > MANY => {
                dump.shorten_slices(SHORTEST_SLICE) < MOST_SLICED || pages / 3 < before / 4
            }
            _ => pages / 3 < before / 4,
        }
    }
}

/// Stops the threads for as long as it takes to watch what they have mapped; how long they stood for it, in microseconds.
fn watch_all(dump: &mut Dump<'_>) -> Result<u64, Vec<Refusal>> {
    // Where the program runs in slices of time, this may be between two.
    let quiet = if dump.stands_still() {
        None
    } else {
        Some(quiesce::quiesce(Stop::Anywhere).map_err(|refusal| vec![refusal])?)
    };
    let mappings = present();
    if let Ok(mappings) = &mappings {
        dump.watch(mappings);
    }
    let stood_us = quiet.map_or(0, Quiet::release);
    mappings.map(|_| stood_us)
}

/// The mappings that there are now.
fn present() -> Result<Vec<Found>, Vec<Refusal>> {
    let mut objects = Objects::default();
    let found = mappings::capture(&mut objects);
    objects.close();
    found
}
