//! TCP connections: made again with the same addresses and ports at both ends, by connecting to a socket that listens for
//! nothing else.
//!
//! All are made before the program's own sockets listen, and with SO_REUSEADDR, without which those could not be bound
//! while connections of the same port are there ([`late`] takes it off again).

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use stasis_protocol::{
    image::{DescriptionKind, SocketOption},
    plan::Call,
};

use super::{
    Installed,
    joint::{Common, Place},
    kernel::{done, owned},
    raw,
    socket_files::bind,
    sockets::{connect, set_options},
};
use crate::restart::plan::{call, pointing};

/// How long to try for a port that a connection which has ended still has (TIME_WAIT): within one host the kernel gives it
/// away after a second (net.ipv4.tcp_tw_reuse).
const PATIENCE: Duration = Duration::from_secs(4);

/// socket(7).
pub const SO_BUF_LOCK: i32 = 72;

/// One end.
#[derive(Clone)]
struct End<'a> {
    domain: i32,
    local: &'a [u8],
    peer: &'a [u8],
}

/// What is done with the other end, where no process has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It was closed: the program finds the end of the stream.
    Closed,
    /// It was outside, or reset the connection: the program finds ECONNRESET.
    Reset,
}

/// A connection with what was not read at either end; the second end is there where `other` is.
///
/// # Errors
/// bind(2)'s and connect(2)'s.
pub fn make(
    common: &Common<'_>,
    one: Place,
    other: Option<Place>,
    missing: Missing,
) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let kind = &common.description(one).kind;
    let DescriptionKind::SocketPair { domain, local, peer, shutdown_write, options, .. } = kind else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let here = End { domain: *domain, local, peer };
    let Some(other) = other else {
        let (own, stand_in) = alone(&here, missing)?;
        if let Some(bytes) = received(common, one) {
            refill(&stand_in, &own, bytes)?;
        }
        if missing == Missing::Reset {
            let at_once = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
            let linger = SocketOption { level: libc::SOL_SOCKET, name: libc::SO_LINGER, value: at_once };
            set_options(&stand_in, &[linger])?;
        }
        set_connected(&own, options)?;
        drop(stand_in);
        if *shutdown_write && missing == Missing::Closed {
            shut(&own, libc::SHUT_WR)?;
        }
        return Ok((own, None));
    };
    let kind = &common.description(other).kind;
    let DescriptionKind::SocketPair { domain, local, peer, .. } = kind else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let there = End { domain: *domain, local, peer };
    let swapped = |(two, one)| (one, two);
    let ends = patiently(|| {
        if listens(common, here.local) {
            joined(&here, &there).or_else(|_| joined(&there, &here).map(swapped))
        } else {
            joined(&there, &here).map(swapped).or_else(|_| joined(&here, &there))
        }
    })?;
    for (sender, receiver, place) in [(&ends.1, &ends.0, one), (&ends.0, &ends.1, other)] {
        if let Some(bytes) = received(common, place) {
            refill(sender, receiver, bytes)?;
        }
    }
    for (end, place) in [(&ends.0, one), (&ends.1, other)] {
        finish(end, &common.description(place).kind)?;
    }
    Ok((ends.0, Some(ends.1)))
}

fn finish(end: &OwnedFd, kind: &DescriptionKind) -> io::Result<()> {
    let DescriptionKind::SocketPair { options, shutdown_read, shutdown_write, .. } = kind else {
        return Ok(());
    };
    set_connected(end, options)?;
    for (how, wanted) in [(libc::SHUT_RD, shutdown_read), (libc::SHUT_WR, shutdown_write)] {
        if *wanted {
            shut(end, how)?;
        }
    }
    Ok(())
}

