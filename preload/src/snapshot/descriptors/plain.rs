//! Sockets that lead to the kernel or to the network as such: netlink(7), raw(7), and those that ping (icmp(7)). They are made
//! afresh. What waits in them nobody could send again as it came: of the network's it is lost, as packets may be; the kernel's
//! answers are waited for.

use alloc::{vec, vec::Vec};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, SocketOption},
};
use stasis_sys::socket;

use super::{
    Open, Table,
    sockets::{Asked, WAIT, bound, fresh, name},
};

pub fn netlink(table: &Table<'_>, open: &Open, asked: &Asked) -> Result<DescriptionKind, Refusal> {
    // An error that waits is that messages were lost (netlink(7), ENOBUFS).
    if table.stopped() && socket::peek(asked.socket.0, &mut [0], 0).is_ok() {
        return open.refuse("what the kernel has told it is not saved", WAIT);
    }
    // struct sockaddr_nl: family, port and groups; a socket that nobody has bound or sent by has no port.
    let address = name(asked, false);
    let is_bound = address.get(4..12).is_some_and(|rest| rest != [0; 8]);
    let local = if is_bound { address } else { Vec::new() };
    Ok(fresh(asked, local, Vec::new(), None, Vec::new(), Vec::new()))
}

/// `is_raw`: its port is a protocol (net/ipv4/raw.c, `inet_num`), and says nothing of whether it is bound.
pub fn internet(asked: &Asked, is_raw: bool) -> DescriptionKind {
    let mut local = name(asked, false);
    if is_raw {
        let host = if asked.domain == libc::AF_INET { 4..8 } else { 8..24 };
        if local.get(host).is_none_or(|host| host.iter().all(|&byte| byte == 0)) {
            local.clear();
        }
    } else {
        local = bound(local);
    }
    fresh(asked, local, name(asked, true), None, Vec::new(), Vec::new())
}

/// NETLINK_* options that are numbers (linux/netlink.h): PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK,
/// GET_STRICT_CHK.
pub const OF_NETLINK: [i32; 7] = [3, 4, 5, 8, 10, 11, 12];

/// The groups of a netlink socket that its address has no room for, as the calls of setsockopt(2) that make it a member.
pub fn netlink_groups(asked: &Asked) -> Vec<SocketOption> {
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
