//! The kernel's records as clients are told them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stasis_events::{Kind, SocketAddresses, TaskEvent, TcpEvent, flag};
use stasis_protocol::tracer::{Event, What};

use crate::values::{record, text};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `None` for what is no record of ours.
pub fn event(bytes: &[u8]) -> Option<Event> {
    let kind = Kind::from_number(u32::from_ne_bytes(*bytes.first_chunk()?))?;
    if kind == Kind::Tcp {
        return record(bytes).map(tcp);
    }
    let told: TaskEvent = record(bytes)?;
    let command = text(&told.comm);
    let what = match kind {
        Kind::Fork => What::Fork { child: told.other, ns_pid: told.ns_pid, flags: told.flags, command },
        Kind::Thread => What::Thread { tid: told.other, flags: told.flags },
        Kind::Exec => What::Exec {
            file: text(&told.name),
            command,
            uid: told.uid,
            secure: told.flags & u64::from(flag::SECURE) != 0,
            thread: Some(told.other).filter(|&thread| thread != 0),
        },
        Kind::Exit => What::Exit { status: told.other, command },
        Kind::Refused => What::Refused { child: told.other },
        Kind::Tcp => return None,
    };
    Some(Event {
        computation: told.computation,
        owner: told.owner,
        time_ns: told.time_ns,
        pid: told.tgid,
        what,
    })
}

fn tcp(told: TcpEvent) -> Event {
    let (local, remote) = ends(&told.addresses);
    Event {
        computation: told.computation,
        owner: told.owner,
        time_ns: told.time_ns,
        pid: told.tgid,
        what: What::Tcp { old: told.old, new: told.new, inode: told.inode, local, remote },
    }
}

/// Both ends as `address:port`; empty where the socket has no such addresses.
pub fn ends(addresses: &SocketAddresses) -> (String, String) {
    let end = |bytes: &[u8; 16], port| {
        ip(addresses.family, bytes)
            .map(|address| SocketAddr::new(address, port).to_string())
            .unwrap_or_default()
    };
    (end(&addresses.local, addresses.local_port), end(&addresses.remote, addresses.remote_port))
}

pub fn ip(family: u16, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()),
        _ => None,
    }
}
