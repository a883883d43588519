//! sock_diag(7): what the kernel knows of TCP connections whose sockets this process does not have.

use alloc::vec::Vec;

use stasis_sys::{Errno, Result};

use super::{
    address::Address,
    netlink::{self, Header, word},
};

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// A state of net/tcp_states.h.
    pub state: u8,
    /// Bytes that have not been read.
    pub unread: u32,
    /// Bytes that the other end has not acknowledged; an end of stream that was sent counts as one.
    pub unacknowledged: u32,
    /// 0: it was closed, or was not accepted yet.
    pub inode: u32,
    pub local: Address,
    pub peer: Address,
    /// The interface that it is bound to; 0: none.
    pub interface: u32,
    /// How long ago it last sent anything, in milliseconds; for one that never did, how long ago it was connected.
    pub idle_ms: u32,
}

/// struct inet_diag_req_v2 (linux/inet_diag.h) after its header.
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: Id,
}

// SAFETY: 16 bytes of header, 8, and 48: nothing between them.
unsafe impl netlink::Request for Request {
    fn header(&self) -> &Header {
        &self.header
    }
}

/// struct inet_diag_sockid: ports and addresses in network order.
#[repr(C)]
#[derive(Default)]
struct Id {
    local_port: [u8; 2],
    peer_port: [u8; 2],
    local: [u8; 16],
    peer: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// struct inet_diag_msg.
const MESSAGE: usize = 72;
const INET_DIAG_INFO: u16 = 2;
/// INET_DIAG_NOCOOKIE: whatever generation.
const NO_COOKIE: [u32; 2] = [u32::MAX; 2];

/// A connection's end, by its own and its peer's address.
///
/// # Errors
/// ENOENT where there is none; others where the kernel has no CONFIG_INET_DIAG.
pub fn find(local: &Address, peer: &Address) -> Result<End> {
    let id = Id {
        local_port: local.port.to_be_bytes(),
        peer_port: peer.port.to_be_bytes(),
        local: local.as_asked(),
        peer: peer.as_asked(),
        interface: 0,
        cookie: NO_COOKIE,
    };
    let ends = ask(local.family(), u32::MAX, id, false)?;
    // The lookup is that of an arriving packet: where there is no connection it finds a listener.
    let found = ends.into_iter().find(|end| end.local == *local && end.peer == *peer);
    found.ok_or(Errno(libc::ENOENT))
}

/// The connections at a port that nobody has accepted.
///
/// # Errors
/// Where the kernel has no CONFIG_INET_DIAG.
pub fn not_accepted(port: u16) -> Result<Vec<End>> {
    const ESTABLISHED: u32 = 1 << 1;
    const CLOSE_WAIT: u32 = 1 << 8;
    let mut all = at(port, ESTABLISHED | CLOSE_WAIT)?;
    all.retain(|end| end.inode == 0);
    Ok(all)
}

/// What a socket with this port is being connected to.
///
/// # Errors
/// ENOENT where it is not (any more); others where the kernel has no CONFIG_INET_DIAG.
pub fn connecting(port: u16, inode: u64) -> Result<End> {
    const SYN_SENT: u32 = 1 << 2;
    let found = at(port, SYN_SENT)?.into_iter().find(|end| u64::from(end.inode) == inode);
    found.ok_or(Errno(libc::ENOENT))
}

/// The ends of connections at a port, in one of these states.
fn at(port: u16, states: u32) -> Result<Vec<End>> {
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let id = Id { local_port: port.to_be_bytes(), cookie: NO_COOKIE, ..Id::default() };
        all.extend(ask(family, states, id, true)?);
    }
    all.retain(|end| end.local.port == port);
    Ok(all)
}

fn ask(family: i32, states: u32, id: Id, is_dump: bool) -> Result<Vec<End>> {
    let request = Request {
        header: Header::of::<Request>(is_dump),
        family: family as u8,
        protocol: libc::IPPROTO_TCP as u8,
        extensions: 1 << (INET_DIAG_INFO - 1),
        pad: 0,
        states,
        id,
    };
    let mut ends = Vec::new();
    netlink::ask(&request, |message| ends.extend(parse(message)))?;
    Ok(ends)
}

fn parse(message: &[u8]) -> Option<End> {
    let fixed = message.get(..MESSAGE)?;
    let family = i32::from(fixed[0]);
    let address = |port: usize, ip: usize| {
        let port = u16::from_be_bytes([fixed[port], fixed[port + 1]]);
        Address::from_kernel(family, port, fixed[ip..ip + 16].try_into().unwrap_or_default())
    };
    let mut end = End {
        state: fixed[1],
        local: address(4, 8),
        peer: address(6, 24),
        unread: word(fixed, 56),
        unacknowledged: word(fixed, 60),
        inode: word(fixed, 68),
        interface: word(fixed, 40),
        idle_ms: 0,
    };
    // struct tcp_info: tcpi_last_data_sent is at 44.
    if let Some((_, info)) =
        netlink::attributes(&message[MESSAGE..]).find(|(kind, _)| *kind == INET_DIAG_INFO)
    {
        end.idle_ms = word(info, 44);
    }
    Some(end)
}
