//! Sockets: pairs with what was not read yet, and those that are bound, pointed and listen.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, Peer, SocketFile, SocketOption},
};

use super::{
    Maker, failed,
    joint::{Common, Place, Resent, rights},
    kernel::{done, owned},
    name,
    peers::calling_as,
    raw, refuse,
    socket_files::{self, BoundForAMoment, bind, bind_at, path},
    tcp,
    unread::Unread,
};

/// A struct sockaddr, for messages.
pub fn display(address: &[u8]) -> String {
    let port = address.get(2..4).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
    match family(address) {
        None => "socket".into(),
        Some(libc::AF_INET) => match address.get(4..8).and_then(|ip| <[u8; 4]>::try_from(ip).ok()) {
            Some(ip) => format!("socket {}:{port}", std::net::Ipv4Addr::from(ip)),
            None => "socket".into(),
        },
        Some(libc::AF_INET6) => match address.get(8..24).and_then(|ip| <[u8; 16]>::try_from(ip).ok()) {
            Some(ip) => format!("socket [{}]:{port}", std::net::Ipv6Addr::from(ip)),
            None => "socket".into(),
        },
        Some(_) => match path(address) {
            Some(path) => format!("socket {}", path.display()),
            None => format!("socket @{}", String::from_utf8_lossy(address.get(3..).unwrap_or_default())),
        },
    }
}

/// The address family of a struct sockaddr.
pub fn family(address: &[u8]) -> Option<i32> {
    address.get(..2).map(|family| i32::from(u16::from_ne_bytes([family[0], family[1]])))
}

/// connect(2).
///
/// # Errors
/// connect(2)'s.
pub fn connect(socket: &OwnedFd, address: &[u8]) -> io::Result<()> {
    // SAFETY: reads as many bytes as there are.
    done(unsafe { libc::connect(raw(socket), address.as_ptr().cast(), address.len() as u32) }).map(drop)
}

/// What a program can do without.
const FOR_SPEED: [(i32, i32); 5] = [
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    (libc::SOL_SOCKET, SO_PREFER_BUSY_POLL),
    (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU),
];
const SO_PREFER_BUSY_POLL: i32 = 69;

/// SO_ATTACH_FILTER, of instructions as they lie in memory.
fn attach_filter(socket: &OwnedFd, instructions: &[u8]) -> io::Result<()> {
    let mut code: Vec<libc::sock_filter> = instructions
        .as_chunks::<8>()
        .0
        .iter()
        .map(|&[a, b, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes(k),
        })
        .collect();
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    let (address, len) = ((&raw const program).cast(), size_of_val(&program) as u32);
    // SAFETY: reads the program and its instructions.
    done(unsafe { libc::setsockopt(raw(socket), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, address, len) })
        .map(drop)
}

/// Sets options. Buffer sizes come back doubled from the kernel (socket(7)), and beyond the system's limit only
/// the privileged may set them.
///
/// # Errors
/// setsockopt(2)'s, except for buffer sizes.
pub fn set_options(socket: &OwnedFd, options: &[SocketOption]) -> io::Result<()> {
    let set = |level: i32, name: i32, value: &[u8]| {
        // SAFETY: reads as many bytes as there are.
        done(unsafe { libc::setsockopt(raw(socket), level, name, value.as_ptr().cast(), value.len() as u32) })
    };
    for option in options {
        let force = match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => Some(libc::SO_SNDBUFFORCE),
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => Some(libc::SO_RCVBUFFORCE),
            _ => None,
        };
        match (force, <[u8; 4]>::try_from(option.value.as_slice())) {
            (Some(force), Ok(value)) => {
                let half = (i32::from_ne_bytes(value) / 2).to_ne_bytes();
                if set(option.level, force, &half).is_err() {
                    let _ = set(option.level, option.name, &half);
                }
            }
            _ if (option.level, option.name) == (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) => {
                attach_filter(socket, &option.value)?;
            }
            // The kernel may not have it, and not everybody may choose every one.
            _ if FOR_SPEED.contains(&(option.level, option.name)) => {
                let _ = set(option.level, option.name, &option.value);
            }
            _ => {
                set(option.level, option.name, &option.value)?;
            }
        }
    }
    Ok(())
}

