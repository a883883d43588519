//! Sockets: pairs inside the process with what they have not read, and those that can be made afresh.

use alloc::{format, vec::Vec};

use stasis_protocol::{
    coordinator::{End, Refusal},
    image::{Datagram, DescriptionKind, SocketFile},
};
use stasis_sys::{file, socket, sync};

use super::{
    CLOSE_IT, Duplicate, Open, Table, bytes, datagrams, ends,
    in_flight::{self, Messages},
    inherited,
    options::{self, options},
    peers, plain, sock_diag, socket_files, tcp,
    unread::{self, Unread},
};
use crate::state;

/// What every socket can be asked.
pub struct Asked {
    pub domain: i32,
    pub kind: i32,
    pub protocol: i32,
    pub socket: Duplicate,
}

pub fn capture(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let socket = table.duplicate(open)?;
    let number = |name| {
        socket::number_option(socket.0, libc::SOL_SOCKET, name)
            .map_err(|error| open.failed("it does not answer getsockopt", error))
    };
    let (domain, kind, protocol) =
        (number(libc::SO_DOMAIN)?, number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?);
    let asked = Asked { domain, kind, protocol, socket };
    options::check(open, &asked)?;
    match (domain, kind, protocol) {
        (libc::AF_UNIX, ..) => unix(table, open, &asked),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => {
            tcp::capture(table, open, &asked)
        }
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => udp(table, open, &asked),
        (libc::AF_NETLINK, ..) => plain::netlink(table, open, &asked),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => Ok(plain::internet(&asked, true)),
        (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)
        | (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6) => Ok(plain::internet(&asked, false)),
        _ => outside(
            open,
            &format!("a socket of domain {domain}, type {kind}, protocol {protocol} cannot be saved"),
            CLOSE_IT,
        ),
    }
}

/// Inherited where it is a standard descriptor; else refused.
fn outside(open: &Open, reason: &str, remedy: &str) -> Result<DescriptionKind, Refusal> {
    inherited(open).map_or_else(|| open.refuse(reason, remedy), Ok)
}

pub const WAIT: &str = "take the checkpoint when the program has read it";
pub const URGENT: &str = "urgent data waits in it (MSG_OOB)";

fn unix(table: &Table<'_>, open: &Open, asked: &Asked) -> Result<DescriptionKind, Refusal> {
    let found = sock_diag::unix(open.stat.st_ino)
        .map_err(|error| open.failed("sock_diag does not tell its other end", error))?;
    if open.is_in_flight() && in_flight::is_receiver(open) {
        return open
            .refuse("it is on its way to the program, and other descriptors to it (SCM_RIGHTS)", WAIT);
    }
    let local = name(asked, false);
    if found.state == sock_diag::LISTEN {
        if found.waiting.len() != found.queue.0 as usize || found.waiting.contains(&0) {
            return open.refuse(
                &format!("{} connections wait in it to be accepted", found.queue.0),
                "take the checkpoint when the program has accepted them",
            );
        }
        let backlog = Some(found.queue.1 as i32);
        let file = socket_files::of(table, asked, &found, &local);
        return Ok(fresh(asked, local, file, Vec::new(), backlog, found.waiting, Vec::new()));
    }
    if asked.kind == libc::SOCK_DGRAM && !is_pair(open, asked, &found, &local) {
        let received = datagrams(table, open, asked)?;
        let file = socket_files::of(table, asked, &found, &local);
        return Ok(fresh(asked, local, file, name(asked, true), None, Vec::new(), received));
    }
    let Some(peer) = found.peer else {
        let file = socket_files::of(table, asked, &found, &local);
        return Ok(fresh(asked, local, file, Vec::new(), None, Vec::new(), Vec::new()));
    };
    // Nobody has accepted it: its other end is no socket of anybody's yet.
    let waits = peer == 0 && asked.kind != libc::SOCK_DGRAM && found.shutdown & 1 == 0;
    let charged = charged(asked);
    let ready = sync::poll(asked.socket.0, libc::POLLPRI, 0)
        .map_err(|error| open.failed("it cannot be polled", error))?;
    if ready & libc::POLLPRI != 0 {
        return open.refuse(URGENT, WAIT);
    }
    if waits && charged > 0 {
        return open.refuse(
            "bytes wait in it, and the other side has not accepted the connection yet",
            "take the checkpoint when it has",
        );
    }
    let (received, senders, rights) = messages(table, open, asked)?;
    Ok(DescriptionKind::SocketPair {
        pair: if peer == 0 { open.stat.st_ino } else { peer.min(open.stat.st_ino) },
        other_closed: peer == 0 && !waits,
        reset: asked.kind != libc::SOCK_DGRAM && ready & libc::POLLERR != 0,
        domain: asked.domain,
        file: socket_files::of(table, asked, &found, &local),
        local,
        peer: Vec::new(),
        socket_type: asked.kind,
        received,
        senders,
        rights,
        charged,
        shutdown_read: found.shutdown & 1 != 0,
        shutdown_write: found.shutdown & 2 != 0,
        peer_is: peers::other_end(asked),
        options: options(asked),
    })
}

