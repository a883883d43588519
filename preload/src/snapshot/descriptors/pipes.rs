//! Pipes and FIFOs with their bytes, whoever has their other ends.

use alloc::{collections::BTreeSet, format, vec, vec::Vec};

use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    image::{Description, DescriptionKind, Fifo},
};
use stasis_sys::{file, sync};

use super::{Duplicate, Open, Table, refusal};

const F_GETPIPE_SZ: i32 = 1032;
const F_SETPIPE_SZ: i32 = 1031;
const SPLICE_F_NONBLOCK: u32 = 2;

pub fn capture(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let is_this = |other: &&Open| {
        other.stat.st_ino == open.stat.st_ino
            && other.stat.st_dev == open.stat.st_dev
            && other.flags as i32 & libc::O_PATH == 0
    };
    let here = |mode| {
        table
            .opens
            .iter()
            .filter(is_this)
            .any(|other| other.access() == mode || other.access() == libc::O_RDWR)
    };
    let duplicate = table.duplicate(open)?;
    let both_are_here = here(libc::O_RDONLY) && here(libc::O_WRONLY);
    let other_closed = !both_are_here && other_end_is_closed(open, &duplicate)?;
    let fifo = open.link.starts_with('/').then(|| fifo(open));
    // A thread of the program's may sleep in splice(2) with the pipe's lock, which all but poll(2) wait for: not when it stands
    // still. Somebody outside may as well, and is waited for while the program runs.
    let may_ask = table.stopped() || !both_are_here;
    let unopened = fifo.is_some()
        && open.access() == libc::O_RDONLY
        && !both_are_here
        && !other_closed
        && nobody_writes(open, &duplicate)?;
    let (mut capacity, mut content, mut packets) = (0, Vec::new(), Vec::new());
    if may_ask {
        capacity = file::fcntl(duplicate.0, F_GETPIPE_SZ, 0)
            .map_err(|error| open.failed("its capacity cannot be asked", error))?;
        if table.stopped() && open.access() != libc::O_WRONLY {
            (content, packets) = self::content(open, &duplicate, capacity)?;
        }
    }
    Ok(DescriptionKind::Pipe {
        pipe: open.stat.st_ino ^ open.stat.st_dev.rotate_left(32),
        write: open.access() != libc::O_RDONLY,
        other_closed: other_closed || unopened,
        unopened,
        capacity: capacity as u32,
        content,
        packets,
        fifo,
    })
}

fn fifo(open: &Open) -> Fifo {
    let deleted = open.stat.st_nlink == 0;
    let path = if deleted { open.link.trim_end_matches(" (deleted)") } else { &open.link };
    Fifo { path: path.into(), deleted }
}

/// Whether nobody has the other end (pipe_poll in fs/pipe.c: POLLHUP without writers, POLLERR without
/// readers).
fn other_end_is_closed(open: &Open, duplicate: &Duplicate) -> Result<bool, Refusal> {
    let ready = sync::poll(duplicate.0, 0, 0).map_err(|error| open.failed("it cannot be polled", error))?;
    Ok(match open.access() {
        libc::O_RDONLY => ready & libc::POLLHUP != 0,
        libc::O_WRONLY => ready & libc::POLLERR != 0,
        _ => true,
    })
}

/// Whether a FIFO is open for reading only: poll(2) tells of writers that have gone, not that there was never one. For
/// tee(2) an empty pipe without writers ends at once.
fn nobody_writes(open: &Open, duplicate: &Duplicate) -> Result<bool, Refusal> {
    let (out, into) = file::pipe(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .map_err(|error| open.failed("no pipe can be made to look at it", error))?;
    let (_out, into) = (Duplicate(out), Duplicate(into));
    Ok(file::tee(duplicate.0, into.0, 1, SPLICE_F_NONBLOCK) == Ok(0))
}

/// What sits in the pipe, copied by tee(2) into a pipe of our own; and the lengths of its packets, if it holds
/// packets (pipe2(2), O_DIRECT).
fn content(open: &Open, pipe: &Duplicate, capacity: usize) -> Result<(Vec<u8>, Vec<u32>), Refusal> {
    let len = file::unread(pipe.0).map_err(|error| open.failed("its length cannot be asked", error))?;
    if len == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let (out, into) = file::pipe(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .map_err(|error| open.failed("no pipe can be made for a copy", error))?;
    let (out, into) = (Duplicate(out), Duplicate(into));
    // tee(2) copies slots, of which ours must have as many. EPERM above pipe-max-size for the unprivileged: then
    // the copy may come out short, which is seen below.
    let _ = file::fcntl(into.0, F_SETPIPE_SZ, capacity);
    let copied = file::tee(pipe.0, into.0, len, SPLICE_F_NONBLOCK)
        .map_err(|error| open.failed("what is in it cannot be copied", error))?;
    let mut content = vec![0; copied];
    let (mut filled, mut reads) = (0, Vec::new());
    // A read ends with its packet, and goes on over what is no packet.
    while filled < copied {
        match file::read(out.0, &mut content[filled..]) {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                filled += n;
                reads.push(n as u32);
            }
        }
    }
    if filled != len {
        return Err(refusal(
            open.fd,
            &open.link,
            format!("only {filled} of the {len} bytes in it could be copied"),
            "raise /proc/sys/fs/pipe-user-pages-soft",
        ));
    }
    let is_packet = || {
        // Of a packet, what is not read at once is gone (pipe2(2)); bytes remain. No packet is longer than a page.
        (2..=PAGE_SIZE).contains(&len)
            && file::tee(pipe.0, into.0, len, SPLICE_F_NONBLOCK) == Ok(len)
            && file::read(out.0, &mut [0]) == Ok(1)
            && file::unread(out.0) == Ok(0)
    };
    let packets = if reads.len() > 1 || is_packet() { reads } else { Vec::new() };
    Ok((content, packets))
}

/// Leaves the content with the first description of each pipe that has it: a pipe may be open several times.
pub fn keep_first_content(descriptions: &mut [Description]) {
    let mut seen = BTreeSet::new();
    for description in descriptions {
        if let DescriptionKind::Pipe { pipe, content, packets, .. } = &mut description.kind
            && !content.is_empty()
            && !seen.insert(*pipe)
        {
            content.clear();
            packets.clear();
        }
    }
}
