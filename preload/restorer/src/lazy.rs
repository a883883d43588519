//! Memory that is not filled here: the pager is given the means to bring each page when it is touched.
//!
//! The userfaultfd is made here since it belongs to the memory of the process that makes it, whoever uses it.

use core::sync::atomic::{AtomicI32, Ordering};

use stasis_protocol::{pager::Handover, plan::step};
use stasis_sys::{
    Errno,
    file::{self, Fd},
    process, socket,
    userfaultfd::{
        self, EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP, MODE_MISSING, MODE_WP, WP_ASYNC,
        WP_UNPOPULATED,
    },
};

use crate::{plan::Plan, report};

/// -1: none.
static USERFAULTFD: AtomicI32 = AtomicI32::new(-1);

/// The userfaultfd, in the program's table until the checkpoint thread has a table of its own.
pub fn userfaultfd() -> Fd {
    USERFAULTFD.load(Ordering::Relaxed)
}

/// Registers what the pager is to bring, and hands it the userfaultfd. Nothing of that memory has been touched.
pub fn leave_to_pager(plan: &Plan) {
    if plan.lazy().is_empty() {
        return;
    }
    let header = plan.header();
    let device = (header.userfaultfd_device >= 0).then_some(header.userfaultfd_device as Fd);
    let uffd = report::expect(userfaultfd::open_full(device), step::LAZY, 0, 0);
    let (features, mode) = enable(uffd);
    for (index, &[start, len]) in plan.lazy().iter().enumerate() {
        let registered = userfaultfd::register(uffd, start, start + len, mode);
        report::expect(registered, step::LAZY, index, start);
    }
    let pidfd = report::expect(process::pidfd_open(process::getpid(), 0), step::LAZY, 1, 0);
    let handover: Handover = [features, process::getpid() as u64];
    for (word, fd) in handover.into_iter().zip([uffd, pidfd]) {
        let sent = socket::send_all(header.info.pager_fd, &word.to_ne_bytes(), Some(fd));
        report::expect(sent, step::LAZY, 2, 0);
    }
    let _ = file::close(pidfd);
    USERFAULTFD.store(uffd, Ordering::Relaxed);
}

/// The most that this kernel gives: telling of children takes CAP_SYS_PTRACE, and tracking what is written Linux 6.7.
fn enable(uffd: Fd) -> (u64, u64) {
    const EVENTS: u64 = EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP;
    const TRACKED: u64 = WP_ASYNC | WP_UNPOPULATED;
    let mut failed = Errno(libc::EINVAL);
    for (features, mode) in [
        (EVENTS | EVENT_FORK | TRACKED, MODE_MISSING | MODE_WP),
        (EVENTS | TRACKED, MODE_MISSING | MODE_WP),
        (EVENTS | EVENT_FORK, MODE_MISSING),
        (EVENTS, MODE_MISSING),
    ] {
        match userfaultfd::enable(uffd, features) {
            Ok(()) => return (features, mode),
            Err(error) => failed = error,
        }
    }
    report::fail(step::LAZY, 3, failed.0, 0)
}
