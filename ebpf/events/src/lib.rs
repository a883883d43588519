//! What the programs in the kernel and the tracer's service share: the values of maps, the records of the ring
//! buffer and of iterators, and where the running kernel keeps what the programs read.
//!
//! Every type is `repr(C)` without padding, and every bit pattern is a value of it, so that bytes from a map can be
//! taken for one. [`LAYOUT`] is bumped with any change: a service that finds pinned maps of another layout does not
//! read them.
//!
//! Not here: what the service and its clients say to each other (`preload/protocol/src/tracer.rs`).

#![no_std]

mod offsets;
mod record;
mod task;

pub use offsets::{NONE, Offsets};
pub use record::{Kind, Socket, SocketAddresses, TaskEvent, TcpEvent};
pub use task::{Counter, Label, LabelKey, Owner, Request, Task, User, flag};

/// Of all types here; part of the directory's name in which maps are pinned.
pub const LAYOUT: u32 = 1;

/// How long a command's name is in the kernel (TASK_COMM_LEN).
pub const COMM: usize = 16;

/// How much of an executed file's name is kept: what people need to recognize it.
pub const NAME: usize = 96;

/// The length of every map and buffer that is not said in a type.
pub mod size {
    /// Tracked processes on the machine.
    pub const TASKS: u32 = 65_536;
    /// Users with tracked processes.
    pub const USERS: u32 = 4096;
    /// Registrations that one pass of the iterator takes.
    pub const REQUESTS: u32 = 256;
    /// Sockets whose owner is known; the oldest make room.
    pub const SOCKETS: u32 = 16_384;
    /// Computations with a label; the oldest make room.
    pub const LABELS: u32 = 4096;
    /// Of the ring buffer, in bytes: some 40,000 forks that the service need not have read.
    pub const RING: u32 = 4 << 20;
}
