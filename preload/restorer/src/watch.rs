//! Memory that is filled here and not yet used: what is written to it is tracked from here on, so that the first checkpoint
//! after the restart takes that alone.
//!
//! Before anything else runs in it: threads write when they begin (the kernel, to their rseq areas), and so does the library.

use core::sync::atomic::{AtomicI32, Ordering};

use stasis_sys::{
    file::Fd,
    userfaultfd::{self, MODE_WP, WP_ASYNC, WP_UNPOPULATED},
};

use crate::plan::Plan;

/// -1: none.
static USERFAULTFD: AtomicI32 = AtomicI32::new(-1);

/// The userfaultfd, in the program's table until the checkpoint thread has a table of its own.
pub fn userfaultfd() -> Fd {
    USERFAULTFD.load(Ordering::Relaxed)
}

/// Registers what is to be watched and protects what is whole. What the kernel does not take (before Linux 6.7: all of it) the
/// first checkpoint compares by hash.
pub fn watch(plan: &Plan) {
    if plan.watched().is_empty() {
        return;
    }
    let Ok(uffd) = userfaultfd::open(WP_ASYNC | WP_UNPOPULATED) else { return };
    let mut unwritten = plan.unwritten().iter().peekable();
    for &[start, len] in plan.watched() {
        let end = start + len;
        let mut watched = userfaultfd::register(uffd, start, end, MODE_WP).is_ok();
        while let Some(&[from, len]) = unwritten.next_if(|[from, _]| *from < end) {
            if watched && userfaultfd::protect(uffd, from, len).is_err() {
                let _ = userfaultfd::unregister(uffd, start, end - start);
                watched = false;
            }
        }
    }
    USERFAULTFD.store(uffd, Ordering::Relaxed);
}
