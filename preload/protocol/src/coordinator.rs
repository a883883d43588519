//! Messages between the coordinator, the checkpoint threads of its computation and its clients (the
//! `stasis` commands).
//!
//! A connection opens with [`Hello`], which says who calls; what follows is [`FromProcess`] and
//! [`ToProcess`], or [`ClientRequest`] and [`ClientReply`].

use alloc::{format, string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::store::{CheckpointRecord, DumpStats, Hash};

/// The first message on a connection to a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub role: Role,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Process {
        /// The pid that the program knows itself by (the kernel's comes with the credentials).
        pid: u32,
        /// argv, as the program was started.
        argv: Vec<String>,
        /// The checkpoint that it was restarted from.
        restarted_from: Option<String>,
        /// It stood stopped then, and stops as soon as it is welcome: it is not there before.
        stops: bool,
        /// What the coordinator that it, or whoever forked it, belonged to last has told in its welcome; 0: it belonged to none.
        epoch: u64,
    },
    Client,
}

/// One reason why a checkpoint cannot be taken or restored: what, why, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The pid, descriptor or mapping: `pid 12 (python3), fd 5 (io_uring)`.
    pub what: String,
    pub reason: String,
    pub remedy: String,
}

impl Refusal {
    /// How a remedy begins where the program itself will put an end to the reason: it was met between two of its steps.
    const PASSES: &str = "take the checkpoint when ";

    /// How the reason begins where there is no store to put a checkpoint into.
    const NO_STORE: &str = "cannot be opened: ";

    /// The store in this directory cannot be opened.
    pub fn no_store(directory: impl core::fmt::Display, reason: &str, remedy: &str) -> Self {
        Self {
            what: format!("the store {directory}"),
            reason: format!("{}{reason}", Self::NO_STORE),
            remedy: remedy.into(),
        }
    }

    /// Whether it is [`Refusal::no_store`].
    pub fn is_for_want_of_a_store(&self) -> bool {
        self.reason.starts_with(Self::NO_STORE)
    }

    /// Whether the reason goes by while the program runs.
    pub fn passes(&self) -> bool {
        self.remedy.starts_with(Self::PASSES)
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.reason, self.remedy)
    }
}

/// What a checkpoint thread is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    #[default]
    Running,
    /// Looking for what cannot be checkpointed; threads run.
    Checking,
    /// Ready to stop, when the other processes are.
    Ready,
    /// Bringing threads to a stop.
    Quiescing,
    /// Threads stand still; state and memory are being copied.
    Snapshotting,
    /// Threads run again; the store is working.
    Storing,
    /// Threads stand still until the checkpoint is durable and the process is ended.
    Held,
}

/// One end of a connection whose other end the process does not have itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Names this end.
    pub has: u64,
    /// Names the other end, which another process of the computation must have.
    pub wants: u64,
    /// What is refused when no other process has it; `None` where it may stay outside, or this process has it.
    pub refusal: Option<Refusal>,
    /// It is a socket's: the other may stay outside where the user says so ([`Outside`]).
    pub socket: bool,
    /// The other end is a terminal, by st_dev and st_rdev: it may be open nowhere. It is refused when a process outside has it.
    pub terminal: Option<(u64, u64)>,
}

/// What is done about sockets whose other ends are outside the computation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outside {
    /// No checkpoint is taken.
    #[default]
    Refuse,
    /// They are taken as they are; after a restart the program finds them reset.
    Reset,
}

