//! Whose unix connections are.

use alloc::{vec, vec::Vec};

use stasis_protocol::image::Peer;
use stasis_sys::{Errno, socket};

use super::sockets::Asked;

/// Who made the other end of a unix connection; of a listening socket: who listens. Of others the kernel notes nobody.
pub fn other_end(asked: &Asked) -> Option<Peer> {
    /// What the kernel says where it has noted nobody.
    const NOBODY: u32 = u32::MAX;
    if asked.domain != libc::AF_UNIX {
        return None;
    }
    // struct ucred: pid, uid, gid.
    let mut credentials = [0u8; 12];
    socket::option(asked.socket.0, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut credentials).ok()?;
    let [pid, uid, gid] = *credentials.as_chunks::<4>().0 else { return None };
    let (pid, uid, gid) = (i32::from_ne_bytes(pid), u32::from_ne_bytes(uid), u32::from_ne_bytes(gid));
    (uid != NOBODY).then(|| Peer { pid, uid, gid, groups: groups(asked) })
}

fn groups(asked: &Asked) -> Vec<u32> {
    const SO_PEERGROUPS: i32 = 59;
    // NGROUPS_MAX is 65536 (linux/limits.h).
    for room in [64, 65536] {
        let mut groups = vec![0u8; room * 4];
        match socket::option(asked.socket.0, libc::SOL_SOCKET, SO_PEERGROUPS, &mut groups) {
            Ok(len) => {
                let groups = groups[..len].as_chunks::<4>().0;
                return groups.iter().map(|group| u32::from_ne_bytes(*group)).collect();
            }
            Err(Errno(libc::ERANGE)) => {}
            Err(_) => break,
        }
    }
    Vec::new()
}
