//! Datagrams that were not read are sent again, each from the address that it came from.

use std::{io, os::fd::OwnedFd};

use stasis_protocol::image::{Datagram, SocketOption};

use super::{
    kernel::{done, owned},
    raw,
    sockets::{BoundForAMoment, family, path, set_options},
};

/// A datagram socket that was made again, bound but not connected.
pub struct Receiver<'a> {
    pub domain: i32,
    pub protocol: i32,
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
    const LARGEST: usize = 1 << 26;
    let mut lost = Vec::new();
    if to.received.is_empty() {
        return Ok(lost);
    }
    let all: usize = to.received.iter().map(|datagram| datagram.bytes.len() * 2 + 4096).sum();
    let size = |name: i32, size: usize| SocketOption {
        level: libc::SOL_SOCKET,
        name,
        value: (size.min(LARGEST) as i32).to_ne_bytes().into(),
    };
    let own = own_size(to.socket)?;
    set_options(to.socket, &[size(libc::SO_RCVBUF, (all * 2).max(own))])?;
    for datagram in to.received {
        let target = if family(to.local) == Some(libc::AF_UNIX) || !is_any(to.local) {
            to.local.to_vec()
        } else {
            towards(to.local, &datagram.from)
        };
        if let Some((_, sender)) = made.iter().find(|(address, _)| same_port(address, &datagram.from)) {
            send_to(sender, &datagram.bytes, &target)?;
            continue;
        }
        // SAFETY: no memory is touched.
        let sender =
            owned(unsafe { libc::socket(to.domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, to.protocol) })?;
        let bound = match datagram.from.is_empty() {
            true => Ok(None),
            false => BoundForAMoment::bind(&sender, &datagram.from).map(Some),
        };
        match bound {
            Ok(bound) => {
                send_to(&sender, &datagram.bytes, &target)?;
                drop(bound);
            }
            Err(_) => lost.push(datagram.from.clone()),
        }
    }
    set_options(to.socket, &[size(libc::SO_RCVBUF, own)])?;
    Ok(lost)
}

fn send_to(sender: &OwnedFd, bytes: &[u8], target: &[u8]) -> io::Result<()> {
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

fn own_size(socket: &OwnedFd) -> io::Result<usize> {
    let (mut size, mut len) = (0i32, 4u32);
    // SAFETY: writes an int and its length.
    done(unsafe {
        libc::getsockopt(raw(socket), libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw mut size).cast(), &raw mut len)
    })?;
    Ok(size.max(0) as usize)
}

fn ip(address: &[u8]) -> &[u8] {
    match family(address) {
        Some(libc::AF_INET) => address.get(4..8).unwrap_or_default(),
        _ => address.get(8..24).unwrap_or_default(),
    }
}

fn is_any(address: &[u8]) -> bool {
    ip(address).iter().all(|&byte| byte == 0)
}

/// Whether a socket bound at an address sends from another one.
fn same_port(bound: &[u8], from: &[u8]) -> bool {
    if from.is_empty() || family(bound) != family(from) {
        return false;
    }
    match family(from) {
        Some(libc::AF_UNIX) => path(bound).is_some() && path(bound) == path(from) || bound == from,
        _ => bound.get(2..4) == from.get(2..4) && (is_any(bound) || ip(bound) == ip(from)),
    }
}

/// A socket that is bound to any address is reached at the sender's.
fn towards(local: &[u8], from: &[u8]) -> Vec<u8> {
    let mut target = local.to_vec();
    let range = if family(local) == Some(libc::AF_INET) { 4..8 } else { 8..24 };
    if let (Some(to), Some(ip)) = (target.get_mut(range.clone()), from.get(range)) {
        to.copy_from_slice(ip);
    }
    target
}
