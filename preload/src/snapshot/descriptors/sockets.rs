//! Sockets: pairs inside the process with what they have not read, and those that can be made afresh.

use alloc::{format, vec, vec::Vec};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, SocketOption},
};
use stasis_sys::{
    Errno,
    file::{self, Fd},
    socket, sync,
};

use super::{CLOSE_IT, Duplicate, Open, Table, bytes, inherited, refusal, sock_diag};
use crate::procfs;

/// What every socket can be asked.
struct Asked {
    domain: i32,
    kind: i32,
    protocol: i32,
    socket: Duplicate,
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
    match (domain, kind, protocol) {
        (libc::AF_UNIX, ..) => unix(table, open, &asked),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => tcp(open, &asked),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => udp(open, &asked),
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

const WAIT: &str = "take the checkpoint when the program has read it";

fn unix(table: &Table<'_>, open: &Open, asked: &Asked) -> Result<DescriptionKind, Refusal> {
    let found = sock_diag::unix(open.stat.st_ino)
        .map_err(|error| open.failed("sock_diag does not tell its other end", error))?;
    if open.field("scm_fds:").and_then(procfs::decimal).is_some_and(|count| count > 0) {
        return open.refuse("descriptors are on their way through it (SCM_RIGHTS)", WAIT);
    }
    let local = name(asked, false);
    if found.state == sock_diag::LISTEN {
        if found.queue.0 > 0 {
            return open.refuse(
                &format!("{} connections wait in it to be accepted", found.queue.0),
                "take the checkpoint when the program has accepted them",
            );
        }
        return Ok(fresh(asked, local, Vec::new(), Some(found.queue.1 as i32)));
    }
    match found.peer {
        // A datagram socket that was pointed at a named one (syslog) is pointed there again.
        Some(peer)
            if peer != 0
                && asked.kind == libc::SOCK_DGRAM
                && found.queue.0 == 0
                && !table.opens.iter().any(|other| other.stat.st_ino == peer && is_socket(other))
                && !name(asked, true).is_empty() =>
        {
            Ok(fresh(asked, local, name(asked, true), None))
        }
        Some(peer) => Ok(DescriptionKind::SocketPair {
            pair: if peer == 0 { open.stat.st_ino } else { peer.min(open.stat.st_ino) },
            other_closed: peer == 0,
            local,
            socket_type: asked.kind,
            received: if table.stopped() { received(open, asked)? } else { Vec::new() },
            charged: charged(asked),
            shutdown_read: found.shutdown & 1 != 0,
            shutdown_write: found.shutdown & 2 != 0,
            options: options(asked),
        }),
        None if found.queue.0 > 0 => {
            open.refuse(&format!("{} bytes of datagrams wait in it", found.queue.0), WAIT)
        }
        None => Ok(fresh(asked, local, Vec::new(), None)),
    }
}

fn is_socket(open: &Open) -> bool {
    open.stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
}

fn tcp(open: &Open, asked: &Asked) -> Result<DescriptionKind, Refusal> {
    const TCP_CLOSE: u8 = 7;
    const TCP_LISTEN: u8 = 10;
    // struct tcp_info (linux/tcp.h): eight bytes of flags, the state first; for a listening socket tcpi_unacked
    // (at 24) is the number of connections not accepted yet, tcpi_sacked (at 28) the backlog.
    let mut info = [0u8; 32];
    socket::option(asked.socket.0, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)
        .map_err(|error| open.failed("it does not answer TCP_INFO", error))?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let local = bound(name(asked, false));
    match info[0] {
        TCP_LISTEN if word(24) > 0 => open.refuse(
            &format!("{} connections wait in it to be accepted", word(24)),
            "take the checkpoint when the program has accepted them",
        ),
        TCP_LISTEN => Ok(fresh(asked, local, Vec::new(), Some(word(28) as i32))),
        TCP_CLOSE => Ok(fresh(asked, local, Vec::new(), None)),
        _ => outside(
            open,
            "it is a TCP connection, which is not supported yet",
            "take the checkpoint when the program has closed it",
        ),
    }
}

fn udp(open: &Open, asked: &Asked) -> Result<DescriptionKind, Refusal> {
    let ready = sync::poll(asked.socket.0, libc::POLLIN, 0)
        .map_err(|error| open.failed("it cannot be polled", error))?;
    if ready & libc::POLLIN != 0 {
        return outside(open, "datagrams wait in it", WAIT);
    }
    Ok(fresh(asked, bound(name(asked, false)), name(asked, true), None))
}

fn fresh(asked: &Asked, local: Vec<u8>, peer: Vec<u8>, backlog: Option<i32>) -> DescriptionKind {
    DescriptionKind::Socket {
        domain: asked.domain,
        socket_type: asked.kind,
        protocol: asked.protocol,
        local,
        peer,
        backlog,
        options: options(asked),
    }
}

/// A struct sockaddr; empty when there is none, or an unnamed one.
fn name(asked: &Asked, peer: bool) -> Vec<u8> {
    let mut address = [0u8; 128];
    match socket::name(asked.socket.0, peer, &mut address) {
        Ok(len) if len > size_of::<libc::sa_family_t>() => bytes(&address, len),
        _ => Vec::new(),
    }
}

/// An internet address; empty when its port is 0, which no bound socket has.
fn bound(address: Vec<u8>) -> Vec<u8> {
    if address.get(2..4).is_none_or(|port| port == [0, 0]) { Vec::new() } else { address }
}

/// What the socket has not read yet, by peeking from offset to offset (socket(7), SO_PEEK_OFF). The program's own
/// offset is put back.
fn received(open: &Open, asked: &Asked) -> Result<Vec<Vec<u8>>, Refusal> {
    let socket = asked.socket.0;
    let own = socket::number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    socket::set_number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)
        .map_err(|error| open.failed("what it has received cannot be read (SO_PEEK_OFF)", error))?;
    let messages = peek_all(socket, asked.kind == libc::SOCK_STREAM);
    let put_back = socket::set_number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, own);
    match (messages, put_back) {
        (Ok(messages), Ok(())) => Ok(messages),
        (Err(error), _) | (_, Err(error)) => Err(refusal(
            open.fd,
            &open.link,
            format!("what it has received cannot be read: {error}"),
            "take the checkpoint when the program has read it",
        )),
    }
}