/// A descriptor that may share its open file description with those of other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharable {
    /// From [`crate::image::IN_FLIGHT`] on: on its way to the process, and in the checkpoint thread's table.
    pub fd: i32,
    /// Descriptors with different keys share nothing.
    pub key: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromProcess {
    Phase {
        token: u64,
        phase: Phase,
    },
    /// What can be copied while threads run has been; it waits for [`ToProcess::Stop`].
    Ready {
        token: u64,
        ends: Vec<End>,
        /// What several processes may have and one is to copy: shared memory and files without a name
        /// ([`crate::image::Object::key`]), the queues of sockets.
        objects: Vec<u64>,
        /// The pids of its children that have not ended.
        children: Vec<u32>,
        /// Descriptors are on their way to it: ends that nobody seems to have may be among those.
        receives: bool,
    },
    /// All threads stand still; it waits for [`ToProcess::Capture`].
    Stopped {
        token: u64,
        /// The pids of its children that have not ended.
        children: Vec<u32>,
        /// What a process that has not been ready would have told ([`FromProcess::Ready`]).
        late: Option<(Vec<End>, Vec<u64>, bool)>,
    },
    /// All is copied; it waits for [`ToProcess::Resume`].
    Captured {
        token: u64,
        ends: Vec<End>,
        sharable: Vec<Sharable>,
        /// The objects that it has copied.
        objects: Vec<u64>,
        /// Pseudo-terminals that it has not copied, because it had not told of them or nobody seemed to have their other
        /// sides: its own ends.
        uncopied: Vec<(u64, u64)>,
        /// The queues of sockets on their way to it, and whether it has copied them.
        received: Vec<(u64, bool)>,
    },
    /// The answer to [`ToProcess::Part`].
    Parting,
    /// Nothing was stopped, or all runs again as if nothing had been asked.
    Refused {
        token: u64,
        refusals: Vec<Refusal>,
    },
    /// The process is durable in the store; it waits for [`ToProcess::Committed`] if it is held.
    Dumped {
        token: u64,
        manifest: Hash,
        stats: DumpStats,
        /// How long threads stood still, in microseconds; 0 when they still do.
        pause_us: u64,
        /// How long they stood in all: more than that where the program writes faster than memory can be copied.
        stood_us: u64,
        /// How much memory the copying has taken, in bytes.
        memory: u64,
        tracker: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToProcess {
    Welcome {
        version: u32,
        /// Names the coordinator and what it has been since: launched at, or restarted at.
        epoch: u64,
    },
    Checkpoint {
        token: u64,
        /// The path of the store server's socket.
        store: String,
        /// The process may not connect there: a connection of its own, which can only dump, comes beside this
        /// message (SCM_RIGHTS).
        store_passed: bool,
        /// Keep the threads stopped when the copy is made, until told [`ToProcess::Committed`] or
        /// [`ToProcess::Abandoned`].
        hold: bool,
        /// The process stood stopped by a signal; the coordinator queued the stop signal to its
        /// threads and continued it. Stop it again afterwards.
        was_stopped: bool,
        /// The computation has no other process: do not wait for [`ToProcess::Stop`] and its like.
        alone: bool,
    },
    /// Stop all threads.
    Stop { token: u64 },
    /// All processes stand still: copy.
    Capture {
        token: u64,
        /// Objects that another process copies, in ascending order.
        elsewhere: Vec<u64>,
        /// Other ends of its connections that somebody has, in ascending order.
        present: Vec<u64>,
    },
    /// All is copied: let the threads go on, unless they are to be held.
    Resume { token: u64 },
    /// To a restarted process, when all of its computation are there: let the threads go on.
    Go,
    /// The checkpoint exists. A process that is held goes on, or, when `kill` is set, answers as to [`ToProcess::Part`] and
    /// waits for [`ToProcess::End`].
    Committed { token: u64, kill: bool },
    /// The checkpoint was given up: go on, and owe the store what this one would have taken.
    Abandoned { token: u64 },
    /// The process is about to be ended: answer [`FromProcess::Parting`] when its connections are such that their ports are
    /// free then.
    Part,
    /// End (SIGKILL).
    End,
}

/// When an interval is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IntervalLasts {
    /// With the coordinator.
    Coordinator,
    /// With the computation that is here, or that the next process begins.
    Computation,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientRequest {
    /// Take a checkpoint and answer when it is durable: [`ClientReply::Checkpoint`].
    Checkpoint {
        kill: bool,
        label: Option<String>,
        /// Processes without the library, by the kernel's pids: they are left out, instead of being awaited and refused.
        without: Vec<u32>,
        outside: Outside,
    },
    /// [`ClientReply::Status`].
    Status,
    /// End every process of the computation (SIGKILL). [`ClientReply::Done`] with how many.
    Kill,
    /// Take a checkpoint every so many microseconds; `None`: no more. [`ClientReply::Done`].
    Interval { micros: Option<u64>, lasts: IntervalLasts },
    /// Answered by [`ClientReply::Done`] as soon as `processes` processes have said hello since the
    /// computation began or was resumed, whether or not they are still there.
    AwaitProcesses { processes: u32 },
    /// The processes that connect from now on continue this computation, from this checkpoint. When all of them have said hello,
    /// they are told [`ToProcess::Go`].
    Resume {
        computation: String,
        checkpoint: String,
        /// Their pids, as they know them, in the order of the checkpoint.
        processes: Vec<u32>,
    },
    /// End the coordinator; the processes run on. [`ClientReply::Done`].
    Shutdown,
    /// Answered by [`ClientReply::Done`] as soon as the process that the kernel knows by this pid has
    /// said hello, by [`ClientReply::Refused`] when it ends before.
    AwaitProcess { real_pid: u32 },
    /// Listen at TCP, too, for those who know the token in a file: [`ClientReply::Done`]. Not from there.
    Listen {
        /// `HOST:PORT`; port 0 is one that is free.
        at: String,
        /// Its absolute path.
        token_file: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientReply {
    Welcome {
        version: u32,
        coordinator_pid: u32,
    },
    Checkpoint {
        record: CheckpointRecord,
        /// The sockets that a restart resets.
        outside: Vec<Refusal>,
    },
    Status(Status),
    Done {
        count: u32,
    },
    /// The request could not be carried out, and nothing was lost.
    Refused(Vec<Refusal>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub computation: String,
    pub coordinator_pid: u32,
    pub address: String,
    /// Where it listens at TCP: `tcp:HOST:PORT`.
    pub network: Option<String>,
    pub store: String,
    pub interval_us: Option<u64>,
    pub checkpoints_taken: u64,
    pub checkpoints_failed: u64,
    /// Checkpoints of the interval that were not taken because another one was being taken.
    pub ticks_skipped: u64,
    /// The last checkpoint's id.
    pub last: Option<String>,
    /// The last checkpoint that failed; `None` where one was taken since.
    pub last_failure: Option<FailedCheckpoint>,
    pub processes: Vec<ProcessStatus>,
}

/// A checkpoint that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheckpoint {
    /// In microseconds since 1970.
    pub failed_us: u64,
    /// The first reason, of which there may be more.
    pub refusal: Refusal,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// The pid that the program knows itself by.
    pub pid: u32,
    /// The pid that the kernel knows it by, where the coordinator lives.
    pub real_pid: u32,
    pub command: String,
    pub phase: Phase,
    /// The kernel's state letter (proc(5), /proc/pid/stat).
    pub state: char,
    /// Since when it is in this phase, in microseconds ago.
    pub phase_for_us: u64,
    pub tracker: String,
    pub last_pause_us: Option<u64>,
    /// How long its threads stood still in all for the last checkpoint, in microseconds.
    pub last_stood_us: Option<u64>,
    /// How much memory the last checkpoint took in the process, in bytes.
    pub last_memory: Option<u64>,
    pub restarted_from: Option<String>,
}
