//! Who goes first: those who answer faults, then the program, then those who bring what nobody has asked for.

use std::io;

/// The shortest time that may be asked for, in nanoseconds. Since Linux 6.12 a thread says under SCHED_OTHER for how long it
/// wants to run at a time (`sched_runtime`); one that wants less goes before one that runs, when it wakes.
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
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: policy as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: runtime,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: sched_setattr(2) reads one structure, for the calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