/// A socket that is not connected to another of the process.
pub fn open(maker: &mut Maker<'_>, index: usize) -> Result<OwnedFd, Refusal> {
    let image = maker.image;
    let DescriptionKind::Socket {
        domain,
        socket_type,
        protocol,
        local,
        peer,
        backlog,
        refused,
        listener_is,
        file,
        options,
        ..
    } = &image.descriptions[index].kind
    else {
        return maker.inherit(index, -1);
    };
    let error = |what: &'static str| move |error: io::Error| failed(image, index, what, &error);
    let socket = match maker.filled.remove(&(maker.process, index)) {
        Some(filled) => filled,
        // SAFETY: no memory is touched.
        None => owned(unsafe { libc::socket(*domain, socket_type | libc::SOCK_CLOEXEC, *protocol) })
            .map_err(error("it cannot be made again"))?,
    };
    set_options(&socket, options).map_err(error("its options cannot be set"))?;
    if !local.is_empty() {
        if matches!(*domain, libc::AF_INET | libc::AF_INET6) && *socket_type == libc::SOCK_STREAM {
            tcp::reuse(&socket).map_err(error("its options cannot be set"))?;
        }
        let bound = match bind_at(&socket, local, file.as_ref()) {
            Err(error) if *domain == libc::AF_NETLINK && error.raw_os_error() == Some(libc::EADDRINUSE) => {
                let warning = "its port is in use, and it gets another: who waits for an answer by the old one waits for ever";
                maker.installed.warnings.push(format!("{}: {warning}", name(image, index)));
                bind(&socket, &without_port(local)).map(|()| None)
            }
            // The kernel may have given the port away, and tells of it all the same (`inet_put_port`).
            Err(_) if refused.is_some() || tcp::is_connecting(*domain, *socket_type, peer) => Ok(None),
            bound => bound,
        };
        let reach = bound.map_err(|error| {
            let remedy = remedy(&error, "end the process that uses the address (ss -nlp tells which)");
            refuse(image, index, format!("its address cannot be bound: {error}"), remedy)
        })?;
        maker.reaches.extend(reach.map(|reach| ((maker.process, index), reach)));
    }
    if tcp::is_connecting(*domain, *socket_type, peer)
        && let Err(error) = tcp::begin(&socket, peer)
    {
        let warning = "it cannot be connected again, and finds that it was refused";
        maker.installed.warnings.push(format!("{}: {warning}: {error}", name(image, index)));
        let _ = tcp::refuse(&socket, *domain, false);
        return Ok(socket);
    }
    // Those that are made once are filled before they are connected: then they take datagrams from their peers only.
    if *socket_type == libc::SOCK_DGRAM && maker.common.relations.is_alone((maker.process, index)) {
        point(maker, index, &socket, peer, peer);
    }
    if let Some(is_told) = refused.map(|waits| !waits)
        && let Err(error) = tcp::refuse(&socket, *domain, is_told)
    {
        let warning = "it finds that nobody has tried to connect it, not that it was refused";
        maker.installed.warnings.push(format!("{}: {warning}: {error}", name(image, index)));
    }
    if let Some(backlog) = backlog {
        // SAFETY: no memory is touched.
        let listen = || done(unsafe { libc::listen(raw(&socket), *backlog) });
        calling_as(listener_is.as_ref(), listen).map_err(|error| {
            let remedy = remedy(&error, "see `stasis doctor`");
            refuse(image, index, format!("it cannot listen: {error}"), remedy)
        })?;
    }
    Ok(socket)
}

/// What can be done about an error that comes of where, or as whom, a socket is made.
pub fn remedy<'a>(error: &io::Error, otherwise: &'a str) -> &'a str {
    match error.kind() {
        io::ErrorKind::NotFound => "make the directory that it is in",
        io::ErrorKind::PermissionDenied => "restart it as root",
        _ => otherwise,
    }
}

/// A struct sockaddr_nl whose port (its second word) is left to the kernel.
fn without_port(address: &[u8]) -> Vec<u8> {
    address.iter().enumerate().map(|(at, &byte)| if (4..8).contains(&at) { 0 } else { byte }).collect()
}

