//! How a pager is asked how it goes, and how it says what went wrong.
//!
//! It listens on an abstract unix socket (unix(7)) that is named after the process; who connects gets one line. Only the
//! same user is answered, and who asks makes sure that the same user (or root) answers.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::Pager;
use crate::transport;

/// How it goes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// The pages that were left to the pager.
    pub pages: u64,
    pub left: u64,
    /// Absent pages that the program waited for.
    pub faults: u64,
    /// Faults that zeros answered: memory that was never used, or was discarded.
    pub zeros: u64,
    pub fault_median_ns: Option<u64>,
    pub fault_p99_ns: Option<u64>,
    /// How long it took until all pages were in.
    pub complete_us: Option<u64>,
    /// Where the pages come from.
    pub source: String,
    pub pager_pid: u32,
}

fn address(pid: u64) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("stasis-pager-{pid}"))
}

/// Begins to listen for questions about the process `pid`.
pub(super) fn listen(pid: u64) -> Option<UnixListener> {
    let listener = address(pid).and_then(|address| UnixListener::bind_addr(&address)).ok()?;
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}

/// The pid of a process in this namespace, by which others know it (fdinfo of a pidfd: pidfd_open(2)): in a pid namespace of its
/// own it calls itself something else.
pub(super) fn outer_pid(pidfd: &OwnedFd) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

pub(super) fn answer(pager: &Pager, listener: &UnixListener) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let Ok(peer) = transport::peer(&stream) else { return };
    if peer.uid() != geteuid().as_raw() && peer.uid() != 0 {
        return;
    }
    let statistics = &pager.statistics;
    let progress = Progress {
        pages: pager.total,
        left: pager.space.left(),
        faults: statistics.faults(),
        zeros: statistics.zeros(),
        fault_median_ns: statistics.quantile(500),
        fault_p99_ns: statistics.quantile(990),
        complete_us: statistics.complete_us(),
        source: pager.space.describe_source(),
        pager_pid: std::process::id(),
    };
    if let Ok(bytes) = postcard::to_allocvec(&progress) {
        let _ = stream.set_nonblocking(true);
        let _ = stream.write_all(&bytes);
    }
}

/// How the pager of a process goes on; `None`: it has none, as far as this user may know.
#[must_use]
pub fn ask(pid: u32) -> Option<Progress> {
    let mut stream = UnixStream::connect_addr(&address(pid.into()).ok()?).ok()?;
    let peer = transport::peer(&stream).ok()?;
    if peer.uid() != geteuid().as_raw() && peer.uid() != 0 {
        return None;
    }
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    postcard::from_bytes(&bytes).ok()
}

/// Says something where the process says what goes wrong: on its standard error.
pub(super) fn tell(pidfd: &OwnedFd, message: &str) {
    let line = format!("stasis: {message}\n");
    // SAFETY: pidfd_getfd(2) with numbers; it gives a descriptor that nobody else has.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), 2, 0) };
    let mut out = if copy >= 0 {
        // SAFETY: as above.
        unsafe { std::fs::File::from_raw_fd(copy as i32) }
    } else {
        let Some(pid) = outer_pid(pidfd) else { return };
        match OpenOptions::new().append(true).open(format!("/proc/{pid}/fd/2")) {
            Ok(file) => file,
            Err(_) => return,
        }
    };
    let _ = out.write_all(line.as_bytes());
}

/// Ends the process, saying why.
pub(super) fn end_process(pidfd: &OwnedFd, message: &str) {
    tell(pidfd, message);
    // SAFETY: pidfd_send_signal(2) with numbers and no siginfo.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, 0, 0) };
}
