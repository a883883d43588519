//! sock_diag(7): what a unix socket is connected to, and its queues.

use alloc::vec::Vec;

use stasis_sys::{Errno, Result};

use super::netlink::{self, Header, word};

/// States of [`UnixSocket::state`] (net/tcp_states.h; unix sockets use the same).
pub const LISTEN: u8 = 10;

#[derive(Default)]
pub struct UnixSocket {
    pub state: u8,
    /// The inode of the socket at the other end; 0 when that is closed.
    pub peer: Option<u64>,
    /// For a listening socket: connections not accepted yet, and the backlog. Else bytes in the queues.
    pub queue: (u32, u32),
    /// RCV_SHUTDOWN (1), SEND_SHUTDOWN (2).
    pub shutdown: u8,
    /// The inode of its file, 32 bits of it.
    pub file: Option<u32>,
    /// For a listening socket: the inodes of the sockets that wait to be accepted, in order.
    pub waiting: Vec<u64>,
}

/// struct unix_diag_req (linux/unix_diag.h) after its header.
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

// SAFETY: 16 bytes of header, then 24: nothing between them.
unsafe impl netlink::Request for Request {
    fn header(&self) -> &Header {
        &self.header
    }
}

/// struct unix_diag_msg.
const MESSAGE: usize = 16;

/// The unix socket with an inode number (32 bits: sock_diag knows no more).
///
/// # Errors
/// ENOENT where there is none; others where the kernel has no CONFIG_UNIX_DIAG.
pub fn unix(inode: u64) -> Result<UnixSocket> {
    const SHOW_VFS: u32 = 1 << 1;
    const SHOW_PEER: u32 = 1 << 2;
    const SHOW_ICONS: u32 = 1 << 3;
    const SHOW_RQLEN: u32 = 1 << 4;
    let request = Request {
        header: Header::of::<Request>(false),
        family: libc::AF_UNIX as u8,
        protocol: 0,
        pad: 0,
        states: u32::MAX,
        inode: inode as u32,
        show: SHOW_VFS | SHOW_PEER | SHOW_ICONS | SHOW_RQLEN,
        // INET_DIAG_NOCOOKIE: whatever generation.
        cookie: [u32::MAX; 2],
    };
    let mut found = None;
    netlink::ask(&request, |message| found = parse(message))?;
    found.ok_or(Errno(libc::EIO))
}

fn parse(message: &[u8]) -> Option<UnixSocket> {
    let mut found = UnixSocket { state: *message.get(2)?, ..UnixSocket::default() };
    for (kind, value) in netlink::attributes(message.get(MESSAGE..)?) {
        match kind {
            1 => found.file = Some(word(value, 0)),
            2 => found.peer = Some(word(value, 0).into()),
            3 => {
                let inodes = value.as_chunks::<4>().0;
                found.waiting = inodes.iter().map(|inode| u32::from_ne_bytes(*inode).into()).collect();
            }
            4 => found.queue = (word(value, 0), word(value, 4)),
            6 => found.shutdown = value.first().copied().unwrap_or(0),
            _ => {}
        }
    }
    Some(found)
}
