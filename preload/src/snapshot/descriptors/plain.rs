//! Sockets that lead to the kernel or to the network as such: netlink(7), raw(7), and those that ping (icmp(7)). They are made
//! afresh. What waits in them nobody could send again as it came: of the network's it is lost, as packets may be; the kernel's
//! answers are waited for.

use alloc::vec::Vec;

use stasis_protocol::{coordinator::Refusal, image::DescriptionKind};
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
    Ok(fresh(asked, local, None, Vec::new(), None, Vec::new(), Vec::new()))
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
    fresh(asked, local, None, name(asked, true), None, Vec::new(), Vec::new())
}
