//! Messages between the tracer, the machine's one privileged service, and whoever asks it: `stasis` commands and
//! coordinators of any user.
//!
//! A connection opens with [`Hello`] and its answer; then every [`Request`] has one [`Reply`], in order. After
//! [`Request::Watch`] the tracer sends [`Reply::Event`] until the connection ends and reads no more.
//!
//! Not here: what the tracer's programs in the kernel tell it (`ebpf/events`).

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{coordinator::Refusal, wire};

/// Of these messages: the service serves all users of a machine and is older or newer than what they installed.
pub const VERSION: u32 = 2;

/// Where it listens, unless STASIS_TRACER names another socket (or, being empty, none).
pub const SOCKET: &str = "/run/stasis-tracer/socket";

/// The longest request, in bytes. Replies are as long as there is something to tell, at most [`crate::wire::MAX_PAYLOAD`].
pub const MAX_REQUEST: usize = 1024;

/// How long a turn may take, in milliseconds: a fork(2) between two messages on a busy machine.
pub const TURN_MS: u64 = 50;

/// The longest label of a computation, in bytes.
pub const MAX_LABEL: usize = 119;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Track the process whose pidfd comes beside this message (SCM_RIGHTS), and whatever it makes, as part of the
    /// user's computation of this number: [`Reply::Done`].
    Register { computation: u64, label: String },
    /// The user's tracked processes, of one computation or of all: [`Reply::Tasks`]. Root sees everybody's.
    Tasks { computation: Option<u64> },
    /// What happens in them from now on: [`Reply::Done`], then [`Reply::Event`] for ever.
    Watch { computation: Option<u64> },
    /// The sockets of one computation and who has their other ends: [`Reply::Connections`].
    Connections { computation: u64 },
    /// An open /dev/userfaultfd beside [`Reply::Done`], for a process that is tracked.
    Userfaultfd,
    /// Have the next process or thread that is made in the initial pid namespace get this id, if nobody is faster and it
    /// is free: [`Reply::Done`]. For a process that is tracked. The asker has its *turn* then, for [`TURN_MS`] at most, and
    /// nobody else has one before it has said [`Request::GoOn`].
    NextPid { pid: u32 },
    /// The turn is over: the kernel goes on choosing ids where it was before, or after this one if that is higher (0:
    /// none). [`Reply::Done`], also where there was no turn any more. For a process that is tracked.
    GoOn { after: u32 },
    /// What the tracer can do here: [`Reply::State`].
    State,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Hello { version: u32, pid: u32 },
    Done,
    Refused(Refusal),
    Tasks { tasks: Vec<Task>, limits: Limits },
    Connections(Vec<Connection>),
    State(State),
    Event(Event),
}

/// A process that is tracked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub computation: u64,
    /// Of the computation, as it was registered.
    pub label: String,
    /// The user whose computation it is.
    pub owner: u32,
    /// As the initial pid namespace knows it.
    pub pid: u32,
    /// As its own pid namespace does.
    pub ns_pid: u32,
    /// The process that made it; its parent may be another one now.
    pub creator: u32,
    /// Its effective user when it was made or executed a program.
    pub uid: u32,
    /// When it began, in nanoseconds since the machine did.
    pub start_ns: u64,
    pub command: String,
    /// It was registered, not made by a tracked process.
    pub registered: bool,
    /// It was missed when it was made, and found later.
    pub found: bool,
    /// It has executed a program since it was made.
    pub executed: bool,
    /// That was set-uid, set-gid or had capabilities: LD_PRELOAD is ignored.
    pub secure: bool,
}

/// How much of what a user may have is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub tasks: u64,
    pub limit: u64,
    /// Processes that were not tracked because of the limit.
    pub refused: u64,
}

/// An open socket of a computation's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub pid: u32,
    pub fd: u32,
    pub inode: u64,
    /// AF_*
    pub family: u16,
    /// SOCK_*
    pub kind: u16,
    /// include/net/tcp_states.h
    pub state: u16,
    /// `address:port`; empty for unix sockets.
    pub local: String,
    pub remote: String,
    pub other: OtherEnd,
}

/// Where the other end of a connection is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtherEnd {
    /// It is not connected.
    None,
    /// In the same computation: this process has it, with this inode. Pid 0: nobody has accepted it yet.
    Inside { pid: u32, inode: u64 },
    /// In another computation; which, if it is the same user's.
    Computation { computation: Option<u64> },
    /// In a process of this machine that is in no computation; which, if it is the same user's.
    Host { pid: Option<u32> },
    /// On no process of this machine.
    Elsewhere,
}

/// What is loaded, and what it cost and lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub version: String,
    /// What works, by name.
    pub features: Vec<String>,
    /// What does not, and why.
    pub missing: Vec<(String, String)>,
    /// Records that found no room in the ring buffer, since the programs were loaded.
    pub dropped: u64,
    /// Processes that found no room.
    pub untracked: u64,
    /// Processes that were missed and found later.
    pub found: u64,
}

/// Something that happened in a computation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub computation: u64,
    pub owner: u32,
    /// Since the machine began, suspended time included.
    pub time_ns: u64,
    pub pid: u32,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// It made a process, with these clone(2) flags.
    Fork {
        child: u32,
        ns_pid: u32,
        flags: u64,
        command: String,
    },
    Thread {
        tid: u32,
        flags: u64,
    },
    /// `thread`: the one that executed, where it was not the first.
    Exec {
        file: String,
        command: String,
        uid: u32,
        secure: bool,
        thread: Option<u32>,
    },
    /// The status as wait(2) tells it.
    Exit {
        status: u32,
        command: String,
    },
    Tcp {
        old: u16,
        new: u16,
        inode: u64,
        local: String,
        remote: String,
    },
    /// It made a process that is not tracked, because its user has too many.
    Refused {
        child: u32,
    },
    /// So many events are missing here; those that are still there follow as `Present`.
    Lost {
        events: u64,
    },
    Present {
        creator: u32,
        command: String,
    },
}

/// What is sent for a request, header included, written to `buffer`: for who has no memory to allocate. `None` when it
/// does not fit.
pub fn frame_in<'a>(request: &Request, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let (header, payload) = buffer.split_at_mut_checked(wire::HEADER)?;
    let len = postcard::to_slice(request, payload).ok()?.len();
    header.copy_from_slice(&(len as u32).to_le_bytes());
    buffer.get(..wire::HEADER + len)
}

/// Whether a reply's payload says [`Reply::Done`], for the same.
pub fn is_done(payload: &[u8]) -> bool {
    postcard::to_slice(&Reply::Done, &mut [0; 4]).is_ok_and(|done| done == payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_without_memory_is_what_is_made_with_it() {
        for request in [Request::NextPid { pid: 1 << 21 }, Request::GoOn { after: 0 }] {
            assert_eq!(frame_in(&request, &mut [0; 16]), wire::frame(&request).ok().as_deref());
        }
        assert_eq!(frame_in(&Request::NextPid { pid: 1 << 21 }, &mut [0; 6]), None);
        assert!(is_done(&wire::encode(&Reply::Done).unwrap()));
        assert!(!is_done(&wire::encode(&Reply::Hello { version: 1, pid: 1 }).unwrap()) && !is_done(&[]));
    }
}
