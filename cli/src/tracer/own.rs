//! What is Stasis' own in a computation, as the tracer tells it: pagers, supervisors and commands are made by it and no part of
//! it, and the checkpoint thread has a descriptor table of its own in every process.

use std::fs;

use stasis_protocol::tracer::Connection;

use super::escapes::is_ours;
use crate::{coordinator::CHECKPOINT_THREAD, process};

/// Whether a socket is one of Stasis' own.
pub fn has(connection: &Connection) -> bool {
    let &Connection { pid, fd, inode, .. } = connection;
    if is_ours(pid) {
        return true;
    }
    let socket = format!("socket:[{inode}]");
    let is_open_in = |place: &str| {
        fs::read_link(format!("/proc/{place}/fd/{fd}"))
            .is_ok_and(|target| target.as_os_str() == socket.as_str())
    };
    // What the program has, too, is the program's.
    !is_open_in(&pid.to_string())
        && process::threads(pid)
            .into_iter()
            .flatten()
            .filter(|thread| thread.name == CHECKPOINT_THREAD)
            .any(|thread| is_open_in(&format!("{pid}/task/{}", thread.tid)))
}
