//! The options of sockets: those that were set, the filter, and the groups that one is a member of.

use alloc::{vec, vec::Vec};

use stasis_protocol::image::SocketOption;
use stasis_sys::socket;

use super::{Duplicate, bytes, groups, plain, sockets::Asked, tcp};

/// Numbers that libc has not: asm-generic/socket.h, linux/in.h, linux/in6.h, linux/tcp.h, linux/udp.h.
mod number {
    pub const SO_NO_CHECK: i32 = 11;
    pub const SO_PASSPIDFD: i32 = 76;
    pub const SO_PREFER_BUSY_POLL: i32 = 69;
    pub const IP_RETOPTS: i32 = 7;
    pub const IP_CHECKSUM: i32 = 23;
    pub const IP_MULTICAST_ALL: i32 = 49;
    pub const IP_UNICAST_IF: i32 = 50;
    pub const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    pub const IPV6_RECVERR_RFC4884: i32 = 31;
    pub const IPV6_AUTOFLOWLABEL: i32 = 70;
    pub const IPV6_MINHOPCOUNT: i32 = 73;
    pub const IPV6_UNICAST_IF: i32 = 76;
    pub const IPV6_CHECKSUM: i32 = 7;
    pub const ICMP_FILTER: i32 = 1;
    pub const ICMPV6_FILTER: i32 = 1;
    pub const TCP_INQ: i32 = 36;
    pub const UDP_NO_CHECK6_TX: i32 = 101;
    pub const UDP_NO_CHECK6_RX: i32 = 102;
    pub const UDP_SEGMENT: i32 = 103;
    pub const UDP_GRO: i32 = 104;
}

const COMMON: [i32; 28] = [
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
    libc::SO_PASSSEC,
    number::SO_PASSPIDFD,
    libc::SO_TIMESTAMPNS,
    libc::SO_TIMESTAMPING,
    libc::SO_RXQ_OVFL,
    number::SO_NO_CHECK,
    libc::SO_MARK,
    libc::SO_BUSY_POLL,
    number::SO_PREFER_BUSY_POLL,
    libc::SO_MAX_PACING_RATE,
    libc::SO_INCOMING_CPU,
    libc::SO_ZEROCOPY,
    libc::SO_SELECT_ERR_QUEUE,
];

const OF_TCP: [i32; 13] = [
    libc::TCP_NODELAY,
    libc::TCP_CORK,
    libc::TCP_KEEPIDLE,
    libc::TCP_KEEPINTVL,
    libc::TCP_KEEPCNT,
    libc::TCP_USER_TIMEOUT,
    libc::TCP_DEFER_ACCEPT,
    libc::TCP_LINGER2,
    libc::TCP_CONGESTION,
    libc::TCP_NOTSENT_LOWAT,
    libc::TCP_SYNCNT,
    libc::TCP_FASTOPEN,
    number::TCP_INQ,
];

const OF_UDP: [i32; 4] =
    [number::UDP_SEGMENT, number::UDP_GRO, number::UDP_NO_CHECK6_TX, number::UDP_NO_CHECK6_RX];

const OF_IP: [i32; 19] = [
    libc::IP_TOS,
    libc::IP_TTL,
    libc::IP_PKTINFO,
    libc::IP_MULTICAST_TTL,
    libc::IP_MULTICAST_LOOP,
    libc::IP_MULTICAST_IF,
    libc::IP_RECVERR,
    libc::IP_FREEBIND,
    libc::IP_MTU_DISCOVER,
    libc::IP_RECVTTL,
    libc::IP_RECVTOS,
    libc::IP_TRANSPARENT,
    number::IP_BIND_ADDRESS_NO_PORT,
    number::IP_MULTICAST_ALL,
    libc::IP_RECVORIGDSTADDR,
    libc::IP_MINTTL,
    number::IP_RETOPTS,
    number::IP_CHECKSUM,
    number::IP_UNICAST_IF,
];

const OF_IPV6: [i32; 19] = [
    libc::IPV6_V6ONLY,
    libc::IPV6_UNICAST_HOPS,
    libc::IPV6_RECVPKTINFO,
    libc::IPV6_TCLASS,
    libc::IPV6_MULTICAST_HOPS,
    libc::IPV6_MULTICAST_LOOP,
    libc::IPV6_RECVHOPLIMIT,
    libc::IPV6_RECVTCLASS,
    libc::IPV6_RECVERR,
    libc::IPV6_MTU_DISCOVER,
    libc::IPV6_DONTFRAG,
    libc::IPV6_MULTICAST_IF,
    libc::IPV6_FREEBIND,
    libc::IPV6_ADDR_PREFERENCES,
    libc::IPV6_TRANSPARENT,
    number::IPV6_AUTOFLOWLABEL,
    number::IPV6_MINHOPCOUNT,
    number::IPV6_RECVERR_RFC4884,
    number::IPV6_UNICAST_IF,
];

