//! Who goes first: those who answer faults, then the program, then those who bring what nobody has asked for.

use stasis_sys::process;

/// Answering a fault takes less.
const ANSWERING: i32 = -15;

/// Of the processor's time that two compete for this one gets a quarter.
const BRINGING: i32 = 5;

/// The calling thread answers faults. Without privilege it has no higher priority, but still is preferred when it wakes.
pub fn answer_faults() {
    process::take_short_turns();
    // SAFETY: plain numbers.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, ANSWERING) };
}

/// The calling thread brings what nobody has asked for.
pub fn bring_the_rest() {
    set(libc::SCHED_BATCH, BRINGING);
}

fn set(policy: i32, nice: i32) {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: policy as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: sched_setattr(2) reads one structure, for the calling thread.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}
