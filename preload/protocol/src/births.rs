//! Memory that a coordinator shares with its processes, in a file beside its socket: the list of births, and that of System V
//! objects.
//!
//! A child is written there by its parent before fork(3) returns, and leaves when it has said hello. So a child whose
//! parent has ended right after making it, and that has not come to say hello yet, is known: nobody's list of children
//! has it (a daemon's).

/// What the file's path ends with, after the socket's.
pub const SUFFIX: &str = ".births";

/// How many words of 32 bits the file has. Each is 0, or a child's pid as its parent knows it, or [`PENDING`] and the tid
/// of a thread that is calling fork(2).
pub const SLOTS: usize = 1 << 14;

/// Behind them: the System V objects that processes have asked for, in words of 64 bits. Nobody but who has asked knows
/// that a computation uses one. Each is 0, or the object's id with [`Kind`] + 1 above it; the first tells that something found no room.
///
/// [`Kind`]: crate::births::Kind
pub const OBJECTS: usize = 1 << 10;

/// Behind them: what processes' ends would undo (semop(2), SEM_UNDO), which the kernel does not tell: a word of 64 bits
/// that names process and semaphore, see [`undo`]; then as many of 32 bits with the adjustments.
pub const UNDOS: usize = 1 << 10;

/// The file's length in bytes.
pub const LEN: usize = SLOTS * size_of::<u32>()
    + (OBJECTS + UNDOS) * size_of::<u64>()
    + (UNDOS * size_of::<u32>()).next_multiple_of(crate::PAGE_SIZE);

/// A kind of System V object (sysvipc(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Segment = 0,
    Semaphores = 1,
    Messages = 2,
}

/// Names an adjustment; `None` where it does not fit.
pub fn undo(pid: u32, id: i32, number: u16) -> Option<u64> {
    let fits = pid < 1 << 22 && id >= 0 && number < 1 << 11;
    fits.then(|| u64::from(pid) << 42 | u64::from(number) << 31 | id as u64)
}

/// The process, the id and the number of the semaphore that [`undo`] has named.
pub fn of_undo(name: u64) -> (u32, i32, u16) {
    ((name >> 42) as u32, (name & 0x7fff_ffff) as i32, (name >> 31 & 0x7ff) as u16)
}

/// The child's pid is not known yet.
pub const PENDING: u32 = 1 << 31;
