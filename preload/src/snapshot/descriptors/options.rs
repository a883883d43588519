//! The options of sockets: those that were set, the filter, and the groups that one is a member of.

use alloc::{format, vec, vec::Vec};

use stasis_protocol::{coordinator::Refusal, image::SocketOption};
use stasis_sys::{Errno, socket};

use super::{Duplicate, Open, bytes, groups, sockets::Asked, tcp};
use crate::confined;

/// Numbers that libc has not: asm-generic/socket.h, linux/in.h, linux/in6.h, linux/tcp.h, linux/udp.h.
mod number {
    pub const SO_NO_CHECK: i32 = 11;
    pub const SO_WIFI_STATUS: i32 = 41;
    pub const SO_NOFCS: i32 = 43;
    pub const SO_TIMESTAMP_NEW: i32 = 63;
    pub const SO_TIMESTAMPNS_NEW: i32 = 64;
    pub const SO_TIMESTAMPING_NEW: i32 = 65;
    pub const SO_PREFER_BUSY_POLL: i32 = 69;
    pub const SO_TXREHASH: i32 = 74;
    pub const SO_RCVMARK: i32 = 75;
    pub const SO_PASSPIDFD: i32 = 76;
    pub const SO_RCVPRIORITY: i32 = 82;
    pub const SO_PASSRIGHTS: i32 = 83;
    pub const SO_INQ: i32 = 84;
    pub const IP_OPTIONS: i32 = 4;
    pub const IP_RECVOPTS: i32 = 6;
    pub const IP_RETOPTS: i32 = 7;
    pub const IP_PASSSEC: i32 = 18;
    pub const IP_CHECKSUM: i32 = 23;
    pub const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    pub const IP_RECVFRAGSIZE: i32 = 25;
    pub const IP_RECVERR_RFC4884: i32 = 26;
    pub const IP_MULTICAST_ALL: i32 = 49;
    pub const IP_UNICAST_IF: i32 = 50;
    pub const IP_LOCAL_PORT_RANGE: i32 = 51;
    pub const IPV6_2292PKTINFO: i32 = 2;
    pub const IPV6_2292HOPOPTS: i32 = 3;
    pub const IPV6_2292DSTOPTS: i32 = 4;
    pub const IPV6_2292RTHDR: i32 = 5;
    pub const IPV6_CHECKSUM: i32 = 7;
    pub const IPV6_2292HOPLIMIT: i32 = 8;
    pub const IPV6_FLOWINFO: i32 = 11;
    pub const IPV6_MULTICAST_ALL: i32 = 29;
    pub const IPV6_ROUTER_ALERT_ISOLATE: i32 = 30;
    pub const IPV6_RECVERR_RFC4884: i32 = 31;
    pub const IPV6_FLOWINFO_SEND: i32 = 33;
    pub const IPV6_RECVHOPOPTS: i32 = 53;
    pub const IPV6_RECVRTHDR: i32 = 56;
    pub const IPV6_RECVDSTOPTS: i32 = 58;
    pub const IPV6_RECVPATHMTU: i32 = 60;
    pub const IPV6_AUTOFLOWLABEL: i32 = 70;
    pub const IPV6_MINHOPCOUNT: i32 = 73;
    pub const IPV6_RECVORIGDSTADDR: i32 = 74;
    pub const IPV6_UNICAST_IF: i32 = 76;
    pub const IPV6_RECVFRAGSIZE: i32 = 77;
    pub const ICMP_FILTER: i32 = 1;
    pub const ICMPV6_FILTER: i32 = 1;
    pub const TCP_THIN_LINEAR_TIMEOUTS: i32 = 16;
    pub const TCP_SAVE_SYN: i32 = 27;
    pub const TCP_FASTOPEN_CONNECT: i32 = 30;
    pub const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
    pub const TCP_INQ: i32 = 36;
    pub const TCP_TX_DELAY: i32 = 37;
    pub const TCP_RTO_MAX_MS: i32 = 44;
    pub const TCP_RTO_MIN_US: i32 = 45;
    pub const TCP_DELACK_MAX_US: i32 = 46;
    pub const UDP_CORK: i32 = 1;
    pub const UDP_ENCAP: i32 = 100;
    pub const UDP_NO_CHECK6_TX: i32 = 101;
    pub const UDP_NO_CHECK6_RX: i32 = 102;
    pub const UDP_SEGMENT: i32 = 103;
    pub const UDP_GRO: i32 = 104;
}

