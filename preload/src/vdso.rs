//! Threads in the code of the vDSO: after a restart on another kernel it would be another's.
//!
//! Its functions take some tens of nanoseconds. So a thread that is met there runs on for a moment and is stopped again,
//! until it is met elsewhere. Not seen is one that a handler of the program's has interrupted there: what it finds when
//! the handler returns is in `cli/src/restart/vdso.rs`.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use stasis_protocol::image::Backing;

use crate::snapshot::mappings::Found;

static START: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// How often a thread is met there before it is stopped all the same.
pub const MOST: u32 = 32;

/// Where it is, if it is mapped.
pub fn find(mappings: &[Found]) -> Option<&Found> {
    let is_vdso = |backing: &Backing| matches!(backing, Backing::Kernel(name) if name == "[vdso]");
    mappings.iter().find(|found| is_vdso(&found.mapping.backing))
}

/// To be told before threads are stopped for a snapshot.
pub fn note(mappings: &[Found]) {
    let (start, end) = find(mappings).map_or((0, 0), |found| (found.mapping.start, found.mapping.end));
    START.store(start, Relaxed);
    END.store(end, Relaxed);
}

/// Whether an address is in it.
pub fn holds(address: u64) -> bool {
    (START.load(Relaxed)..END.load(Relaxed)).contains(&address)
}
