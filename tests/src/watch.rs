//! Waiting for a file to become what a test waits for, by inotify(7), while a process lives.

use std::{
    fs,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use crate::process::ProcessHandle;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for has come.
    Come,
    /// The process ended and it had not come.
    Ended,
    /// The deadline has passed.
    TimedOut,
}

/// Waits until `is_there(content)` of the file (which may not exist yet, in a directory that does).
pub fn content(
    path: &Path,
    process: &ProcessHandle,
    deadline: Duration,
    mut is_there: impl FnMut(&[u8]) -> bool,
) -> Waited {
    state(path, process, deadline, || fs::read(path).is_ok_and(|bytes| is_there(&bytes)))
}

/// Waits until the file has at least `bytes` bytes.
pub fn size(path: &Path, process: &ProcessHandle, deadline: Duration, bytes: u64) -> Waited {
    state(path, process, deadline, || fs::metadata(path).is_ok_and(|metadata| metadata.len() >= bytes))
}

/// Waits until `is_there()`, which is asked again whenever something in the file's directory changes.
fn state(
    path: &Path,
    process: &ProcessHandle,
    deadline: Duration,
    mut is_there: impl FnMut() -> bool,
) -> Waited {
    let directory = path.parent().expect("a file in a directory");
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).expect("inotify_init1");
    // The watch is set before the file is looked at: a change in between is an event, not a loss.
    inotify
        .add_watch(
            directory,
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO,
        )
        .expect("inotify_add_watch");
    let end = Instant::now() + deadline;
    loop {
        if is_there() {
            return Waited::Come;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Waited::TimedOut;
        }
        let mut fds = [
            PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("poll while waiting for {}: {errno}", path.display()),
        }
        let ended = fds[1].any().unwrap_or(false);
        while inotify.read_events().is_ok() {}
        if ended {
            return if is_there() { Waited::Come } else { Waited::Ended };
        }
    }
}

/// Waits until files in a directory have been made or written to `count` times.
///
/// # Panics
/// When that has not happened after `deadline`.
#[track_caller]
pub fn changes(watched: &Directory, count: usize, deadline: Duration) {
    let end = Instant::now() + deadline;
    let mut seen = 0;
    while seen < count {
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{} changes were waited for, and {seen} came", count);
        let mut fds = [PollFd::new(watched.inotify.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        seen += watched.inotify.read_events().map_or(0, |events| events.len());
    }
}

/// A directory whose changes count from now on.
pub struct Directory {
    inotify: Inotify,
}

impl Directory {
    pub fn watch(path: &Path) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).expect("inotify_init1");
        inotify
            .add_watch(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { inotify }
    }
}