/// Sets the options of a connection: without what can only be set before.
fn set_connected(end: &OwnedFd, options: &[SocketOption]) -> io::Result<()> {
    let early =
        |option: &&SocketOption| (option.level, option.name) != (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    let options: Vec<SocketOption> = options.iter().filter(early).cloned().collect();
    set_options(end, &options)
}

/// A connection that waits to be accepted: by a socket that listens already.
///
/// # Errors
/// bind(2)'s and connect(2)'s.
pub fn make_waiting(common: &Common<'_>, place: Place) -> io::Result<OwnedFd> {
    let kind = &common.description(place).kind;
    let DescriptionKind::SocketPair { domain, local, peer, .. } = kind else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let end = patiently(|| client(&End { domain: *domain, local, peer }, peer))?;
    finish(&end, kind)?;
    Ok(end)
}

/// Whether a socket that is no end of a connection is being connected to `peer`.
pub fn is_connecting(domain: i32, socket_type: i32, peer: &[u8]) -> bool {
    matches!(domain, libc::AF_INET | libc::AF_INET6) && socket_type == libc::SOCK_STREAM && !peer.is_empty()
}

/// Begins to connect a socket, without waiting for an answer.
///
/// # Errors
/// connect(2)'s.
pub fn begin(socket: &OwnedFd, peer: &[u8]) -> io::Result<()> {
    super::kernel::set_status_flags(socket, libc::O_NONBLOCK)?;
    match connect(socket, peer) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// Lets a socket be refused by nobody at a port of this machine, which leaves it as any failed attempt to connect does. Why
/// it failed the kernel does not tell. `is_told`: the program has been told of it.
///
/// # Errors
/// connect(2)'s.
pub fn refuse(socket: &OwnedFd, domain: i32, is_told: bool) -> io::Result<()> {
    const PATIENCE_MS: i32 = 1000;
    // Bound and not listening, it keeps others from listening there.
    let nobody = reusing(domain)?;
    bind(&nobody, &loopback(domain))?;
    super::kernel::set_status_flags(socket, libc::O_NONBLOCK)?;
    match connect(socket, &name(&nobody)?) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
        Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
    }
    let mut poll = libc::pollfd { fd: raw(socket), events: 0, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, PATIENCE_MS) };
    if is_told {
        let (mut error, mut len) = (0i32, size_of::<i32>() as u32);
        let (to, len) = ((&raw mut error).cast(), &raw mut len);
        // SAFETY: writes an int and its length.
        done(unsafe { libc::getsockopt(raw(socket), libc::SOL_SOCKET, libc::SO_ERROR, to, len) })?;
    }
    Ok(())
}

/// The calls that take off what was set for the restart only.
pub fn late(kind: &DescriptionKind, fd: i32, installed: &mut Installed) {
    let options = match kind {
        DescriptionKind::SocketPair { domain, options, .. } if *domain != libc::AF_UNIX => options,
        DescriptionKind::Socket { socket_type: libc::SOCK_STREAM, domain, options, local, .. }
            if *domain != libc::AF_UNIX && !local.is_empty() =>
        {
            options
        }
        _ => return,
    };
    if options.iter().any(|option| (option.level, option.name) == (libc::SOL_SOCKET, libc::SO_REUSEADDR)) {
        return;
    }
    let offset = installed.keep(&0i32.to_ne_bytes());
    let arguments = [fd as u64, libc::SOL_SOCKET as u64, libc::SO_REUSEADDR as u64, 0, 4];
    let call: Call = pointing(call(libc::SYS_setsockopt, &arguments), 3, offset);
    installed.late.push(call);
}

fn received<'a>(common: &Common<'a>, end: Place) -> Option<&'a [u8]> {
    common.relations.places(end).into_iter().find_map(|place| match &common.description(place).kind {
        DescriptionKind::SocketPair { received, .. } => received.first().map(Vec::as_slice),
        _ => None,
    })
}

/// Whether a process of the checkpoint listens at the port of an address.
fn listens(common: &Common<'_>, address: &[u8]) -> bool {
    common.images.iter().flat_map(|image| &image.descriptions).any(|description| {
        matches!(&description.kind, DescriptionKind::Socket { backlog: Some(_), domain, local, .. }
            if *domain != libc::AF_UNIX && local.get(2..4).is_some() && local.get(2..4) == address.get(2..4))
    })
}

/// The server's end and the client's.
fn joined(server: &End<'_>, client_end: &End<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    let listener = listener(server.domain, server.local)?;
    let client = client(client_end, client_end.peer)?;
    Ok((accept(&listener, server.peer)?, client))
}