/// Of raw sockets (linux/icmp.h, linux/icmpv6.h, linux/in6.h).
const OF_RAW: [(i32, i32); 4] = [
    (libc::IPPROTO_IP, libc::IP_HDRINCL),
    (libc::SOL_RAW, number::ICMP_FILTER),
    (libc::IPPROTO_ICMPV6, number::ICMPV6_FILTER),
    (libc::IPPROTO_RAW, number::IPV6_CHECKSUM),
];

/// The options that differ from those of a new socket of the kind: what nobody set is left to the kernel at
/// restart.
pub fn options(asked: &Asked) -> Vec<SocketOption> {
    let level = libc::SOL_SOCKET;
    let (transport, ip, ipv6) = (libc::IPPROTO_TCP, libc::IPPROTO_IP, libc::IPPROTO_IPV6);
    let buffers = [(level, libc::SO_SNDBUF), (level, libc::SO_RCVBUF)];
    // Domains count their protocols each for themselves.
    let is_internet = matches!(asked.domain, libc::AF_INET | libc::AF_INET6);
    let is_tcp = is_internet && (asked.kind, asked.protocol) == (libc::SOCK_STREAM, transport);
    let mut names: Vec<(i32, i32)> = COMMON.map(|name| (level, name)).into();
    if is_tcp {
        names.extend(OF_TCP.map(|name| (transport, name)));
        // TCP sizes its buffers by itself, and setting them would stop that: only where the program did (SO_BUF_LOCK).
        let locked = socket::number_option(asked.socket.0, level, tcp::SO_BUF_LOCK).unwrap_or(0);
        names.extend(buffers.iter().zip([1, 2]).filter(|(_, bit)| locked & bit != 0).map(|(name, _)| *name));
    } else {
        names.extend(buffers);
    }
    if is_internet && (asked.kind, asked.protocol) == (libc::SOCK_DGRAM, libc::IPPROTO_UDP) {
        names.extend(OF_UDP.map(|name| (libc::IPPROTO_UDP, name)));
    }
    if asked.kind == libc::SOCK_RAW {
        names.extend(OF_RAW);
    }
    match asked.domain {
        libc::AF_NETLINK => names.extend(plain::OF_NETLINK.map(|name| (libc::SOL_NETLINK, name))),
        libc::AF_INET => names.extend(OF_IP.map(|name| (ip, name))),
        libc::AF_INET6 => names.extend(OF_IPV6.map(|name| (ipv6, name))),
        _ => {}
    }
    if is_tcp {
        // Of a connection they can be asked, and not be set.
        let multicast = [
            (ip, libc::IP_MULTICAST_TTL),
            (ip, libc::IP_MULTICAST_LOOP),
            (ip, libc::IP_MULTICAST_IF),
            (ip, number::IP_MULTICAST_ALL),
            (ipv6, libc::IPV6_MULTICAST_HOPS),
            (ipv6, libc::IPV6_MULTICAST_LOOP),
            (ipv6, libc::IPV6_MULTICAST_IF),
        ];
        names.retain(|name| !multicast.contains(name));
    }
    let new = socket::socket(asked.domain, asked.kind | libc::SOCK_CLOEXEC, asked.protocol).map(Duplicate);
    let mut options: Vec<SocketOption> = names
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
        .collect();
    if !is_tcp {
        options.extend(groups::memberships(asked));
    }
    options.extend(plain::netlink_groups(asked));
    options.extend(filter(asked));
    options
}

/// The filter of a socket (socket(7), SO_ATTACH_FILTER): its instructions, and then whether it is locked. One of eBPF
/// cannot be read back.
fn filter(asked: &Asked) -> Vec<SocketOption> {
    /// struct sock_filter.
    const INSTRUCTION: usize = 8;
    const MOST: usize = 4096;
    const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;
    let level = libc::SOL_SOCKET;
    // Its length is counted in instructions, in and out.
    let Ok(count @ 1..=MOST) = socket::count_option(asked.socket.0, level, SO_GET_FILTER, &mut []) else {
        return Vec::new();
    };
    let mut value = vec![0u8; count * INSTRUCTION];
    if socket::count_option(asked.socket.0, level, SO_GET_FILTER, &mut value) != Ok(count) {
        return Vec::new();
    }
    let mut options = vec![SocketOption { level, name: libc::SO_ATTACH_FILTER, value }];
    if socket::number_option(asked.socket.0, level, libc::SO_LOCK_FILTER) == Ok(1) {
        options.push(SocketOption { level, name: libc::SO_LOCK_FILTER, value: 1i32.to_ne_bytes().into() });
    }
    options
}
