//! sock_diag(7): what the kernel knows of TCP connections whose sockets this process does not have.

use alloc::{vec, vec::Vec};

use stasis_sys::{
    Errno, Result,
    file::{self, Fd},
    socket,
};

use super::address::Address;

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
    /// How long ago it last sent anything, in milliseconds; for one that never did, how long ago it was connected.
    pub idle_ms: u32,
}

/// struct nlmsghdr and struct inet_diag_req_v2 (linux/inet_diag.h).
#[repr(C)]
struct Request {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: Id,
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

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const HEADER: usize = 16;
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
    let ends = ask(request(local.family(), u32::MAX, id, libc::NLM_F_REQUEST as u16))?;
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
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let id = Id { local_port: port.to_be_bytes(), cookie: NO_COOKIE, ..Id::default() };
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        all.extend(ask(request(family, ESTABLISHED | CLOSE_WAIT, id, flags))?);
    }
    all.retain(|end| end.inode == 0 && end.local.port == port);
    Ok(all)
}

fn request(family: i32, states: u32, id: Id, flags: u16) -> Request {
    Request {
        len: size_of::<Request>() as u32,
        kind: SOCK_DIAG_BY_FAMILY,
        flags,
        sequence: 1,
        port: 0,
        family: family as u8,
        protocol: libc::IPPROTO_TCP as u8,
        extensions: 1 << (INET_DIAG_INFO - 1),
        pad: 0,
        states,
        id,
    }
}

fn ask(request: Request) -> Result<Vec<End>> {
    let netlink =
        socket::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG)?;
    let answer = exchange(netlink, &request);
    let _ = file::close(netlink);
    answer
}

fn exchange(netlink: Fd, request: &Request) -> Result<Vec<End>> {
    // SAFETY: the request is plain data without padding.
    let bytes = unsafe {
        core::slice::from_raw_parts(core::ptr::from_ref(request).cast::<u8>(), size_of::<Request>())
    };
    socket::send_all(netlink, bytes, None)?;
    let is_dump = request.flags & libc::NLM_F_DUMP as u16 == libc::NLM_F_DUMP as u16;
    let (mut answer, mut ends) = (vec![0u8; 64 << 10], Vec::new());
    loop {
        let len = file::read(netlink, &mut answer)?;
        let mut rest = &answer[..len];
        while rest.len() >= HEADER {
            let header = word(rest, 0) as usize;
            let message = rest.get(..header.clamp(HEADER, rest.len())).unwrap_or_default();
            match i32::from(word(message, 4) as u16) {
                libc::NLMSG_DONE => return Ok(ends),
                libc::NLMSG_ERROR => {
                    return Err(Errno(0i32.wrapping_sub(word(message, HEADER) as i32)));
                }
                kind if kind == i32::from(SOCK_DIAG_BY_FAMILY) => {
                    ends.extend(parse(&message[HEADER..]));
                }
                _ => return Err(Errno(libc::EIO)),
            }
            rest = rest.get(header.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
        }
        if !is_dump {
            return Ok(ends);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
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
        idle_ms: 0,
    };
    let mut attributes = &message[MESSAGE..];
    // struct rtattr, see sock_diag.rs; struct tcp_info: tcpi_last_data_sent is at 44.
    while attributes.len() >= 4 {
        let header = word(attributes, 0);
        let (len, kind) = ((header & 0xffff) as usize, (header >> 16) as u16);
        if kind == INET_DIAG_INFO {
            end.idle_ms = word(attributes, 4 + 44);
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(end)
}