/// Connects a datagram socket again, to an address that is reached `at` another.
pub fn point(maker: &mut Maker<'_>, index: usize, socket: &OwnedFd, peer: &[u8], at: &[u8]) {
    if !peer.is_empty()
        && let Err(error) = connect(socket, at)
    {
        // A datagram socket without its peer gets the same error from send(2) as when the peer goes away.
        maker.installed.warnings.push(format!(
            "{}: it cannot be pointed at {} again: {error}",
            name(maker.image, index),
            display(peer)
        ));
    }
}

/// One end of a pair; the other is kept for the description that it belongs to.
pub fn open_pair(maker: &mut Maker<'_>, index: usize) -> Result<OwnedFd, Refusal> {
    let image = maker.image;
    let kind = &image.descriptions[index].kind;
    let DescriptionKind::SocketPair { pair, domain, reset, other_closed, .. } = kind else {
        return maker.inherit(index, -1);
    };
    if let Some(kept) = maker.pairs.get_mut(pair) {
        return kept.take().ok_or_else(|| {
            refuse(image, index, "more than two sockets are one pair", "run `stasis verify`")
        });
    }
    let this = maker.common.relations.first((maker.process, index));
    let ends = maker.common.relations.ends(*pair);
    let other = ends.iter().copied().find(|end| *end != this);
    let again = |error: io::Error| {
        let of_tcp = "end the process that uses its address (ss -nap tells which); after a connection has ended the \
                      kernel keeps its port for up to a minute";
        let of_unix = "end the process that uses its address (ss -xap tells which)";
        let remedy = remedy(&error, if *domain == libc::AF_UNIX { of_unix } else { of_tcp });
        refuse(image, index, format!("the connection cannot be made again: {error}"), remedy)
    };
    if let Some(listener) = maker.common.relations.listener_of(*pair) {
        return match *domain {
            libc::AF_UNIX => make_waiting(maker, this, listener),
            _ => tcp::make_waiting(maker.common, this),
        }
        .map_err(again);
    }
    let outside = maker.common.relations.leads_outside(kind);
    if outside {
        maker.installed.warnings.push(format!(
            "{}: its other end was outside the checkpoint; the program finds that it was reset",
            name(image, index)
        ));
    }
    let (one, two) = match *domain {
        libc::AF_UNIX => {
            let reset = outside || *reset && other.is_none();
            make_pair(maker, this, other, reset, outside).map(|(one, two)| (one, Some(two)))
        }
        _ => {
            let missing = if *reset || !*other_closed { tcp::Missing::Reset } else { tcp::Missing::Closed };
            tcp::make(maker.common, this, other, missing)
        }
    }
    .map_err(again)?;
    // Without a description, the other end was closed.
    maker.pairs.insert(*pair, two.filter(|_| other.is_some()));
    Ok(one)
}

