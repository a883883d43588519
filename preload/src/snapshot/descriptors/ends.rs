//! Ends of connections whose other ends other processes may have: of the same computation, or outside it.

use alloc::vec::Vec;

use stasis_protocol::{
    coordinator::{End, Refusal},
    image::{Description, DescriptionKind, Descriptor},
};

use super::{Open, refusal};

/// The ends that this process has. `opens` and `descriptors` go together.
pub fn find(opens: &[Open], descriptions: &[Description], descriptors: &[Descriptor]) -> Vec<End> {
    let mut ends: Vec<End> = Vec::new();
    let mut described = 0;
    for (open, descriptor) in opens.iter().zip(descriptors) {
        // Of a description, the first descriptor speaks.
        if descriptor.description < described {
            continue;
        }
        described = descriptor.description + 1;
        let Some(description) = descriptions.get(descriptor.description as usize) else { continue };
        ends.extend(end(open, description));
    }
    // Another process may have but the one, and want the other.
    let mut here: Vec<u64> = ends.iter().map(|end| end.has).collect();
    here.sort_unstable();
    for end in &mut ends {
        end.refusal.take_if(|_| here.binary_search(&end.wants).is_ok());
    }
    ends
}

fn end(open: &Open, description: &Description) -> Option<End> {
    let named = |key: u64, side: bool| key.wrapping_mul(2) + u64::from(side);
    match &description.kind {
        DescriptionKind::Pipe { pipe, write, other_closed: false, fifo: Some(_), .. } => Some(End {
            has: named(*pipe, *write),
            wants: named(*pipe, !*write),
            refusal: outside(
                open,
                "the other end of the FIFO is open outside the checkpoint",
                "launch the program at the other end in the same computation",
            ),
        }),
        DescriptionKind::SocketPair { pair, other_closed: false, .. } => {
            let side = open.stat.st_ino == *pair;
            Some(End {
                has: named(*pair, side),
                wants: named(*pair, !side),
                refusal: outside(
                    open,
                    "the other end of the connection is outside the checkpoint",
                    "let the program close it, or launch the other end in the same computation",
                ),
            })
        }
        _ => None,
    }
}

/// Standard descriptors are inherited where they lead outside.
fn outside(open: &Open, reason: &str, remedy: &str) -> Option<Refusal> {
    (open.fd > 2).then(|| refusal(open.fd, &open.link, reason.into(), remedy))
}
