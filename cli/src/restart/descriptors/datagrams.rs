//! Datagrams of unix sockets that were not read are sent again, each from the address that it came from.

use std::{io, os::fd::OwnedFd};

use stasis_protocol::image::{Datagram, SocketOption};

use super::{
    kernel::{done, owned},
    raw,
    sockets::{BoundForAMoment, path, set_options},
};

/// A datagram socket that was made again, bound but not connected.
pub struct Receiver<'a> {
    pub local: &'a [u8],
    pub socket: &'a OwnedFd,
    pub received: &'a [Datagram],
}

/// Sends a socket what it had not read. `made`: sockets that have an address already. Returns the senders that are not of this
/// machine any more: what they sent is lost, as datagrams may be.
///
/// # Errors
/// sendto(2)'s.
pub fn send(to: &Receiver<'_>, made: &[(&[u8], &OwnedFd)]) -> io::Result<Vec<Vec<u8>>> {
    let mut lost = Vec::new();
    if to.received.is_empty() {
        return Ok(lost);
    }
    let all: usize = to.received.iter().map(|datagram| datagram.bytes.len() * 2 + 4096).sum();
    let own = own_size(to.socket)?;
    set_options(to.socket, &[size((all * 2).max(own))])?;
    for datagram in to.received {
        if let Some((_, sender)) = made.iter().find(|(address, _)| is_same(address, &datagram.from)) {
            send_to(sender, &datagram.bytes, to.local)?;
            continue;
        }
        // SAFETY: no memory is touched.
        let sender = owned(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        let bound = match datagram.from.is_empty() {
            true => Ok(None),
            false => BoundForAMoment::bind(&sender, &datagram.from).map(Some),
        };
        match bound {
            Ok(bound) => {
                send_to(&sender, &datagram.bytes, to.local)?;
                drop(bound);
            }
            Err(_) => lost.push(datagram.from.clone()),
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

/// Sends a datagram without waiting.
///
/// # Errors
/// sendto(2)'s.
pub fn send_to(sender: &OwnedFd, bytes: &[u8], target: &[u8]) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: reads both slices.
    let sent = unsafe {
        libc::sendto(
            raw(sender),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
            target.as_ptr().cast(),
            target.len() as u32,
        )
    };
    if usize::try_from(sent).is_ok_and(|sent| sent == bytes.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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
