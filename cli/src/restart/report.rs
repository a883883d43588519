//! The report pipe: what goes wrong in the child, told by it while it is `stasis restart` and by the restorer
//! then. It is closed without a word when all threads run.

use std::{
    fs::File,
    io::{self, Read, Write},
    mem::ManuallyDrop,
    os::fd::{FromRawFd, RawFd},
};

use anyhow::anyhow;
use stasis_protocol::{
    coordinator::Refusal,
    image::ProcessImage,
    plan::{Failure as Report, step},
    wire,
};

use super::{
    Saved,
    layout::Pages,
    spawn::{Child, Unspawned},
};
use crate::failure::Failure;

/// In place of a step of the restorer's: the child's own words follow.
const IN_WORDS: u64 = 0;

/// Tells why the child does not become the restorer; whatever fails here, nobody is left to be told.
pub fn tell(report: RawFd, error: &anyhow::Error) {
    let refusals: &[Refusal] = match error.downcast_ref() {
        Some(Failure::Refused(refusals)) => refusals,
        _ => &[],
    };
    let words = wire::encode(&(refusals, format!("{error:#}"))).unwrap_or_default();
    // A report is four words; the first is the step.
    let mut bytes = vec![0; size_of::<Report>()];
    bytes[..8].copy_from_slice(&IN_WORDS.to_ne_bytes());
    bytes.extend(words);
    // SAFETY: the pipe's number is not closed here.
    let _ = ManuallyDrop::new(unsafe { File::from_raw_fd(report) }).write_all(&bytes);
}

/// Waits until all threads run.
///
/// # Errors
/// What was told. The child is gone then.
pub fn wait(mut report: File, saved: &Saved, child: &Child) -> Result<(), Unspawned> {
    let mut bytes = Vec::new();
    report.read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Ok(());
    }
    child.collect();
    if bytes.len() < size_of::<Report>() {
        return Err(anyhow!("the restorer ended without saying why").into());
    }
    // SAFETY: four words, any bits are valid.
    let failure: Report = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    if failure.step == IN_WORDS {
        return Err(in_words(&bytes[size_of::<Report>()..]).into());
    }
    let message = explain(&failure, &saved.image, &saved.pages);
    if failure.step == step::THREAD && failure.errno == libc::EEXIST as u64 {
        return Err(Unspawned::Ids(message));
    }
    if failure.step == step::CORRUPT || failure.step == step::FILL {
        return Err(anyhow!(Failure::Store { directory: saved.pages.directory.clone(), message }).into());
    }
    Err(anyhow!(message).into())
}

fn in_words(bytes: &[u8]) -> anyhow::Error {
    match wire::decode::<(Vec<Refusal>, String)>(bytes) {
        Ok((refusals, _)) if !refusals.is_empty() => Failure::Refused(refusals).into(),
        Ok((_, message)) => anyhow!(message),
        Err(error) => anyhow!("the program could not be restarted, and why cannot be read: {error}"),
    }
}

/// Says what went wrong and where.
fn explain(failure: &Report, image: &ProcessImage, pages: &Pages) -> String {
    let errno = io::Error::from_raw_os_error(failure.errno as i32);
    let address = failure.address;
    let mapping = || {
        let found = image.mappings.iter().find(|mapping| mapping.start <= address && address < mapping.end);
        found.map_or(format!("address {address:x}"), |mapping| {
            format!("mapping {:x}-{:x}, address {address:x}", mapping.start, mapping.end)
        })
    };
    match failure.step {
        step::CORRUPT => {
            let (hash, place) = pages.describe(address);
            format!(
                "{}: the page {hash} is damaged ({place} does not hold what its hash says); run `stasis verify`, and \
                 restart from another checkpoint",
                mapping()
            )
        }
        step::FILL => format!("{}: it cannot be read from the store: {errno}", mapping()),
        step::LAZY => format!(
            "memory at {address:x} cannot be left to the pager (step {}): {errno}; `--eager` loads all memory at once",
            failure.index
        ),
        step::MAP => format!("{}: it cannot be mapped: {errno}", mapping()),
        step::KERNEL_MAPPING => format!("{}: the kernel's own mapping cannot be moved there: {errno}", mapping()),
        step::AREA | step::UNMAP => format!("no room for the restorer at {address:x}: {errno}"),
        step::THREAD => format!("thread {address} cannot be made: {errno}"),
        step::CALL | step::LAST_CALL | step::THREAD_CALL => {
            format!("system call {address} (step {}, number {}) failed: {errno}", failure.step, failure.index)
        }
        _ => "the restorer does not understand its plan: `stasis` and `stasis-restorer` are of different builds".into(),
    }
}
