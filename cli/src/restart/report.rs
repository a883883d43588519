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

use super::{computation::Computation, layout::Pages, spawn::Unspawned};
use crate::failure::Failure;

/// In place of a step of the restorer's: the child's own words follow.
const IN_WORDS: u64 = 0;

/// Tells why process `pid` does not become the restorer; whatever fails here, nobody is left to be told. `ids`: it may be
/// possible in another place.
pub fn tell(report: RawFd, pid: i32, error: &anyhow::Error, ids: bool) {
    let refusals: &[Refusal] = match error.downcast_ref() {
        Some(Failure::Refused(refusals)) => refusals,
        _ => &[],
    };
    let words = wire::encode(&(refusals, format!("{error:#}"), ids)).unwrap_or_default();
    let header = Report { step: IN_WORDS, index: words.len() as u64, pid: pid as u64, ..Report::default() };
    // SAFETY: numbers without padding.
    let mut bytes = unsafe { std::mem::transmute::<Report, [u8; size_of::<Report>()]>(header) }.to_vec();
    bytes.extend(words);
    // SAFETY: the pipe's number is not closed here.
    let _ = ManuallyDrop::new(unsafe { File::from_raw_fd(report) }).write_all(&bytes);
}

/// Reads on in what is told. `None`: nobody is left to tell anything, and all went well.
///
/// # Errors
/// What was told, once it is known in full.
pub fn read(
    report: &mut File,
    told: &mut Vec<u8>,
    computation: &Computation,
) -> Result<Option<()>, Unspawned> {
    let mut bytes = [0; 4096];
    let count = report.read(&mut bytes)?;
    told.extend(&bytes[..count]);
    if told.is_empty() {
        return Ok((count > 0).then_some(()));
    }
    let (words, rest) = match told.split_at_checked(size_of::<Report>()) {
        Some((header, rest)) => {
            // SAFETY: numbers, any bits are valid.
            let header: Report = unsafe { std::ptr::read_unaligned(header.as_ptr().cast()) };
            if header.step != IN_WORDS {
                return Err(of_restorer(&header, computation));
            }
            (header, rest)
        }
        None if count == 0 => return Err(anyhow!("the restorer ended without saying why").into()),
        None => return Ok(Some(())),
    };
    match rest.get(..words.index as usize) {
        Some(rest) => Err(in_words(words.pid as i32, rest, computation)),
        None if count == 0 => Err(anyhow!("a process ended without saying why").into()),
        None => Ok(Some(())),
    }
}

fn of_restorer(failure: &Report, computation: &Computation) -> Unspawned {
    let own = computation.processes.iter().find(|saved| saved.image.ids.pid as u64 == failure.pid);
    let Some(saved) = own.or(computation.processes.first()) else {
        return anyhow!("nothing was restarted").into();
    };
    let message = with_pid(failure.pid as i32, explain(failure, &saved.image, &saved.pages), computation);
    // It is in use, or the tracer does not answer any more.
    const NOT_HAD: [i32; 5] = [libc::EEXIST, libc::EPIPE, libc::ECONNRESET, libc::ETIMEDOUT, libc::EPROTO];
    if failure.step == step::THREAD && NOT_HAD.iter().any(|&errno| failure.errno == errno as u64) {
        return Unspawned::Ids(message);
    }
    if failure.step == step::CORRUPT || failure.step == step::FILL {
        return anyhow!(Failure::Store { directory: saved.pages.directory.clone(), message }).into();
    }
    anyhow!(message).into()
}

/// Where there are several, it is told which.
fn with_pid(pid: i32, message: String, computation: &Computation) -> String {
    if computation.processes.len() > 1 && pid > 0 { format!("pid {pid}: {message}") } else { message }
}

fn in_words(pid: i32, bytes: &[u8], computation: &Computation) -> Unspawned {
    match wire::decode::<(Vec<Refusal>, String, bool)>(bytes) {
        Ok((_, message, true)) => Unspawned::Ids(message),
        Ok((refusals, ..)) if !refusals.is_empty() => Failure::Refused(refusals).into(),
        Ok((_, message, _)) => anyhow!(with_pid(pid, message, computation)).into(),
        Err(error) => anyhow!("the program could not be restarted, and why cannot be read: {error}").into(),
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
        // Of the last calls, locks only can be had by somebody else.
        step::LAST_CALL if address == libc::SYS_fcntl as u64 && failure.errno == libc::EAGAIN as u64 => {
            "somebody else has just taken a record lock that the program had: end that process (lslocks tells which)".into()
        }
        step::CALL | step::LAST_CALL | step::THREAD_CALL => {
            format!("system call {address} (step {}, number {}) failed: {errno}", failure.step, failure.index)
        }
        _ => "the restorer does not understand its plan: `stasis` and `stasis-restorer` are of different builds".into(),
    }
}
