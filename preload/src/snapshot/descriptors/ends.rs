//! Ends of connections whose other ends other processes may have: of the same computation, or outside it.

use alloc::{format, vec::Vec};

use stasis_protocol::{
    coordinator::{End, Refusal},
    image::{Description, DescriptionKind, Descriptor, Slave},
};

use super::{Open, pidfds, pty, refusal, sockets, tcp};

/// The ends that this process has. `opens` and `descriptors` go together.
pub fn find(opens: &[Open], descriptions: &[Description], descriptors: &[Descriptor]) -> Vec<End> {
    let mut ends: Vec<End> = [pidfds::of(stasis_sys::process::getpid())].into();
    let mut described = 0;
    for (open, descriptor) in opens.iter().zip(descriptors) {
        // Of a description, the first descriptor speaks.
        if descriptor.description < described {
            continue;
        }
        described = descriptor.description + 1;
        let Some(description) = descriptions.get(descriptor.description as usize) else { continue };
        let found = end(open, description);
        // A FIFO that is open for reading and writing is both of its ends.
        if open.access() == libc::O_RDWR
            && matches!(description.kind, DescriptionKind::Pipe { .. })
            && let Some(end) = found.clone()
        {
            ends.push(End { has: end.wants, wants: end.has, ..end });
        }
        ends.extend(found);
        if let DescriptionKind::Socket { waiting, local, domain, .. } = &description.kind
            && !waiting.is_empty()
        {
            ends.extend(match *domain {
                libc::AF_UNIX => sockets::waiting_ends(waiting),
                _ => tcp::waiting_ends(open, waiting, local),
            });
        }
    }
    // Another process may have but the one, and want the other.
    let mut here: Vec<u64> = ends.iter().map(|end| end.has).collect();
    here.sort_unstable();
    for end in &mut ends {
        end.refusal.take_if(|_| here.binary_search(&end.wants).is_ok());
    }
    ends
}

/// Names an end of a connection.
pub fn named(pair: u64, side: bool) -> u64 {
    pair.wrapping_mul(2) + u64::from(side)
}

fn end(open: &Open, description: &Description) -> Option<End> {
    match &description.kind {
        DescriptionKind::Pipe { pipe, write, other_closed: false, fifo: Some(_), .. } => Some(End {
            has: named(*pipe, *write),
            wants: named(*pipe, !*write),
            refusal: outside(
                open,
                "the other end of the FIFO is open outside the checkpoint",
                "launch the program at the other end in the same computation",
            ),
            socket: false,
            terminal: None,
        }),
        DescriptionKind::SocketPair { pair, other_closed: false, domain, local, peer, .. } => {
            let side = match *domain {
                libc::AF_UNIX => open.stat.st_ino == *pair,
                _ => tcp::side(local, peer),
            };
            Some(End {
                has: named(*pair, side),
                wants: named(*pair, !side),
                refusal: outside(
                    open,
                    "the other end of the connection is outside the checkpoint",
                    "launch the other end in the same computation, let the program close it, or checkpoint with \
                     --external-sockets=close",
                ),
                socket: true,
                terminal: None,
            })
        }
        DescriptionKind::Terminal { pty: 1.., hung_up: true, .. } => None,
        DescriptionKind::Terminal { pty: pty @ 1.., .. } => Some(End {
            has: named(*pty, false),
            wants: named(*pty, true),
            refusal: None,
            socket: false,
            terminal: None,
        }),
        DescriptionKind::Pseudoterminal { slave: Slave::Closed, .. } => None,
        DescriptionKind::Pseudoterminal { pty, index, file_system, .. } => Some(End {
            has: named(*pty, true),
            wants: named(*pty, false),
            refusal: Some(refusal(
                open.fd,
                &open.link,
                format!(
                    "the other side of this pseudo-terminal, /dev/pts/{index}, is open outside the checkpoint"
                ),
                "launch who has it open in the same computation, or let the program close it",
            )),
            socket: false,
            terminal: Some((*file_system, libc::makedev(pty::SLAVES, *index))),
        }),
        DescriptionKind::Process { id, thread } => pidfds::wants(open, *id, *thread),
        _ => None,
    }
}

/// Standard descriptors are inherited where they lead outside.
fn outside(open: &Open, reason: &str, remedy: &str) -> Option<Refusal> {
    (open.fd > 2).then(|| refusal(open.fd, &open.link, reason.into(), remedy))
}
