//! Who goes first: those who answer faults, then the program, then those who bring what nobody has asked for.

use std::io;

/// struct sched_attr (sched_setattr(2)), first version.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Since Linux 6.12, under SCHED_OTHER: for how long the thread wants to run at a time, in nanoseconds. One that wants
    /// less goes before one that runs, when it wakes.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The shortest time that may be asked for.
const SHORT: u64 = 100_000;

/// Answering a fault takes less.
const ANSWERING: i32 = -15;

/// As the store's server: of the processor's time that two compete for this one gets a quarter.
const BRINGING: i32 = 5;

/// The calling thread answers faults. Without privilege it has no higher priority, but still is preferred when it wakes.
pub fn answer_faults() {
    let _ = set(libc::SCHED_OTHER, ANSWERING, SHORT).or_else(|_| set(libc::SCHED_OTHER, 0, SHORT));
}

/// The calling thread brings what nobody has asked for.
pub fn bring_the_rest() {
    let _ = set(libc::SCHED_BATCH, BRINGING, 0);
}

fn set(policy: i32, nice: i32, runtime: u64) -> io::Result<()> {
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes {
        size,
        policy: policy as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime,
        deadline: 0,
        period: 0,
    };
    // SAFETY: sched_setattr(2) reads one structure, for the calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