/// An end, and one that stands in for its other end, which has the other end's address where that is this machine's.
fn alone(end: &End<'_>, missing: Missing) -> io::Result<(OwnedFd, OwnedFd)> {
    if missing == Missing::Closed && !end.peer.is_empty() {
        let stand_in = End { domain: end.domain, local: end.peer, peer: end.local };
        let joined = joined(&stand_in, end).map(|(stand_in, own)| (own, stand_in));
        if joined.is_ok() {
            return joined;
        }
    }
    let near = |address: &[u8]| {
        let listener = listener(end.domain, &with_port(address, 0))?;
        let target = name(&listener)?;
        Ok::<_, io::Error>((listener, target))
    };
    let loopback = loopback(end.domain);
    let (listener, target, local) = match near(end.local) {
        Ok((listener, target)) if !end.local.is_empty() => (listener, target, end.local),
        // The address is not this machine's any more.
        _ => near(&loopback).map(|(listener, target)| (listener, target, &[][..]))?,
    };
    let own = client(&End { local, ..end.clone() }, &target)
        .or_else(|_| client(&End { local: &[], ..end.clone() }, &target))?;
    let stand_in = accept(&listener, &name(&own)?)?;
    Ok((own, stand_in))
}

fn listener(domain: i32, address: &[u8]) -> io::Result<OwnedFd> {
    let listener = reusing(domain)?;
    bind(&listener, address)?;
    // SAFETY: no memory is touched.
    done(unsafe { libc::listen(raw(&listener), 16) })?;
    Ok(listener)
}

/// A new socket with SO_REUSEADDR.
fn reusing(domain: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is touched.
    let socket =
        owned(unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP) })?;
    reuse(&socket)?;
    Ok(socket)
}

/// Sets SO_REUSEADDR.
///
/// # Errors
/// setsockopt(2)'s.
pub fn reuse(socket: &OwnedFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

fn set(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_options(socket, &[SocketOption { level, name, value: value.to_ne_bytes().into() }])
}

/// A socket connected to `target` from the end's own address and port.
fn client(end: &End<'_>, target: &[u8]) -> io::Result<OwnedFd> {
    chosen(end, target).or_else(|_| bound(end, target))
}

/// Tries again while ports are taken. Nothing tells when one is free again.
fn patiently<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL))
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

/// The kernel chooses the port, from a range of one: then it may be one that waits (TIME_WAIT) after a connection to the
/// same address has ended.
fn chosen(end: &End<'_>, target: &[u8]) -> io::Result<OwnedFd> {
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    let port = port(end.local).ok_or(io::ErrorKind::InvalidInput)?;
    let socket = reusing(end.domain)?;
    set(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    bind(&socket, &with_port(end.local, 0))?;
    let range = i32::from(port) << 16 | i32::from(port);
    set(&socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range)?;
    connect_in_time(&socket, target)?;
    set(&socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0)?;
    set(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 0)?;
    // Outside of net.ipv4.ip_local_port_range the kernel takes no notice.
    if name(&socket)? == end.local { Ok(socket) } else { Err(io::ErrorKind::AddrNotAvailable.into()) }
}

fn bound(end: &End<'_>, target: &[u8]) -> io::Result<OwnedFd> {
    let socket = reusing(end.domain)?;
    if !end.local.is_empty() {
        bind(&socket, end.local)?;
    }
    connect_in_time(&socket, target)?;
    Ok(socket)
}

/// connect(2), which within one host is done at once or, where a backlog is full, not at all.
fn connect_in_time(socket: &OwnedFd, target: &[u8]) -> io::Result<()> {
    let limit = [2i64.to_ne_bytes(), 0i64.to_ne_bytes()].concat();
    let option = |value| SocketOption { level: libc::SOL_SOCKET, name: libc::SO_SNDTIMEO, value };
    set_options(socket, &[option(limit)])?;
    connect(socket, target)?;
    set_options(socket, &[option(vec![0; 16])])
}

/// Accepts the one that is expected; others who happen to connect are turned away.
fn accept(listener: &OwnedFd, from: &[u8]) -> io::Result<OwnedFd> {
    loop {
        let mut address = [0u8; 128];
        let mut len = address.len() as u32;
        // SAFETY: writes at most the address' length, and the length.
        let accepted = owned(unsafe {
            libc::accept4(raw(listener), address.as_mut_ptr().cast(), &raw mut len, libc::SOCK_CLOEXEC)
        })?;
        if key(address.get(..len as usize).unwrap_or_default()) == key(from) {
            return Ok(accepted);
        }
    }
}

/// Address and port, without what does not tell ends apart.
fn key(address: &[u8]) -> (Option<u16>, Vec<u8>) {
    let ip = match address.len() {
        16 => address.get(4..8),
        _ => address.get(8..24),
    };
    (port(address), ip.unwrap_or_default().to_vec())
}

fn port(address: &[u8]) -> Option<u16> {
    address.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]])).filter(|&port| port != 0)
}