/// How much of the send buffer is taken; 0 where the kernel does not tell.
fn charged(asked: &Asked) -> u32 {
    const SIOCOUTQ: u64 = 0x5411;
    let mut bytes = 0i32;
    // SAFETY: SIOCOUTQ writes an int.
    let told = unsafe { file::ioctl(asked.socket.0, SIOCOUTQ, &mut bytes) };
    told.map_or(0, |_| bytes.max(0) as u32)
}

/// The largest message that a socket accepts is bounded by its send buffer; twice net.core.wmem_max's default
/// is far below this, in bytes.
const LARGEST: usize = 4 << 20;

fn peek_all(socket: Fd, stream: bool) -> Result<Vec<Vec<u8>>, Errno> {
    let mut all = Vec::new();
    let mut size = 64 << 10;
    loop {
        let mut buffer = vec![0; size];
        match socket::peek(socket, &mut buffer, if stream { 0 } else { libc::MSG_TRUNC }) {
            Ok(0) if stream => break,
            // A datagram without content; at the end of a connection (SOCK_SEQPACKET) zero comes for ever.
            Ok(0) if sync::poll(socket, libc::POLLRDHUP, 0)? & (libc::POLLRDHUP | libc::POLLHUP) != 0 => {
                break;
            }
            Ok(len) if len > size => {
                // The offset has moved on by what was read, into the middle of the message: once more from the start.
                if len > LARGEST {
                    return Err(Errno(libc::EMSGSIZE));
                }
                size = len;
                all.clear();
                socket::set_number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
            }
            Ok(len) => {
                buffer.truncate(len);
                all.push(buffer);
            }
            Err(Errno(libc::EAGAIN)) => break,
            Err(Errno(libc::EINTR)) => {}
            // The other end was closed with data unread: an error that is reported once, and lost with the peer.
            Err(Errno(libc::ECONNRESET)) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(if stream && !all.is_empty() { vec![all.concat()] } else { all })
}

/// The options that differ from those of a new socket of the kind: what nobody set is left to the kernel at
/// restart.
fn options(asked: &Asked) -> Vec<SocketOption> {
    let socket = libc::SOL_SOCKET;
    let (tcp, ip, ipv6) = (libc::IPPROTO_TCP, libc::IPPROTO_IP, libc::IPPROTO_IPV6);
    let common = [
        libc::SO_REUSEADDR,
        libc::SO_REUSEPORT,
        libc::SO_KEEPALIVE,
        libc::SO_BROADCAST,
        libc::SO_LINGER,
        libc::SO_RCVTIMEO,
        libc::SO_SNDTIMEO,
        libc::SO_RCVLOWAT,
        libc::SO_PRIORITY,
        libc::SO_PASSCRED,
        libc::SO_OOBINLINE,
        libc::SO_TIMESTAMP,
        libc::SO_DONTROUTE,
        libc::SO_BINDTODEVICE,
        libc::SO_PEEK_OFF,
    ]
    .map(|name| (socket, name));
    // TCP sizes its buffers by itself, and setting them would stop that.
    let buffers = [(socket, libc::SO_SNDBUF), (socket, libc::SO_RCVBUF)];
    let of_tcp = [
        libc::TCP_NODELAY,
        libc::TCP_CORK,
        libc::TCP_KEEPIDLE,
        libc::TCP_KEEPINTVL,
        libc::TCP_KEEPCNT,
        libc::TCP_USER_TIMEOUT,
        libc::TCP_DEFER_ACCEPT,
    ]
    .map(|name| (tcp, name));
    let of_ip = [
        libc::IP_TOS,
        libc::IP_TTL,
        libc::IP_PKTINFO,
        libc::IP_MULTICAST_TTL,
        libc::IP_MULTICAST_LOOP,
        libc::IP_RECVERR,
        libc::IP_FREEBIND,
        libc::IP_MTU_DISCOVER,
    ]
    .map(|name| (ip, name));
    let of_ipv6 = [
        libc::IPV6_V6ONLY,
        libc::IPV6_UNICAST_HOPS,
        libc::IPV6_RECVPKTINFO,
        libc::IPV6_TCLASS,
        libc::IPV6_MULTICAST_HOPS,
        libc::IPV6_MULTICAST_LOOP,
    ]
    .map(|name| (ipv6, name));
    let is_tcp = asked.protocol == tcp && asked.domain != libc::AF_UNIX;
    let mut names = Vec::from(common);
    if is_tcp {
        names.extend(of_tcp);
    } else {
        names.extend(buffers);
    }
    match asked.domain {
        libc::AF_INET => names.extend(of_ip),
        libc::AF_INET6 => names.extend(of_ipv6),
        _ => {}
    }
    let new = socket::socket(asked.domain, asked.kind | libc::SOCK_CLOEXEC, asked.protocol).map(Duplicate);
    names
        .into_iter()
        .filter_map(|(level, name)| {
            let mut value = [0u8; 32];
            let len = socket::option(asked.socket.0, level, name, &mut value).ok()?;
            let mut default = [0u8; 32];
            let is_default = new.as_ref().is_ok_and(|new| {
                socket::option(new.0, level, name, &mut default).is_ok_and(|n| default[..n] == value[..len])
            });
            (!is_default).then(|| SocketOption { level, name, value: bytes(&value, len) })
        })
        .collect()
}