/// A unix connection that waits to be accepted, by a socket that listens already.
fn make_waiting(maker: &Maker<'_>, client: Place, listener: Place) -> io::Result<OwnedFd> {
    let common = maker.common;
    let kinds = (&common.description(client).kind, &common.description(listener).kind);
    let (
        DescriptionKind::SocketPair { local, file, socket_type, options, shutdown_write, .. },
        DescriptionKind::Socket { local: target, .. },
    ) = kinds
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let kind = socket_type | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is touched.
    let socket = owned(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    if !local.is_empty() {
        bind_at(&socket, local, file.as_ref())?;
    }
    let target = socket_files::reached_at(maker.reach(listener), target);
    // Who will accept it is told of who has it now: nobody has the other end, which would know who connected.
    let own = &common.images[client.0].credentials;
    let pid = common.images[client.0].ids.pid;
    let peer = Peer { pid, uid: own.uid[1], gid: own.gid[1], groups: own.groups.clone() };
    calling_as(Some(&peer), || connect(&socket, &target))?;
    super::kernel::set_status_flags(&socket, 0)?;
    set_options(&socket, options)?;
    if *shutdown_write {
        // SAFETY: no memory is touched.
        done(unsafe { libc::shutdown(raw(&socket), libc::SHUT_WR) })?;
    }
    Ok(socket)
}

fn make_pair(
    maker: &mut Maker<'_>,
    one: Place,
    other: Option<Place>,
    reset: bool,
    outside: bool,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let common = maker.common;
    let ends = connect_pair(common, one, other, outside)?;
    let unfilled = Unfilled { one, other, ends, reset, outside };
    if !unfilled.receives(common) {
        unfilled.complete(common, |_| None)?;
        return Ok(unfilled.ends);
    }
    let ends = (unfilled.ends.0.try_clone()?, unfilled.ends.1.try_clone()?);
    maker.unfilled.push(unfilled);
    Ok(ends)
}

/// The ends of a connection, with their names.
fn connect_pair(
    common: &Common<'_>,
    one: Place,
    other: Option<Place>,
    outside: bool,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let kinds = (&common.description(one).kind, other.map(|other| &common.description(other).kind));
    let DescriptionKind::SocketPair { socket_type, local, .. } = kinds.0 else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (this, that) = (End::of(Some(kinds.0)), End::of(kinds.1));
    match connected(*socket_type, &this, &that, listens(common, local)) {
        // It is told that the connection was reset, in any case.
        Err(error) if outside && error.kind() == io::ErrorKind::PermissionDenied => {
            connected(*socket_type, &End { peer_is: None, ..this }, &that, listens(common, local))
        }
        ends => ends,
    }
}

/// A unix connection whose ends are yet to get what they had not read, and their options.
pub struct Unfilled {
    one: Place,
    /// `None`: it was closed.
    other: Option<Place>,
    ends: (OwnedFd, OwnedFd),
    reset: bool,
    outside: bool,
}

impl Unfilled {
    /// Whether descriptors come with what was not read.
    fn receives(&self, common: &Common<'_>) -> bool {
        let ends = [Some(self.one), self.other].into_iter().flatten();
        let mut received = ends.filter_map(|end| received(common, end));
        received.any(|(_, kept)| rights(kept).any(|rights| !rights.is_empty()))
    }

    /// `right`: a descriptor of a description of a process.
    ///
    /// # Errors
    /// send(2)'s, setsockopt(2)'s.
    fn complete(&self, common: &Common<'_>, right: impl Fn((usize, u32)) -> Option<RawFd>) -> io::Result<()> {
        let Self { ref ends, one, other, .. } = *self;
        let kinds = (&common.description(one).kind, other.map(|other| &common.description(other).kind));
        for (sender, sent_by, received_by) in [(&ends.1, kinds.1, Some(one)), (&ends.0, Some(kinds.0), other)]
        {
            let Some((process, kept)) = received_by.and_then(|end| received(common, end)) else { continue };
            let DescriptionKind::SocketPair { socket_type, received: messages, senders, .. } = kept else {
                continue;
            };
            // For whoever was outside nobody speaks.
            let senders = if self.outside { &[] } else { &senders[..] };
            let (charged, options) = match sent_by {
                Some(DescriptionKind::SocketPair { charged, options, .. }) => {
                    (*charged as usize, &options[..])
                }
                _ => (0, &[][..]),
            };
            let resent = |rights: &Vec<u32>| rights.iter().filter_map(|&at| right((process, at))).collect();
            let rights = &rights(kept).map(resent).collect::<Vec<_>>()[..];
            Unread { socket_type: *socket_type, messages, senders, rights, charged, options }.send(sender)?;
        }
        for (end, kind) in [(&ends.0, Some(kinds.0)), (&ends.1, kinds.1)] {
            let Some(DescriptionKind::SocketPair { shutdown_read, shutdown_write, options, .. }) = kind
            else {
                continue;
            };
            set_options(end, options)?;
            for (how, wanted) in [(libc::SHUT_RD, shutdown_read), (libc::SHUT_WR, shutdown_write)] {
                // A closed end takes care of that by itself, and for datagrams it was none.
                if *wanted && other.is_some() {
                    // SAFETY: no memory is touched.
                    done(unsafe { libc::shutdown(raw(end), how) })?;
                }
            }
        }
        if self.reset
            && let DescriptionKind::SocketPair { socket_type, .. } = kinds.0
        {
            cut(ends, *socket_type)?;
        }
        Ok(())
    }

    /// Completes it when all that comes with its messages has been made.
    ///
    /// # Errors
    /// A refusal that names one end.
    pub fn fill(self, common: &Common<'_>, resent: &Resent<'_, '_>) -> Result<(), Refusal> {
        let (process, index) = self.one;
        self.complete(common, |right| resent.right(right)).map_err(|error| {
            let reason =
                format!("what it had not read, and descriptors with it, cannot be sent to it: {error}");
            refuse(common.images[process], index, reason, remedy(&error, "see `stasis doctor`"))
        })
    }
}

/// What an end has not read: each process that had it may have it in its image; which one has.
fn received<'a>(common: &Common<'a>, end: Place) -> Option<(usize, &'a DescriptionKind)> {
    common.relations.places(end).into_iter().find_map(|place| match &common.description(place).kind {
        kind @ DescriptionKind::SocketPair { received, .. } if !received.is_empty() => Some((place.0, kind)),
        _ => None,
    })
}

