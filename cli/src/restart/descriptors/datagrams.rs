//! Datagrams of unix sockets that were not read are sent again, each from the address that it came from.

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
};

use stasis_protocol::image::{Datagram, SocketOption};

use super::{
    kernel::{done, owned},
    raw,
    socket_files::{BoundForAMoment, path, reached_at},
    sockets::{connect, set_options},
    unread::{send_buffer, send_message, set_send_buffer},
};

/// A datagram socket that was made again, bound but not connected.
#[derive(Clone, Copy)]
pub struct Made<'a> {
    pub local: &'a [u8],
    pub socket: &'a OwnedFd,
    /// What leads to it where it has a path.
    pub reach: Option<&'a OwnedFd>,
    /// What it will be connected to.
    pub peer: &'a [u8],
    pub received: &'a [Datagram],
}

/// The socket that has an address.
pub fn find<'a, 'b>(made: &'b [Made<'a>], address: &[u8]) -> Option<&'b Made<'a>> {
    made.iter().find(|made| is_same(made.local, address))
}

/// Sends a socket what it had not read. `made`: sockets that have an address already. Returns the senders that are not of this
/// machine any more: what they sent is lost, as datagrams may be. `right`: a descriptor of a description.
///
/// # Errors
/// sendto(2)'s.
pub fn send(
    to: &Made<'_>,
    made: &[Made<'_>],
    right: impl Fn(u32) -> Option<RawFd>,
) -> io::Result<Vec<Vec<u8>>> {
    let mut lost = Vec::new();
    if to.received.is_empty() {
        return Ok(lost);
    }
    let all: usize = to.received.iter().map(|datagram| datagram.bytes.len() * 2 + 4096).sum();
    let own = own_size(to.socket)?;
    set_options(to.socket, &[size((all * 2).max(own))])?;
    let target = reached_at(to.reach, to.local);
    let mut stand_in: Option<(&[u8], OwnedFd, Option<BoundForAMoment>)> = None;
    for datagram in to.received {
        let rights: Vec<RawFd> = datagram.rights.iter().filter_map(|&at| right(at)).collect();
        if let Some(sender) = find(made, &datagram.from) {
            let back = reached_at(sender.reach, sender.local);
            send_again(to, sender.socket, (datagram, &rights), &target, &back)?;
            continue;
        }
        if stand_in.as_ref().is_none_or(|(from, ..)| *from != datagram.from) {
            // The one before gives its name back first.
            drop(stand_in.take());
            // SAFETY: no memory is touched.
            let sender =
                owned(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
            let bound = match datagram.from.is_empty() {
                true => Ok(None),
                false => BoundForAMoment::bind(&sender, &datagram.from).map(Some),
            };
            stand_in = bound.ok().map(|bound| (&datagram.from[..], sender, bound));
        }
        match &stand_in {
            Some((from, sender, _)) => send_again(to, sender, (datagram, &rights), &target, from)?,
            None => lost.push(datagram.from.clone()),
        }
    }
    set_options(to.socket, &[size(own)])?;
    Ok(lost)
}

/// The option that makes a receive buffer so large.
pub fn size(size: usize) -> SocketOption {
    const LARGEST: usize = 1 << 26;
    let value = (size.min(LARGEST) as i32).to_ne_bytes().into();
    SocketOption { level: libc::SOL_SOCKET, name: libc::SO_RCVBUF, value }
}

/// `back`: where the sender is reached.
fn send_again(
    to: &Made<'_>,
    sender: &OwnedFd,
    (datagram, rights): (&Datagram, &[RawFd]),
    target: &[u8],
    back: &[u8],
) -> io::Result<()> {
    // A message must fit into the sender's buffer together with the kernel's bookkeeping of it, up to a page.
    let (before, needed) = (send_buffer(sender)?, datagram.bytes.len() * 2 + 4096);
    if needed > before {
        set_send_buffer(sender, needed)?;
    }
    // Where one of both asks whom messages are of, the kernel would note this process.
    let asking = [asks(to.socket, None)?, asks(sender, None)?];
    asks(to.socket, Some(false))?;
    asks(sender, Some(false))?;
    let send = || send_message(sender, &datagram.bytes, datagram.sender, target, rights);
    let sent = match send() {
        // How many may wait in it (net.unix.max_dgram_qlen) does not bind whom it is connected to.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && is_same(to.peer, &datagram.from) => {
            connect(to.socket, back).and_then(|()| send())
        }
        sent => sent,
    };
    asks(sender, Some(asking[1]))?;
    asks(to.socket, Some(asking[0]))?;
    if needed > before {
        set_send_buffer(sender, before)?;
    }
    sent.map(drop)
}

/// SO_PASSCRED, which may be set first; what it was.
fn asks(socket: &OwnedFd, set: Option<bool>) -> io::Result<bool> {
    if let Some(set) = set {
        let value = i32::from(set).to_ne_bytes().into();
        set_options(socket, &[SocketOption { level: libc::SOL_SOCKET, name: libc::SO_PASSCRED, value }])?;
    }
    let (mut value, mut len) = (0i32, size_of::<i32>() as u32);
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PASSCRED);
    // SAFETY: writes an int and its length.
    done(unsafe { libc::getsockopt(raw(socket), level, name, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value != 0)
}

/// SO_RCVBUF, in bytes.
///
/// # Errors
/// getsockopt(2)'s.
pub fn own_size(socket: &OwnedFd) -> io::Result<usize> {
    let (mut size, mut len) = (0i32, 4u32);
    // SAFETY: writes an int and its length.
    done(unsafe {
        libc::getsockopt(raw(socket), libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw mut size).cast(), &raw mut len)
    })?;
    Ok(size.max(0) as usize)
}

/// Whether a socket bound at an address sends from another one.
fn is_same(bound: &[u8], from: &[u8]) -> bool {
    !from.is_empty() && (path(bound).is_some() && path(bound) == path(from) || bound == from)
}
