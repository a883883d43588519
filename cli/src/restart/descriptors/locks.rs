//! Locks on files: flock(2), and record locks of the process and of the description (fcntl(2)).

use std::{io, os::fd::RawFd};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, ProcessImage},
};

use super::{Installed, kernel::done, refuse};
use crate::restart::plan::{call, pointing};

/// Takes the locks of a description, without waiting.
///
/// # Errors
/// Names the file when somebody else holds a lock on it.
pub fn take(image: &ProcessImage, index: usize, description: &Description, fd: RawFd) -> Result<(), Refusal> {
    if let Some(operation) = description.flock {
        // SAFETY: no memory is touched.
        done(unsafe { libc::flock(fd, operation | libc::LOCK_NB) })
            .map_err(|error| refused(image, index, "flock", &error))?;
    }
    for &lock in &description.ofd_locks {
        record(fd, libc::F_OFD_SETLK, lock)
            .map_err(|error| refused(image, index, "lock (F_OFD_SETLK)", &error))?;
    }
    Ok(())
}

/// Takes the record locks that the process has by a description, without waiting. They last across exec, but not
/// across any close of the file, such as that of a number that it is mapped by: the process takes them once more.
///
/// # Errors
/// Names the file when somebody else holds a lock on it.
pub fn take_records(
    image: &ProcessImage,
    index: usize,
    description: &Description,
    fd: RawFd,
    installed: &mut Installed,
) -> Result<(), Refusal> {
    let (DescriptionKind::Regular { locks, .. } | DescriptionKind::Object { locks, .. }) = &description.kind
    else {
        return Ok(());
    };
    for &lock in locks {
        record(fd, libc::F_SETLK, lock).map_err(|error| refused(image, index, "lock (F_SETLK)", &error))?;
        let lock = flock(lock).map_err(|error| refused(image, index, "lock (F_SETLK)", &error))?;
        // SAFETY: numbers; the padding of a struct that was zeroed.
        let bytes: [u8; size_of::<libc::flock>()] = unsafe { std::mem::transmute(lock) };
        let offset = installed.keep(&bytes);
        let arguments = [fd as u64, libc::F_SETLK as u64, offset];
        installed.locks.push(pointing(call(libc::SYS_fcntl, &arguments), 2, offset));
    }
    Ok(())
}

fn refused(image: &ProcessImage, index: usize, kind: &str, error: &io::Error) -> Refusal {
    let reason = match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => format!("somebody else holds the {kind} that the program had"),
        _ => format!("its {kind} cannot be taken: {error}"),
    };
    refuse(image, index, reason, "end the process that has it (lslocks tells which)")
}

fn flock((kind, start, len): (i32, u64, u64)) -> io::Result<libc::flock> {
    // SAFETY: struct flock is plain data; F_OFD_SETLK wants l_pid to be 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    let bounds = i64::try_from(start).and_then(|start| i64::try_from(len).map(|len| (start, len)));
    (lock.l_start, lock.l_len) = bounds.map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    Ok(lock)
}

fn record(fd: RawFd, command: i32, lock: (i32, u64, u64)) -> io::Result<()> {
    let lock = flock(lock)?;
    // SAFETY: reads one struct flock.
    done(unsafe { libc::fcntl(fd, command, &raw const lock) }).map(drop)
}
