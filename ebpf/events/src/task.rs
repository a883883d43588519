//! Tracked processes, their users, and the requests to track one.

use crate::COMM;

/// A process of a computation: the value of map TASKS, whose key is its pid (tgid) in the initial pid namespace, and
/// what the iterator tells of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Which of its owner's computations.
    pub computation: u64,
    /// When it began (`task_struct::start_boottime`), in nanoseconds: a pid is used again, this is not.
    pub start_ns: u64,
    /// The user whose computation it is.
    pub owner: u32,
    pub tgid: u32,
    /// The process that made it, which need not be its parent (CLONE_PARENT, orphans).
    pub creator: u32,
    /// Its effective user, when it was made or executed a program.
    pub uid: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Its pid in its own pid namespace.
    pub ns_pid: u32,
    pub comm: [u8; COMM],
}

/// Bits of [`Task::flags`].
pub mod flag {
    /// It was registered, and not made by a process that was.
    pub const REGISTERED: u32 = 1;
    /// It was found by a search, having been missed when it was made.
    pub const FOUND: u32 = 2;
    /// It has executed a program since it was made.
    pub const EXECUTED: u32 = 4;
    /// That program was set-uid, set-gid or had capabilities: the dynamic linker ignores LD_PRELOAD (AT_SECURE).
    pub const SECURE: u32 = 8;
    /// It was made by vfork(2), or shares its memory with who made it.
    pub const SHARES_MEMORY: u32 = 16;
}

/// A process that is to be tracked: the value of map REQUESTS, by its pid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub computation: u64,
    /// When it began in clock ticks of 1/100 s, as /proc/PID/stat tells.
    pub start_ticks: u64,
    /// Whose computation it becomes part of.
    pub owner: u32,
    /// The process must be of this user; root (0) may have anybody's.
    pub uid: u32,
}

/// How many processes of a user are tracked: the value of map USERS, by the user's id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub tasks: u64,
    pub limit: u64,
    /// Processes that were not tracked because of the limit.
    pub refused: u64,
}

/// Who a socket belongs to: the value of maps SOCKETS and LISTENERS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub computation: u64,
    pub owner: u32,
    pub tgid: u32,
    pub inode: u64,
}

/// Indexes of map COUNTERS.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Records that found no room in the ring buffer.
    Dropped = 0,
    /// Processes that found no room in TASKS.
    Untracked = 1,
    /// Processes that a search found and the programs had missed.
    Found = 2,
}

impl Counter {
    pub const ALL: u32 = 3;
}

/// What people call a computation: the value of map LABELS.
pub type Label = [u8; 120];

/// The key of map LABELS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LabelKey {
    pub computation: u64,
    pub owner: u32,
    pub unused: u32,
}