/// What a connected unix socket has not read, as far as it is this process' to copy.
fn messages(table: &Table<'_>, open: &Open, asked: &Asked) -> Result<Messages, Refusal> {
    if !table.copies_queue(open) {
        return Ok(Messages::default());
    }
    if let Some(messages) = table.in_flight.messages(open) {
        return Ok(messages);
    }
    let Unread { messages, senders, .. } = unread::received(open, asked.kind, asked.socket.0)?;
    Ok((messages, senders, Vec::new()))
}

/// The same for datagrams.
fn datagrams(table: &Table<'_>, open: &Open, asked: &Asked) -> Result<Vec<Datagram>, Refusal> {
    if !table.copies_queue(open) {
        return Ok(Vec::new());
    }
    match table.in_flight.datagrams(open) {
        Some(datagrams) => Ok(datagrams),
        None => Ok(datagrams::received(open, asked.socket.0)?.0),
    }
}

/// Whether a datagram socket is one of two that nobody else can send to: both without a name and connected to
/// each other. All others are made again one by one, and connected by name.
fn is_pair(open: &Open, asked: &Asked, found: &sock_diag::UnixSocket, local: &[u8]) -> bool {
    let back = |peer| sock_diag::unix(peer).ok().and_then(|other| other.peer);
    match found.peer {
        Some(0) => name(asked, true).is_empty(),
        Some(peer) => {
            local.is_empty() && name(asked, true).is_empty() && back(peer) == Some(open.stat.st_ino)
        }
        None => false,
    }
}

/// The ends that wait in a listening unix socket. Each has the inode of its client for a name, which is the client's
/// side.
pub fn waiting_ends(clients: &[u64]) -> Vec<End> {
    let end = |&client| End {
        has: ends::named(client, false),
        wants: ends::named(client, true),
        refusal: None,
        socket: true,
        terminal: None,
    };
    clients.iter().map(end).collect()
}

fn udp(table: &Table<'_>, open: &Open, asked: &Asked) -> Result<DescriptionKind, Refusal> {
    if table.stopped() && is_corked(asked) {
        let reason = "bytes wait in it for the rest of their datagram (UDP_CORK, MSG_MORE)";
        return open.refuse(reason, "take the checkpoint when the program has sent it");
    }
    let received = datagrams(table, open, asked)?;
    Ok(fresh(asked, bound(name(asked, false)), None, name(asked, true), None, Vec::new(), received))
}

pub fn fresh(
    asked: &Asked,
    local: Vec<u8>,
    file: Option<SocketFile>,
    peer: Vec<u8>,
    backlog: Option<i32>,
    waiting: Vec<u64>,
    received: Vec<Datagram>,
) -> DescriptionKind {
    DescriptionKind::Socket {
        domain: asked.domain,
        socket_type: asked.kind,
        protocol: asked.protocol,
        local,
        peer,
        backlog,
        waiting,
        received,
        refused: None,
        listener_is: backlog.and_then(|_| peers::other_end(asked)),
        file,
        options: [options(asked), options::of_unconnected(asked)].concat(),
    }
}

/// A struct sockaddr; empty when there is none, or an unnamed one.
pub fn name(asked: &Asked, peer: bool) -> Vec<u8> {
    let mut address = [0u8; 128];
    match socket::name(asked.socket.0, peer, &mut address) {
        Ok(len) if len > size_of::<libc::sa_family_t>() => bytes(&address, len),
        _ => Vec::new(),
    }
}

/// An internet address; empty when its port is 0, which no bound socket has.
pub fn bound(address: Vec<u8>) -> Vec<u8> {
    if address.get(2..4).is_none_or(|port| port == [0, 0]) { Vec::new() } else { address }
}

/// Whether bytes wait in a socket of UDP that it does not send: what a device has not sent yet leaves by itself.
fn is_corked(asked: &Asked) -> bool {
    const TRIES: usize = 100;
    const PAUSE: u64 = 1_000_000;
    let stays = |_| {
        let waits = charged(asked) > 0;
        if waits {
            state::pause(PAUSE);
        }
        waits
    };
    (0..TRIES).all(stays)
}

/// How much of the send buffer is taken; 0 where the kernel does not tell.
fn charged(asked: &Asked) -> u32 {
    const SIOCOUTQ: u64 = 0x5411;
    let mut bytes = 0i32;
    // SAFETY: SIOCOUTQ writes an int.
    let told = unsafe { file::ioctl(asked.socket.0, SIOCOUTQ, &mut bytes) };
    told.map_or(0, |_| bytes.max(0) as u32)
}
