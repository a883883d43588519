//! The multicast groups that a socket is a member of. The kernel lists the groups of each interface; whether a socket
//! is in one, and what it hears there, it is asked itself (MCAST_MSFILTER, ip(7)).

use alloc::vec::Vec;
use core::ffi::CStr;

use stasis_protocol::image::SocketOption;
use stasis_sys::socket;

use super::sockets::Asked;
use crate::procfs;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_BLOCK_SOURCE: i32 = 43;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
const MCAST_MSFILTER: i32 = 48;
const MCAST_INCLUDE: u32 = 1;

/// struct sockaddr_storage.
const ADDRESS: usize = 128;
/// struct group_filter: interface, group, mode, number of sources, sources.
const FILTER: usize = 8 + ADDRESS + 8;
/// What a list may have by default (net.ipv4.igmp_max_msf).
const SOURCES: usize = 10;

/// The calls of setsockopt(2) that make a socket a member again.
pub fn memberships(asked: &Asked) -> Vec<SocketOption> {
    let of = |level, groups: Vec<(u32, Address)>| {
        let join = |(interface, group): &(u32, Address)| membership(asked, level, *interface, group);
        groups.iter().flat_map(join).collect::<Vec<_>>()
    };
    let four = || of(libc::IPPROTO_IP, of_interfaces(c"/proc/self/net/igmp"));
    match asked.domain {
        libc::AF_INET => four(),
        // A socket of IPv6 may be in groups of IPv4, too.
        libc::AF_INET6 => [of(libc::IPPROTO_IPV6, of_interfaces6(c"/proc/self/net/igmp6")), four()].concat(),
        _ => Vec::new(),
    }
}

type Address = [u8; ADDRESS];

fn membership(asked: &Asked, level: i32, interface: u32, group: &Address) -> Vec<SocketOption> {
    let mut filter = [0u8; FILTER + SOURCES * ADDRESS];
    filter[..4].copy_from_slice(&interface.to_ne_bytes());
    filter[8..8 + ADDRESS].copy_from_slice(group);
    let word = |filter: &[u8], at: usize| {
        u32::from_ne_bytes([filter[at], filter[at + 1], filter[at + 2], filter[at + 3]])
    };
    let room = (SOURCES as u32).to_ne_bytes();
    filter[8 + ADDRESS + 4..FILTER].copy_from_slice(&room);
    // EADDRNOTAVAIL where the socket is no member.
    if socket::option(asked.socket.0, level, MCAST_MSFILTER, &mut filter).is_err() {
        return Vec::new();
    }
    let includes = word(&filter, 8 + ADDRESS) == MCAST_INCLUDE;
    let count = (word(&filter, 8 + ADDRESS + 4) as usize).min(SOURCES);
    // struct group_req; struct group_source_req has the source behind it.
    let join = &filter[..8 + ADDRESS];
    let of_source = |name| {
        filter[FILTER..].chunks(ADDRESS).take(count).map(move |source| SocketOption {
            level,
            name,
            value: [join, source].concat(),
        })
    };
    if includes {
        return of_source(MCAST_JOIN_SOURCE_GROUP).collect();
    }
    let all = SocketOption { level, name: MCAST_JOIN_GROUP, value: join.into() };
    core::iter::once(all).chain(of_source(MCAST_BLOCK_SOURCE)).collect()
}

/// A line for each interface (`2 eth0 : 1 V3`), and an indented one for each group, which is a number as it lies in memory.
fn of_interfaces(path: &CStr) -> Vec<(u32, Address)> {
    let content = procfs::read(path).unwrap_or_default();
    let (mut interface, mut groups) = (0, Vec::new());
    for line in procfs::lines(&content).skip(1) {
        let Some(first) = procfs::words(line).next() else { continue };
        if !line.starts_with(b"\t") {
            interface = procfs::decimal(first).unwrap_or(0) as u32;
        } else if let Some(group) = procfs::hex(first) {
            let mut address = [0; ADDRESS];
            address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            address[4..8].copy_from_slice(&(group as u32).to_ne_bytes());
            groups.push((interface, address));
        }
    }
    groups
}

/// `1 lo ff020000000000000000000000000001 1 0000000C 0`.
fn of_interfaces6(path: &CStr) -> Vec<(u32, Address)> {
    let content = procfs::read(path).unwrap_or_default();
    let parse = |line| {
        let mut words = procfs::words(line);
        let interface = words.next().and_then(procfs::decimal)? as u32;
        let group = words.nth(1).filter(|group| group.len() == 32)?;
        let mut address = [0; ADDRESS];
        address[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        for (to, digits) in address[8..24].iter_mut().zip(group.chunks(2)) {
            *to = procfs::hex(digits)? as u8;
        }
        Some((interface, address))
    };
    procfs::lines(&content).filter_map(parse).collect()
}
