//! When moving pages goes on, and when it gives way.

use std::time::Duration;

use crate::store::Store;

/// So often somebody who waits for a checkpoint to end looks whether it is over for themselves.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How pages are moved.
#[derive(Clone, Copy)]
pub enum Pace<'a> {
    /// Somebody waits for it.
    AtOnce,
    /// In the background: never while a checkpoint is being taken, and not where somebody else wants to move pages, or the
    /// closure says that it is over.
    GivingWay(&'a (dyn Fn() -> bool + Sync)),
}

impl Pace<'_> {
    /// To be called by the thread that does the work, when it begins.
    pub fn set_priority(self) {
        if let Self::GivingWay(_) = self {
            yield_to_all();
        }
    }

    /// To be called between two small pieces of work; waits while a checkpoint is being taken. Returns whether to go on.
    pub fn go_on(self, store: &Store) -> bool {
        match self {
            Self::AtOnce => true,
            Self::GivingWay(is_over) => loop {
                if is_over() || store.is_collection_wanted() {
                    return false;
                }
                if !store.is_busy() {
                    return true;
                }
                store.wait_for_sessions(LOOK_AGAIN);
            },
        }
    }
}

/// Lets everybody else go first, at the processor and at the disk. Not SCHED_IDLE: a thread that never runs on a busy machine
/// may hold what another one waits for.
fn yield_to_all() {
    const LAST: libc::c_int = 19;
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: both take numbers, and mean the calling thread by 0 (setpriority(2), C library/kernel differences;
    // ioprio_set(2)). Where they fail, nothing is lost but this.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, LAST);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE);
    }
}
