//! Datagrams of UDP that were not read. A socket gets them again, each from the address that it came from, before it has an
//! address, groups and a filter of its own, and before any other socket has. Sent to its address they might reach others as well, or
//! instead; and what it has set since they came might drop them.

use std::{io, os::fd::OwnedFd};

use stasis_protocol::image::{Datagram, SocketOption};

use super::{
    datagrams::{own_size, size},
    kernel::owned,
    socket_files::bind,
    sockets::{connect, family, set_options},
    unread::send_message,
};

/// A socket without an address that has something to read, and the senders that are not of this machine any more: what they
/// sent is lost, as datagrams may be. `local`: the address that it will have.
///
/// # Errors
/// bind(2)'s and sendto(2)'s.
pub fn filled(domain: i32, local: &[u8], received: &[Datagram]) -> io::Result<(OwnedFd, Vec<Vec<u8>>)> {
    let receiver = new(domain)?;
    bind(&receiver, &any(domain))?;
    let port = super::tcp::name(&receiver)?;
    let own = own_size(&receiver)?;
    let all: usize = received.iter().map(|datagram| datagram.bytes.len() * 2 + 4096).sum();
    set_options(&receiver, &[size((all * 2).max(own))])?;
    let (mut lost, mut last) = (Vec::new(), None);
    for Datagram { from, bytes, .. } in received {
        let sender = match last.take_if(|(address, _)| address == from) {
            Some((_, sender)) => sender,
            None => {
                let sender = new(domain)?;
                if bind(&sender, from).is_err() {
                    lost.push(from.clone());
                    continue;
                }
                sender
            }
        };
        // As far as can be to the host that it was sent to, which the program may ask for (IP_PKTINFO). A broadcast it was not.
        let to_local =
            is_one_host(local).then(|| send_message(&sender, bytes, None, &with_host(&port, local), &[]));
        if !matches!(to_local, Some(Ok(_))) {
            send_message(&sender, bytes, None, &with_host(&port, from), &[])?;
        }
        last = Some((from.clone(), sender));
    }
    // The kernel takes back the port that it chose itself (net/ipv4/udp.c, `__udp_disconnect`), and another can be bound.
    connect(&receiver, &(libc::AF_UNSPEC as u16).to_ne_bytes())?;
    set_options(&receiver, &[size(own)])?;
    let unlocked = SocketOption {
        level: libc::SOL_SOCKET,
        name: super::tcp::SO_BUF_LOCK,
        value: 0i32.to_ne_bytes().into(),
    };
    // Since Linux 5.14.
    let _ = set_options(&receiver, &[unlocked]);
    Ok((receiver, lost))
}

fn new(domain: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is touched.
    owned(unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::IPPROTO_UDP) })
}

/// Every address, and a port that the kernel chooses.
fn any(domain: i32) -> Vec<u8> {
    let mut address = vec![0; if domain == libc::AF_INET { 16 } else { 28 }];
    address[..2].copy_from_slice(&(domain as u16).to_ne_bytes());
    address
}

/// Where a struct sockaddr has its host; for IPv6 with the scope.
fn host(address: &[u8]) -> std::ops::Range<usize> {
    if family(address) == Some(libc::AF_INET) { 4..8 } else { 8..28 }
}

/// Whether an address is neither that of all hosts nor of a group. A network's broadcast address is not told apart.
fn is_one_host(address: &[u8]) -> bool {
    match (family(address), address.get(host(address))) {
        (Some(libc::AF_INET), Some(ip)) => ip[0] != 0 && ip[0] < 224,
        (_, Some(ip)) => ip[0] != 0xff && ip[..16] != [0; 16],
        _ => false,
    }
}

/// An address with the host of another.
fn with_host(address: &[u8], of: &[u8]) -> Vec<u8> {
    let mut address = address.to_vec();
    if let (Some(to), Some(from)) = (address.get_mut(host(of)), of.get(host(of))) {
        to.copy_from_slice(from);
    }
    address
}