/// In this order: the old SO_TIMESTAMPING tells what the new one has set, and the times in nanoseconds count as times
/// (`sk_getsockopt` in net/core/sock.c).
const COMMON: [i32; 39] = [
    libc::SO_DEBUG,
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
    number::SO_TIMESTAMP_NEW,
    number::SO_TIMESTAMPNS_NEW,
    number::SO_TIMESTAMPING_NEW,
    libc::SO_RXQ_OVFL,
    number::SO_NO_CHECK,
    libc::SO_MARK,
    libc::SO_BUSY_POLL,
    number::SO_PREFER_BUSY_POLL,
    libc::SO_MAX_PACING_RATE,
    libc::SO_INCOMING_CPU,
    libc::SO_ZEROCOPY,
    libc::SO_SELECT_ERR_QUEUE,
    number::SO_WIFI_STATUS,
    number::SO_NOFCS,
    number::SO_TXREHASH,
    number::SO_RCVMARK,
    number::SO_RCVPRIORITY,
    number::SO_PASSRIGHTS,
    number::SO_INQ,
];

const OF_TCP: [i32; 19] = [
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
    number::TCP_THIN_LINEAR_TIMEOUTS,
    number::TCP_SAVE_SYN,
    number::TCP_TX_DELAY,
    number::TCP_RTO_MAX_MS,
    number::TCP_RTO_MIN_US,
    number::TCP_DELACK_MAX_US,
];

/// Of a connection they tell what came of it, or cannot be set any more.
const OF_UNCONNECTED_TCP: [i32; 4] =
    [libc::TCP_MAXSEG, libc::TCP_WINDOW_CLAMP, number::TCP_FASTOPEN_CONNECT, number::TCP_FASTOPEN_NO_COOKIE];

const OF_UDP: [i32; 6] = [
    number::UDP_CORK,
    number::UDP_ENCAP,
    number::UDP_SEGMENT,
    number::UDP_GRO,
    number::UDP_NO_CHECK6_TX,
    number::UDP_NO_CHECK6_RX,
];

/// Also of sockets of IPv6, which carry IPv4 as well (ipv6(7), IPV6_V6ONLY).
const OF_IP: [i32; 25] = [
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
    number::IP_OPTIONS,
    number::IP_RECVOPTS,
    number::IP_RETOPTS,
    number::IP_PASSSEC,
    number::IP_CHECKSUM,
    number::IP_RECVFRAGSIZE,
    number::IP_RECVERR_RFC4884,
    number::IP_UNICAST_IF,
    number::IP_LOCAL_PORT_RANGE,
];

const OF_IPV6: [i32; 34] = [
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
    number::IPV6_2292PKTINFO,
    number::IPV6_2292HOPOPTS,
    number::IPV6_2292DSTOPTS,
    number::IPV6_2292RTHDR,
    number::IPV6_2292HOPLIMIT,
    number::IPV6_FLOWINFO,
    number::IPV6_MULTICAST_ALL,
    number::IPV6_ROUTER_ALERT_ISOLATE,
    number::IPV6_FLOWINFO_SEND,
    number::IPV6_RECVHOPOPTS,
    number::IPV6_RECVRTHDR,
    number::IPV6_RECVDSTOPTS,
    number::IPV6_RECVPATHMTU,
    number::IPV6_RECVORIGDSTADDR,
    number::IPV6_RECVFRAGSIZE,
];

/// NETLINK_* options that are numbers (linux/netlink.h): PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK,
/// GET_STRICT_CHK.
const OF_NETLINK: [i32; 7] = [3, 4, 5, 8, 10, 11, 12];

