//! Threads in the code of the vDSO: after a restart on another kernel it would be another's.
//!
//! Its functions take some tens of nanoseconds. So before a program is ended, a thread that is met there runs on for a moment
//! and is stopped again, until it is met elsewhere. Not seen is one that a handler of the program's has interrupted there: what it finds when
//! the handler returns is in `cli/src/restart/vdso.rs`.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use stasis_protocol::image::Backing;
use stasis_sys::sync;

use crate::snapshot::mappings::Found;

static START: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Until when a thread that is met there runs on, by CLOCK_MONOTONIC in nanoseconds; then it is stopped all the same.
static UNTIL: AtomicU64 = AtomicU64::new(0);

/// For how long they run on, in nanoseconds.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// Only a program that is to end loses nothing by it, since all others stand still meanwhile: where processors are few, a
/// thread that reads clocks all the time needed 15 ms on average to be met elsewhere (load 13 on two), and 90 at most.
const BEFORE_ITS_END: u64 = 1_000_000_000;

/// Where it is, if it is mapped.
pub fn find(mappings: &[Found]) -> Option<&Found> {
    let is_vdso = |backing: &Backing| matches!(backing, Backing::Kernel(name) if name == "[vdso]");
    mappings.iter().find(|found| is_vdso(&found.mapping.backing))
}

/// To be told before threads are stopped for a snapshot. `hold`: they will not run again.
pub fn note(mappings: &[Found], hold: bool) {
    PATIENCE.store(if hold { BEFORE_ITS_END } else { 0 }, Relaxed);
    let (start, end) = find(mappings).map_or((0, 0), |found| (found.mapping.start, found.mapping.end));
    START.store(start, Relaxed);
    END.store(end, Relaxed);
}

/// Threads are being stopped from now on.
pub fn begin(now: u64) {
    UNTIL.store(now + PATIENCE.load(Relaxed), Relaxed);
}

/// Whether a thread that is met there is to be stopped all the same.
pub fn is_urgent() -> bool {
    sync::monotonic_ns() >= UNTIL.load(Relaxed)
}

/// Whether an address is in it.
pub fn holds(address: u64) -> bool {
    (START.load(Relaxed)..END.load(Relaxed)).contains(&address)
}
