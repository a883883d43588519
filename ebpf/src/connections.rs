//! Who has the other ends of a computation's connections: found among all sockets of the machine.

use std::{collections::HashMap, net::IpAddr};

use stasis_events::{Socket, SocketAddresses};
use stasis_protocol::tracer::{Connection, OtherEnd};

use crate::events;

const AF_UNIX: u16 = 1;
/// include/net/tcp_states.h
const LISTEN: u16 = 10;

/// One end of an internet connection as it can be compared with the other's: v4-mapped addresses as IPv4.
type End = (u64, IpAddr, u16, IpAddr, u16);

/// The sockets of the owner's computation, each with where its other end is. `uid`: who asks.
pub fn classify(sockets: &[Socket], computation: u64, owner: u32, uid: u32) -> Vec<Connection> {
    let is_ours = |socket: &Socket| socket.computation == computation && socket.owner == owner;
    let mut by_inode: HashMap<u64, Vec<&Socket>> = HashMap::new();
    let mut by_end: HashMap<(u16, End), Vec<&Socket>> = HashMap::new();
    let mut listeners: HashMap<(u64, u16), Vec<&Socket>> = HashMap::new();
    for socket in sockets {
        by_inode.entry(socket.inode).or_default().push(socket);
        if let Some(end) = end(&socket.addresses) {
            by_end.entry((socket.kind, end)).or_default().push(socket);
        }
        if socket.state == LISTEN && socket.addresses.family != AF_UNIX {
            let at = (socket.addresses.namespace, socket.addresses.local_port);
            listeners.entry(at).or_default().push(socket);
        }
    }
    let none = Vec::new();
    let other = |socket: &Socket| -> OtherEnd {
        let addresses = &socket.addresses;
        if socket.state == LISTEN {
            return OtherEnd::None;
        }
        if addresses.family == AF_UNIX {
            if socket.peer_inode == 0 {
                return OtherEnd::None;
            }
            // Whoever has not been accepted yet, or was sent and not received, is in nobody's hands: its inode is none.
            return holder(
                by_inode.get(&socket.peer_inode).unwrap_or(&none),
                &is_ours,
                uid,
                OtherEnd::Inside { pid: 0, inode: socket.peer_inode },
            );
        }
        let Some(this) = end(addresses) else { return OtherEnd::None };
        if this.4 == 0 {
            return OtherEnd::None;
        }
        let reversed = (this.0, this.3, this.4, this.1, this.2);
        let held = by_end.get(&(socket.kind, reversed)).unwrap_or(&none);
        if !held.is_empty() {
            return holder(held, &is_ours, uid, OtherEnd::Elsewhere);
        }
        // Made and not accepted yet: it is its listener's.
        if this.3.is_loopback() || this.3 == this.1 {
            let listening = listeners.get(&(this.0, this.4)).unwrap_or(&none);
            return match holder(listening, &is_ours, uid, OtherEnd::Elsewhere) {
                OtherEnd::Inside { .. } => OtherEnd::Inside { pid: 0, inode: 0 },
                other => other,
            };
        }
        OtherEnd::Elsewhere
    };
    let mut found: Vec<Connection> = sockets
        .iter()
        .filter(|socket| is_ours(socket))
        .map(|socket| {
            let (local, remote) = events::ends(&socket.addresses);
            Connection {
                pid: socket.tgid,
                fd: socket.fd,
                inode: socket.inode,
                family: socket.addresses.family,
                kind: socket.kind,
                state: socket.state,
                local,
                remote,
                other: other(socket),
            }
        })
        .collect();
    found.sort_by_key(|connection| (connection.pid, connection.fd));
    found
}

/// Of several processes that share a socket, one inside counts first, then one in a computation.
fn holder(held: &[&Socket], is_ours: &impl Fn(&Socket) -> bool, uid: u32, nobody: OtherEnd) -> OtherEnd {
    let may_know = |owner: u32| uid == 0 || uid == owner;
    if let Some(inside) = held.iter().find(|socket| is_ours(socket)) {
        OtherEnd::Inside { pid: inside.tgid, inode: inside.inode }
    } else if let Some(other) = held.iter().find(|socket| socket.computation != 0) {
        OtherEnd::Computation { computation: Some(other.computation).filter(|_| may_know(other.owner)) }
    } else if let Some(other) = held.first() {
        OtherEnd::Host { pid: Some(other.tgid).filter(|_| may_know(other.uid)) }
    } else {
        nobody
    }
}

fn end(addresses: &SocketAddresses) -> Option<End> {
    let local = events::ip(addresses.family, &addresses.local)?;
    let remote = events::ip(addresses.family, &addresses.remote)?;
    Some((addresses.namespace, local, addresses.local_port, remote, addresses.remote_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: u32 = 1000;

    fn socket(computation: u64, tgid: u32, inode: u64) -> Socket {
        Socket {
            computation,
            inode,
            peer_inode: 0,
            owner: if computation == 0 { 0 } else { OWNER },
            tgid,
            uid: OWNER,
            fd: 3,
            kind: 1,
            state: 1,
            unused: 0,
            addresses: SocketAddresses { family: AF_UNIX, ..Default::default() },
        }
    }

    fn tcp(computation: u64, tgid: u32, local: u16, remote: u16) -> Socket {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[127, 0, 0, 1]);
        Socket {
            addresses: SocketAddresses {
                family: 2,
                local_port: local,
                remote_port: remote,
                unused: 0,
                namespace: 1,
                local: address,
                remote: address,
            },
            ..socket(computation, tgid, u64::from(local))
        }
    }

    fn others(sockets: &[Socket], uid: u32) -> Vec<OtherEnd> {
        classify(sockets, 7, OWNER, uid).into_iter().map(|connection| connection.other).collect()
    }

    #[test]
    fn both_ends_of_a_unix_pair_are_inside() {
        let pair =
            [Socket { peer_inode: 2, ..socket(7, 10, 1) }, Socket { peer_inode: 1, ..socket(7, 11, 2) }];
        let expected = [OtherEnd::Inside { pid: 11, inode: 2 }, OtherEnd::Inside { pid: 10, inode: 1 }];
        assert_eq!(others(&pair, OWNER), expected);
    }

    #[test]
    fn a_process_of_nobody_s_is_told_to_its_own_user_alone() {
        let pair = [Socket { peer_inode: 2, ..socket(7, 10, 1) }, Socket { uid: 5, ..socket(0, 99, 2) }];
        assert_eq!(others(&pair, OWNER), [OtherEnd::Host { pid: None }]);
        assert_eq!(others(&pair, 0), [OtherEnd::Host { pid: Some(99) }]);
    }

    #[test]
    fn tcp_ends_meet_by_their_addresses() {
        let sockets = [tcp(7, 10, 4000, 80), tcp(8, 11, 80, 4000), tcp(7, 10, 4001, 81)];
        let expected = [OtherEnd::Computation { computation: Some(8) }, OtherEnd::Elsewhere];
        assert_eq!(others(&sockets, OWNER), expected);
    }

    #[test]
    fn what_is_not_accepted_yet_is_its_listener_s() {
        let sockets = [tcp(7, 10, 4000, 80), Socket { state: LISTEN, ..tcp(7, 11, 80, 0) }];
        assert_eq!(others(&sockets, OWNER), [OtherEnd::Inside { pid: 0, inode: 0 }, OtherEnd::None]);
    }
}