/// Makes an end report ECONNRESET, as one does whose peer was closed with something unread (unix(7)); datagram sockets
/// are ended, since they would wait for ever.
fn cut(ends: &(OwnedFd, OwnedFd), socket_type: i32) -> io::Result<()> {
    if socket_type == libc::SOCK_DGRAM {
        // SAFETY: no memory is touched.
        return done(unsafe { libc::shutdown(raw(&ends.0), libc::SHUT_RDWR) }).map(drop);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: reads one byte. Where it has shut its side down, there is the end of the stream to be found.
    unsafe { libc::send(raw(&ends.0), c"".as_ptr().cast(), 1, flags) };
    Ok(())
}

/// Whether a process of the checkpoint listens at a unix address.
fn listens(common: &Common<'_>, address: &[u8]) -> bool {
    common.images.iter().flat_map(|image| &image.descriptions).any(|description| {
        matches!(&description.kind, DescriptionKind::Socket { backlog: Some(_), local, .. } if local == address)
    })
}

/// One end of a unix connection.
#[derive(Clone, Copy, Default)]
pub struct End<'a> {
    pub local: &'a [u8],
    pub file: Option<&'a SocketFile>,
    /// Whose the other end is to this one.
    pub peer_is: Option<&'a Peer>,
}

impl<'a> End<'a> {
    fn of(kind: Option<&'a DescriptionKind>) -> Self {
        match kind {
            Some(DescriptionKind::SocketPair { local, file, peer_is, .. }) => {
                Self { local, file: file.as_ref(), peer_is: peer_is.as_ref() }
            }
            _ => Self::default(),
        }
    }
}

/// Two unix sockets that are connected to each other, with the names they had. Of two with names the one that
/// accepted has its listener's; that is `one` if it has the only name, or `one_accepted` says so.
///
/// # Errors
/// socketpair(2)'s; and bind(2)'s for ends with names.
pub fn connected(
    socket_type: i32,
    one: &End<'_>,
    two: &End<'_>,
    one_accepted: bool,
) -> io::Result<(OwnedFd, OwnedFd)> {
    if one.local.is_empty() && two.local.is_empty() {
        let ends = calling_as(one.peer_is.or(two.peer_is), || {
            let mut ends = [0; 2];
            // SAFETY: writes two ints.
            done(unsafe {
                libc::socketpair(libc::AF_UNIX, socket_type | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr())
            })
            .map(|_| ends)
        })?;
        // SAFETY: socketpair gave both to us.
        return Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) });
    }
    // SAFETY: no memory is touched.
    let new = || owned(unsafe { libc::socket(libc::AF_UNIX, socket_type | libc::SOCK_CLOEXEC, 0) });
    let swap = !(two.local.is_empty() || one_accepted && !one.local.is_empty());
    let (server, client) = if swap { (two, one) } else { (one, two) };
    let (listener, connecting) = (new()?, new()?);
    let name = BoundForAMoment::bind(&listener, server.local)?;
    // SAFETY: no memory is touched.
    calling_as(client.peer_is, || done(unsafe { libc::listen(raw(&listener), 16) }))?;
    if !client.local.is_empty() {
        bind_at(&connecting, client.local, client.file)?;
    }
    calling_as(server.peer_is, || connect(&connecting, server.local))?;
    // SAFETY: no address is asked for.
    let accepted = owned(unsafe {
        libc::accept4(raw(&listener), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    })?;
    drop(name);
    Ok(if swap { (connecting, accepted) } else { (accepted, connecting) })
}
