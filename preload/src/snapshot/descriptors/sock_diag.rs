//! sock_diag(7): what a unix socket is connected to, and its queues.

use alloc::{vec, vec::Vec};

use stasis_sys::{
    Errno, Result,
    file::{self, Fd},
    socket,
};

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
    /// For a listening socket: the inodes of the sockets that wait to be accepted, in order.
    pub waiting: Vec<u64>,
}

/// struct nlmsghdr and struct unix_diag_req (linux/unix_diag.h).
#[repr(C)]
struct Request {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_HEADER: usize = 16;
/// struct unix_diag_msg.
const MESSAGE: usize = 16;

/// The unix socket with an inode number (32 bits: sock_diag knows no more).
///
/// # Errors
/// ENOENT where there is none; others where the kernel has no CONFIG_UNIX_DIAG.
pub fn unix(inode: u64) -> Result<UnixSocket> {
    let netlink =
        socket::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG)?;
    let answer = ask(netlink, inode);
    let _ = file::close(netlink);
    answer
}

fn ask(netlink: Fd, inode: u64) -> Result<UnixSocket> {
    const SHOW_PEER: u32 = 1 << 2;
    const SHOW_ICONS: u32 = 1 << 3;
    const SHOW_RQLEN: u32 = 1 << 4;
    let request = Request {
        len: size_of::<Request>() as u32,
        kind: SOCK_DIAG_BY_FAMILY,
        flags: libc::NLM_F_REQUEST as u16,
        sequence: 1,
        port: 0,
        family: libc::AF_UNIX as u8,
        protocol: 0,
        pad: 0,
        states: u32::MAX,
        inode: inode as u32,
        show: SHOW_PEER | SHOW_ICONS | SHOW_RQLEN,
        // INET_DIAG_NOCOOKIE: whatever generation.
        cookie: [u32::MAX; 2],
    };
    // SAFETY: the request is plain data without padding.
    let bytes =
        unsafe { core::slice::from_raw_parts((&raw const request).cast::<u8>(), size_of::<Request>()) };
    socket::send_all(netlink, bytes, None)?;
    // A backlog may have thousands (net.core.somaxconn): an inode each.
    let mut answer = vec![0u8; 32 << 10];
    let len = file::read(netlink, &mut answer)?;
    parse(&answer[..len])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn parse(answer: &[u8]) -> Result<UnixSocket> {
    let kind = word(answer, 4) as u16;
    if kind == libc::NLMSG_ERROR as u16 {
        return Err(Errno(-(word(answer, NLMSG_HEADER) as i32)));
    }
    if kind != SOCK_DIAG_BY_FAMILY || answer.len() < NLMSG_HEADER + MESSAGE {
        return Err(Errno(libc::EIO));
    }
    let mut found = UnixSocket { state: answer[NLMSG_HEADER + 2], ..UnixSocket::default() };
    let mut attributes = &answer[NLMSG_HEADER + MESSAGE..];
    // struct rtattr: u16 length with this header, u16 type, then the value, padded to 4 bytes.
    while attributes.len() >= 4 {
        let header = word(attributes, 0);
        let (len, kind) = ((header & 0xffff) as usize, header >> 16);
        match kind {
            2 => found.peer = Some(word(attributes, 4).into()),
            3 => {
                let inodes = attributes.get(4..len).unwrap_or_default().as_chunks::<4>().0;
                found.waiting = inodes.iter().map(|inode| u32::from_ne_bytes(*inode).into()).collect();
            }
            4 => found.queue = (word(attributes, 4), word(attributes, 8)),
            6 => found.shutdown = attributes.get(4).copied().unwrap_or(0),
            _ => {}
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}
