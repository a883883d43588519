//! The list of births: memory that a coordinator shares with its processes, in a file beside its socket.
//!
//! A child is written there by its parent before fork(3) returns, and leaves when it has said hello. So a child whose
//! parent has ended right after making it, and that has not come to say hello yet, is known: nobody's list of children
//! has it (a daemon's).

/// What the file's path ends with, after the socket's.
pub const SUFFIX: &str = ".births";

/// How many words of 32 bits the file has. Each is 0, or a child's pid as its parent knows it, or [`PENDING`] and the tid
/// of a thread that is calling fork(2).
pub const SLOTS: usize = 1 << 14;

/// The file's length in bytes.
pub const LEN: usize = SLOTS * size_of::<u32>();

/// The child's pid is not known yet.
pub const PENDING: u32 = 1 << 31;
