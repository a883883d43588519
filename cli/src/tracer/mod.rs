//! The tracer, the machine's one privileged service, as a user of it: [`client`] speaks with it, [`escapes`] makes of
//! its news who in a computation cannot be checkpointed, [`ends`] who has the other ends of connections that lead out of one,
//! [`own`] knows what of its news is about Stasis itself.
//!
//! It need not be there: whoever asks for it gets `None`, and does without.
//!
//! Not here: the service itself (`ebpf/`).

pub mod client;
pub mod ends;
pub mod escapes;
pub mod own;

use std::{fs::File, os::unix::ffi::OsStrExt};

use stasis_protocol::tracer::MAX_LABEL;

use crate::address::Address;

/// A computation's number for the tracer, whoever asks: made of its coordinator's address, which all who have to do
/// with it know. It only has to differ between computations of one user.
pub fn number(address: &Address) -> u64 {
    // FNV-1a; 0 would be no computation.
    let bytes = address.path().as_os_str().as_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    hash.max(1)
}

/// What the tracer calls it for people; of a long path the end, which tells more.
pub fn label(address: &Address) -> String {
    let text = address.to_string();
    let too_many = text.len().saturating_sub(MAX_LABEL);
    let begin = (too_many..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[begin..].to_string()
}

/// Has this process, and all that it will make, tracked as part of the computation. A tracer that is not there, or
/// refuses, costs names and nothing else: what it would be missed for says so.
pub fn join(address: &Address) {
    let Ok(Some(mut tracer)) = client::Tracer::connect() else { return };
    if let Ok(own) = crate::process::Pidfd::open(std::process::id()) {
        let _ = tracer.register(number(address), &label(address), &own);
    }
}

/// An open /dev/userfaultfd from the tracer, with which an ordinary user's process can make a full userfaultfd, also one
/// that it hands it on to. This process becomes part of the computation for that.
///
/// # Errors
/// Why there is none.
pub fn userfaultfd(address: &Address) -> anyhow::Result<File> {
    registered(address)?.userfaultfd()
}

/// A tracer that gives ids to this process, which becomes part of the computation for that.
///
/// # Errors
/// Why there is none.
pub fn of_ids(address: &Address) -> anyhow::Result<client::Tracer> {
    let mut tracer = registered(address)?;
    tracer.gives_ids()?;
    Ok(tracer)
}

fn registered(address: &Address) -> anyhow::Result<client::Tracer> {
    let Some(mut tracer) = client::Tracer::connect()? else { anyhow::bail!("no tracer runs") };
    let own = crate::process::Pidfd::open(std::process::id())?;
    tracer.register(number(address), &label(address), &own)?;
    Ok(tracer)
}
