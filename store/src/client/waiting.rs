//! Waiting for a server that may have been stopped, and saying so.

use std::{
    fs,
    io::{self, Write},
    os::{fd::AsFd, unix::net::UnixStream},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::transport;

/// After so long without an answer the server is looked at, in milliseconds. It may have much to do.
const LOOK: u16 = 3000;

/// Waits until there is something to be read. Where the server stands still meanwhile, standard error is told, once.
pub(super) fn await_answer(stream: &UnixStream) {
    let mut is_told = false;
    loop {
        let timeout = if is_told { PollTimeout::NONE } else { PollTimeout::from(LOOK) };
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => {}
            Err(nix::Error::EINTR) => continue,
            _ => return,
        }
        // Who listens: the server itself.
        let pid = transport::peer(stream).map_or(0, |peer| peer.pid());
        if is_stopped(pid) {
            let _ = writeln!(
                io::stderr(),
                "stasis: waiting for the store's server (pid {pid}), which is stopped; kill -CONT {pid} continues it"
            );
            is_told = true;
        }
    }
}

/// By a signal or a debugger (proc_pid_stat(5), `T` and `t`).
fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}
