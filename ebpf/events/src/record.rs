//! The records of the ring buffer, and of the iterator over sockets.

use crate::{COMM, NAME};

/// What a record of the ring buffer is; its first field.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`TaskEvent`]: `other` is the new process.
    Fork = 1,
    /// [`TaskEvent`]: `other` is the new thread.
    Thread = 2,
    /// [`TaskEvent`] with a name: `other` is the thread that executed, if it was not the first.
    Exec = 3,
    /// [`TaskEvent`]: `other` is the code as wait(2) tells it.
    Exit = 4,
    /// [`TcpEvent`].
    Tcp = 5,
    /// [`TaskEvent`]: `other` is the process that is not tracked, because its user has too many.
    Refused = 6,
}

impl Kind {
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Fork, Self::Thread, Self::Exec, Self::Exit, Self::Tcp, Self::Refused]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// Something that a tracked process did.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskEvent {
    pub kind: u32,
    pub owner: u32,
    pub computation: u64,
    /// Since boot, suspended time included, in nanoseconds.
    pub time_ns: u64,
    pub tgid: u32,
    pub other: u32,
    /// Of clone(2), where `kind` is Fork or Thread; bits of [`crate::flag`] for Exec.
    pub flags: u64,
    pub uid: u32,
    /// Of the new process, in its own pid namespace.
    pub ns_pid: u32,
    pub comm: [u8; COMM],
    /// The executed file as execve(2) was given it, ended by 0; empty elsewhere (and then not sent).
    pub name: [u8; NAME],
}

/// A change of a TCP socket's state.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpEvent {
    pub kind: u32,
    pub owner: u32,
    pub computation: u64,
    pub time_ns: u64,
    pub tgid: u32,
    /// States as in the kernel's include/net/tcp_states.h.
    pub old: u16,
    pub new: u16,
    pub inode: u64,
    pub addresses: SocketAddresses,
}

/// Both ends of an internet socket; an IPv4 address is in the first four bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketAddresses {
    /// AF_INET, AF_INET6 or AF_UNIX; the rest is zero for the last.
    pub family: u16,
    pub local_port: u16,
    pub remote_port: u16,
    pub unused: u16,
    /// The network namespace, by its inode.
    pub namespace: u64,
    pub local: [u8; 16],
    pub remote: [u8; 16],
}

/// A descriptor of a socket, as the iterator finds it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// 0 for a process that is not tracked, as is the next one.
    pub computation: u64,
    pub inode: u64,
    /// A unix socket's other end; 0 where there is none.
    pub peer_inode: u64,
    pub owner: u32,
    pub tgid: u32,
    pub uid: u32,
    pub fd: u32,
    /// SOCK_STREAM and so on.
    pub kind: u16,
    /// include/net/tcp_states.h; unix sockets use the same numbers.
    pub state: u16,
    pub unused: u32,
    pub addresses: SocketAddresses,
}
