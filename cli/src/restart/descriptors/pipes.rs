//! Pipes and FIFOs, with the bytes that were in them.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, Fifo, ProcessImage},
};

use super::{
    Maker, check, failed,
    kernel::{self, O_LARGEFILE, done},
    refuse,
};
use crate::args::MissingFile;

/// Both ends of a pipe in the making. An end that no description takes is closed when all are made.
pub struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    taken: [bool; 2],
}

const F_SETPIPE_SZ: i32 = 1031;

/// The end that a description is of; `None` where its FIFO is gone and the policy is to go without.
pub fn open(
    maker: &mut Maker<'_>,
    index: usize,
    description: &Description,
) -> Result<Option<OwnedFd>, Refusal> {
    let DescriptionKind::Pipe { pipe, capacity, fifo, unopened, .. } = &description.kind else {
        return Ok(None);
    };
    let image = maker.image;
    let missing = || match maker.common.policy.missing {
        MissingFile::Refuse => Err(refuse(image, index, "it is gone", check::PUT_IT_BACK)),
        MissingFile::Skip => Ok(None),
        MissingFile::Null => kernel::open("/dev/null", libc::O_RDWR)
            .map(Some)
            .map_err(|error| failed(image, index, "/dev/null cannot be opened", &error)),
    };
    if let (true, Some(fifo)) = (*unopened, fifo) {
        // A writer, were it for a moment, would have the program find an end.
        let opened = named(fifo, |path| kernel::open(path, libc::O_RDONLY | libc::O_NONBLOCK));
        return match opened {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing(),
            Err(error) => Err(failed(image, index, "it cannot be opened", &error)),
        };
    }
    if !maker.pipes.contains_key(pipe) {
        let mut ends = match make(fifo.as_ref(), *capacity) {
            Ok(ends) => ends,
            Err(error) if error.kind() == io::ErrorKind::NotFound && fifo.is_some() => return missing(),
            Err(error) => return Err(failed(image, index, "it cannot be made again", &error)),
        };
        fill(&ends, &maker.common.images, *pipe)
            .map_err(|error| failed(image, index, "its content cannot be put back", &error))?;
        for end in [&mut ends.read, &mut ends.write] {
            kernel::set_status_flags(end, 0)
                .map_err(|error| failed(image, index, "its flags cannot be set", &error))?;
        }
        maker.pipes.insert(*pipe, ends);
    }
    let Some(ends) = maker.pipes.get_mut(pipe) else { return Ok(None) };
    take(ends, description.flags as i32)
        .map(Some)
        .map_err(|error| failed(image, index, "it cannot be opened", &error))
}

/// Makes a pipe, or opens both ends of a FIFO; neither end blocks.
fn make(fifo: Option<&Fifo>, capacity: u32) -> io::Result<Ends> {
    let (read, write) = match fifo {
        None => {
            let mut ends = [0; 2];
            // SAFETY: writes two ints.
            done(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
            // SAFETY: pipe2 gave both to us.
            unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) }
        }
        // In this order: a FIFO cannot be opened for writing while nobody reads it (fifo(7)).
        Some(fifo) => named(fifo, |path| {
            Ok((
                kernel::open(path, libc::O_RDONLY | libc::O_NONBLOCK)?,
                kernel::open(path, libc::O_WRONLY | libc::O_NONBLOCK)?,
            ))
        })?,
    };
    kernel::fcntl(&write, F_SETPIPE_SZ, capacity as i32)?;
    Ok(Ends { read, write, taken: [false; 2] })
}

/// Opens a FIFO by its name; one that was deleted is made again, and has a name for as long as that takes.
fn named<T>(fifo: &Fifo, open: impl FnOnce(&str) -> io::Result<T>) -> io::Result<T> {
    if !fifo.deleted {
        return open(&fifo.path);
    }
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
    open(&path.to_string_lossy())
}

/// Writes what was in the pipe, packet by packet where it held packets (pipe2(2), O_DIRECT).
/// Several processes that had its end have it in their images.
fn fill(ends: &Ends, images: &[&ProcessImage], this: u64) -> io::Result<()> {
    let descriptions = || images.iter().flat_map(|image| &image.descriptions);
    let found = descriptions().find_map(|description| match &description.kind {
        DescriptionKind::Pipe { pipe, content, packets, .. } if *pipe == this && !content.is_empty() => {
            Some((content, packets.as_slice()))
        }
        _ => None,
    });
    let Some((content, mut packets)) = found else { return Ok(()) };
    // One packet of one byte looks like a byte to who reads it; whoever wrote it knows.
    let whole = [1];
    let writes_packets = |description: &Description| {
        description.flags as i32 & libc::O_DIRECT != 0
            && matches!(&description.kind, DescriptionKind::Pipe { pipe, write: true, .. } if *pipe == this)
    };
    if packets.is_empty() && content.len() == 1 && descriptions().any(writes_packets) {
        packets = &whole;
    }
    if packets.is_empty() {
        return kernel::write_all(&ends.write, content);
    }
    kernel::set_status_flags(&ends.write, libc::O_NONBLOCK | libc::O_DIRECT)?;
    let mut rest = content.as_slice();
    for &len in packets {
        let Some((packet, behind)) = rest.split_at_checked(len as usize) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        kernel::write_all(&ends.write, packet)?;
        rest = behind;
    }
    Ok(())
}

/// One end: the pipe's own, or where that is taken or was opened by path, another description of it.
fn take(ends: &mut Ends, flags: i32) -> io::Result<OwnedFd> {
    let access = flags & libc::O_ACCMODE;
    let write = usize::from(access == libc::O_WRONLY);
    let end = if write == 1 { &ends.write } else { &ends.read };
    let own = access != libc::O_RDWR && flags & O_LARGEFILE == 0 && !ends.taken[write];
    if own {
        ends.taken[write] = true;
        return end.try_clone();
    }
    // Never blocks: this process has both ends open.
    kernel::reopen(end, access | flags & kernel::SETTABLE)
}
