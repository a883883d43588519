//! pidfds: made by the process that has one, when all processes are there.

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
    ptr,
};

use stasis_protocol::image::DescriptionKind;

use super::{Installed, kernel::owned};
use crate::restart::plan::call;

/// One of a process with this id, or of one that has ended and was waited for (-1). A thread's stands for the leader until
/// the threads are there ([`late`]).
///
/// # Errors
/// pidfd_open(2)'s.
pub fn make(id: i32, thread: bool) -> io::Result<OwnedFd> {
    match id {
        -1 => of_nobody(),
        _ if thread => open(std::process::id() as i32),
        _ => open(id),
    }
}

fn open(id: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) } as RawFd)
}

/// A pidfd of a child that ends at once. It tells nobody of its end: this process has the program's pending signals soon.
fn of_nobody() -> io::Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    // SAFETY: plain numbers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64;
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    // SAFETY: the child, a copy of a process with one thread, does nothing but end.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    if child == 0 {
        // SAFETY: takes a number.
        unsafe { libc::_exit(0) };
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let pidfd = owned(pidfd)?;
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(child as i32, ptr::null_mut(), libc::__WALL) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    Ok(pidfd)
}

/// Puts a thread's pidfd in the place of the leader's.
pub fn late(kind: &DescriptionKind, flags: i32, fds: &[RawFd], installed: &mut Installed) {
    let &DescriptionKind::Process { id, thread: true } = kind else { return };
    let Some((&first, others)) = fds.split_first() else { return };
    let flags = libc::O_EXCL | flags & libc::O_NONBLOCK;
    let mut open = call(libc::SYS_pidfd_open, &[id as u64, flags as u64]);
    open.onto = first as u32 + 1;
    installed.late.push(open);
    installed.late.extend(others.iter().map(|&fd| call(libc::SYS_dup2, &[first as u64, fd as u64])));
}