/// Of raw sockets (linux/icmp.h, linux/icmpv6.h, linux/in6.h).
const OF_RAW: [(i32, i32); 4] = [
    (libc::IPPROTO_IP, libc::IP_HDRINCL),
    (libc::SOL_RAW, number::ICMP_FILTER),
    (libc::IPPROTO_ICMPV6, number::ICMPV6_FILTER),
    (libc::IPPROTO_RAW, number::IPV6_CHECKSUM),
];

/// Whether a socket is TCP's, or one of Multipath TCP (which falls back to it).
pub fn is_tcp(asked: &Asked) -> bool {
    matches!(asked.domain, libc::AF_INET | libc::AF_INET6)
        && asked.kind == libc::SOCK_STREAM
        && matches!(asked.protocol, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
}

/// The options that differ from those of a new socket of the kind: what nobody set is left to the kernel at
/// restart.
pub fn options(asked: &Asked) -> Vec<SocketOption> {
    let level = libc::SOL_SOCKET;
    let (transport, ip, ipv6) = (libc::IPPROTO_TCP, libc::IPPROTO_IP, libc::IPPROTO_IPV6);
    let buffers = [(level, libc::SO_SNDBUF), (level, libc::SO_RCVBUF)];
    // Domains count their protocols each for themselves.
    let is_internet = matches!(asked.domain, libc::AF_INET | libc::AF_INET6);
    let is_tcp = is_tcp(asked);
    let mut names: Vec<(i32, i32)> = COMMON.map(|name| (level, name)).into();
    if is_tcp {
        names.extend(OF_TCP.map(|name| (transport, name)));
        // TCP sizes its buffers by itself, and setting them would stop that: only where the program did (SO_BUF_LOCK).
        let locked = socket::number_option(asked.socket.0, level, tcp::SO_BUF_LOCK).unwrap_or(0);
        names.extend(buffers.iter().zip([1, 2]).filter(|(_, bit)| locked & bit != 0).map(|(name, _)| *name));
    } else {
        names.extend(buffers);
    }
    names.push((level, tcp::SO_BUF_LOCK));
    if is_internet && (asked.kind, asked.protocol) == (libc::SOCK_DGRAM, libc::IPPROTO_UDP) {
        names.extend(OF_UDP.map(|name| (libc::IPPROTO_UDP, name)));
    }
    if asked.kind == libc::SOCK_RAW {
        names.extend(OF_RAW);
    }
    match asked.domain {
        libc::AF_NETLINK => names.extend(OF_NETLINK.map(|name| (libc::SOL_NETLINK, name))),
        libc::AF_INET => names.extend(OF_IP.map(|name| (ip, name))),
        libc::AF_INET6 => {
            names.extend(OF_IPV6.map(|name| (ipv6, name)));
            names.extend(OF_IP.map(|name| (ip, name)));
        }
        _ => {}
    }
    if is_tcp {
        // Of a stream they can be asked, and not be set.
        let multicast = [
            (ip, libc::IP_MULTICAST_TTL),
            (ip, libc::IP_MULTICAST_IF),
            (ipv6, libc::IPV6_MULTICAST_HOPS),
            (ipv6, libc::IPV6_MULTICAST_IF),
        ];
        names.retain(|name| !multicast.contains(name));
    }
    let mut options = changed(asked, &names);
    if !is_tcp {
        options.extend(groups::memberships(asked));
    }
    options.extend(netlink_groups(asked));
    options.extend(filter(asked));
    options
}

/// Those of a TCP socket that is not connected.
pub fn of_unconnected(asked: &Asked) -> Vec<SocketOption> {
    let names = OF_UNCONNECTED_TCP.map(|name| (libc::IPPROTO_TCP, name));
    if is_tcp(asked) { changed(asked, &names) } else { Vec::new() }
}

/// Of these options, those that a new socket has otherwise.
fn changed(asked: &Asked, names: &[(i32, i32)]) -> Vec<SocketOption> {
    /// That of IP_OPTIONS has 40 bytes (RFC 791).
    const LONGEST: usize = 40;
    let new = socket::socket(asked.domain, asked.kind | libc::SOCK_CLOEXEC, asked.protocol).map(Duplicate);
    let get = |&(level, name): &(i32, i32)| {
        let mut value = [0u8; LONGEST];
        let len = socket::option(asked.socket.0, level, name, &mut value).ok()?;
        let mut default = [0u8; LONGEST];
        let is_default = new.as_ref().is_ok_and(|new| {
            socket::option(new.0, level, name, &mut default).is_ok_and(|n| default[..n] == value[..len])
        });
        (!is_default).then(|| SocketOption { level, name, value: bytes(&value, len) })
    };
    names.iter().filter_map(get).collect()
}

/// The groups of a netlink socket that its address has no room for, as the calls of setsockopt(2) that make it a member.
fn netlink_groups(asked: &Asked) -> Vec<SocketOption> {
    const NETLINK_ADD_MEMBERSHIP: i32 = 1;
    const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
    const IN_ADDRESS: usize = 32;
    if asked.domain != libc::AF_NETLINK {
        return Vec::new();
    }
    let mut groups = vec![0u8; 256];
    let level = libc::SOL_NETLINK;
    if socket::option(asked.socket.0, level, NETLINK_LIST_MEMBERSHIPS, &mut groups).is_err() {
        return Vec::new();
    }
    let is_member = |group: &usize| groups[group / 8] >> (group % 8) & 1 != 0;
    (IN_ADDRESS..groups.len() * 8)
        .filter(is_member)
        .map(|group| {
            let value = (group as u32 + 1).to_ne_bytes().into();
            SocketOption { level, name: NETLINK_ADD_MEMBERSHIP, value }
        })
        .collect()
}

/// Refuses what was set and cannot be read back.
///
/// # Errors
/// A refusal that names it.
pub fn check(open: &Open, asked: &Asked) -> Result<(), Refusal> {
    let level = libc::SOL_SOCKET;
    // `sk_get_filter` in net/core/filter.c.
    if socket::count_option(asked.socket.0, level, SO_GET_FILTER, &mut []) == Err(Errno(libc::EACCES)) {
        return open.refuse(
            "it has a filter of eBPF (SO_ATTACH_BPF), which the kernel does not tell",
            "let the program take it off (SO_DETACH_FILTER) before the checkpoint",
        );
    }
    // The program belongs to all sockets at the address, and goes with the last.
    if confined::has(confined::REUSEPORT)
        && matches!(asked.domain, libc::AF_INET | libc::AF_INET6)
        && socket::number_option(asked.socket.0, level, libc::SO_REUSEPORT).is_ok_and(|shared| shared != 0)
    {
        return open.refuse(
            "a BPF program chooses among the sockets at its address (SO_ATTACH_REUSEPORT_CBPF, _EBPF), and the kernel does \
             not tell which",
            "let the program take it off (SO_DETACH_REUSEPORT_BPF), or close those sockets, before the checkpoint",
        );
    }
    let mut protocol = [0u8; 16];
    // Of Multipath TCP, that is what it is.
    let layered = is_tcp(asked)
        && asked.protocol == libc::IPPROTO_TCP
        && socket::option(asked.socket.0, libc::IPPROTO_TCP, libc::TCP_ULP, &mut protocol)
            .is_ok_and(|len| len > 0);
    if layered {
        let name = core::str::from_utf8(protocol.split(|&byte| byte == 0).next().unwrap_or_default());
        return open.refuse(
            &format!(
                "the kernel does {} on it (TCP_ULP), with keys that it does not tell",
                name.unwrap_or("?")
            ),
            "let the program do that by itself (for OpenSSL: without SSL_OP_ENABLE_KTLS)",
        );
    }
    Ok(())
}

/// Its length is counted in instructions, in and out.
const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;

/// The filter of a socket (socket(7), SO_ATTACH_FILTER): its instructions, and then whether it is locked.
fn filter(asked: &Asked) -> Vec<SocketOption> {
    /// struct sock_filter.
    const INSTRUCTION: usize = 8;
    const MOST: usize = 4096;
    let level = libc::SOL_SOCKET;
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