fn with_port(address: &[u8], port: u16) -> Vec<u8> {
    let mut changed = address.to_vec();
    if let Some(bytes) = changed.get_mut(2..4) {
        bytes.copy_from_slice(&port.to_be_bytes());
    }
    changed
}

fn loopback(domain: i32) -> Vec<u8> {
    let mut address = vec![0; if domain == libc::AF_INET { 16 } else { 28 }];
    address[..2].copy_from_slice(&(domain as u16).to_ne_bytes());
    match domain {
        libc::AF_INET => address[4..8].copy_from_slice(&Ipv4Addr::LOCALHOST.octets()),
        _ => address[8..24].copy_from_slice(&Ipv6Addr::LOCALHOST.octets()),
    }
    address
}

/// getsockname(2).
///
/// # Errors
/// getsockname(2)'s.
pub fn name(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut address = [0u8; 128];
    let mut len = address.len() as u32;
    // SAFETY: writes at most the address' length, and the length.
    done(unsafe { libc::getsockname(raw(socket), address.as_mut_ptr().cast(), &raw mut len) })?;
    Ok(address.get(..len as usize).unwrap_or_default().to_vec())
}

fn shut(socket: &OwnedFd, how: i32) -> io::Result<()> {
    // SAFETY: no memory is touched.
    done(unsafe { libc::shutdown(raw(socket), how) }).map(drop)
}

/// Sends what was not read, through buffers that are large enough; sizes are the kernel's to choose again afterwards.
fn refill(sender: &OwnedFd, receiver: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    const LARGEST: usize = 1 << 28;
    let half = (bytes.len() * 2 + (256 << 10)).min(LARGEST) as i32;
    let size = |name| SocketOption { level: libc::SOL_SOCKET, name, value: (half * 2).to_ne_bytes().into() };
    set_options(receiver, &[size(libc::SO_RCVBUF)])?;
    set_options(sender, &[size(libc::SO_SNDBUF)])?;
    // Beyond rmem_max a buffer grows for what its reader waits for (`tcp_set_rcvlowat` in net/ipv4/tcp.c).
    let _ = set(receiver, libc::SOL_SOCKET, SO_BUF_LOCK, 0);
    set(receiver, libc::SOL_SOCKET, libc::SO_RCVLOWAT, half)?;
    set(receiver, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1)?;
    let until = Instant::now() + PATIENCE;
    let mut rest = bytes;
    while !rest.is_empty() {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: reads the slice.
        let sent = unsafe { libc::send(raw(sender), rest.as_ptr().cast(), rest.len(), flags) };
        match usize::try_from(sent) {
            Ok(sent) => rest = &rest[sent..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::WouldBlock || Instant::now() > until {
                    return Err(error);
                }
                let mut poll = libc::pollfd { fd: raw(sender), events: libc::POLLOUT, revents: 0 };
                // SAFETY: one pollfd.
                unsafe { libc::poll(&raw mut poll, 1, 100) };
            }
        }
    }
    await_bytes(receiver, bytes.len(), until)?;
    for socket in [sender, receiver] {
        // Since Linux 5.14; before that sizes stay as they are.
        let _ = set(socket, libc::SOL_SOCKET, SO_BUF_LOCK, 0);
    }
    Ok(())
}

/// Waits until so many bytes can be read.
fn await_bytes(receiver: &OwnedFd, wanted: usize, until: Instant) -> io::Result<()> {
    // Arrival is a matter of microseconds, and SO_RCVLOWAT, by which it could be awaited, changes the window.
    let least = i32::try_from(wanted).unwrap_or(i32::MAX);
    let unread = || {
        let mut unread = 0i32;
        // SAFETY: FIONREAD writes an int.
        done(unsafe { libc::ioctl(raw(receiver), libc::FIONREAD, &raw mut unread) }).map(|_| unread)
    };
    while unread()? < least {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other("what was not read does not fit into its receive buffer"));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}
