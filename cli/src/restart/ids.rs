//! Who gives the ids that must be had: the kernel (clone3(2), `set_tid`) where this user may ask for them, else the tracer,
//! for processes of the initial pid namespace (`turns.rs` says how).
//!
//! It is one or the other for the whole process, and for what it makes: ids are asked for in many places.

#[allow(dead_code, reason = "the restorer's file")]
#[path = "../../../preload/restorer/src/turns.rs"]
mod turns;

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{errno::Errno, sys::wait::waitpid, unistd::Pid};
use stasis_protocol::tracer::Request;
use turns::Turns;

use super::namespace::{clone_with, clone3, exit};
use crate::{address::Address, tracer};

/// The connection to the tracer, and the file whose lock is held by who has a turn.
struct Giver {
    connection: OwnedFd,
    file: OwnedFd,
}

/// `None`: the kernel.
static GIVER: Mutex<Option<Giver>> = Mutex::new(None);

fn giver() -> MutexGuard<'static, Option<Giver>> {
    GIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn turns() -> Option<Turns> {
    giver().as_ref().map(Giver::turns)
}

impl Giver {
    fn turns(&self) -> Turns {
        Turns { socket: self.connection.as_raw_fd(), file: self.file.as_raw_fd() }
    }
}

/// Has the tracer give ids until [`forget_tracer`]. This process becomes part of the computation at `address` for that.
///
/// # Errors
/// Why it does not, in words.
pub fn ask_tracer(address: &Address) -> Result<(), String> {
    let tracer = tracer::of_ids(address).map_err(|error| format!("the tracer gives none: {error:#}"))?;
    let file = stasis_sys::file::memfd(c"stasis-turns", libc::MFD_CLOEXEC)
        .map_err(|error| format!("no memory for turns: {}", io::Error::from_raw_os_error(error.0)))?;
    // SAFETY: memfd_create(2) gives a descriptor that nobody else has.
    let file = unsafe { OwnedFd::from_raw_fd(file) };
    *giver() = Some(Giver { connection: tracer.into(), file });
    Ok(())
}

/// From here on it is the kernel.
pub fn forget_tracer() {
    drop(giver().take());
}

/// Whether it is the tracer.
pub fn are_the_tracer_s() -> bool {
    giver().is_some()
}

/// Descriptors for the restorer: the connection and the file.
///
/// # Errors
/// dup(2)'s.
pub fn for_restorer() -> io::Result<Option<[OwnedFd; 2]>> {
    let giver = giver();
    let Some(giver) = giver.as_ref() else { return Ok(None) };
    Ok(Some([giver.connection.try_clone()?, giver.file.try_clone()?]))
}

/// fork(2) with this id, sharing what the flags say.
///
/// # Errors
/// EEXIST where it is in use, EPERM where nobody gives it; those of clone3(2).
pub fn make(flags: u64, id: i32) -> io::Result<i32> {
    let Some(turns) = turns() else { return clone3(flags, Some(id)) };
    let fork = || {
        let made = clone_with(flags | libc::SIGCHLD as u64)
            .map_err(|error| stasis_sys::Errno(error.raw_os_error().unwrap_or(libc::EIO)));
        if made == Ok(0) && process::id() != id as u32 {
            exit()
        }
        made
    };
    let ended = |child| while waitpid(Pid::from_raw(child), None) == Err(Errno::EINTR) {};
    turns.take(id, fork, ended).map_err(|error| io::Error::from_raw_os_error(error.0))
}

/// fork(2) with an id that the kernel chooses.
///
/// # Errors
/// clone3(2)'s.
pub fn make_any() -> io::Result<i32> {
    let make = || clone3(0, None);
    turns().map_or_else(make, |turns| turns.without_id(make))
}

/// Has the kernel choose ids after this one, where it would choose lower ones.
pub fn go_on_after(id: i32) {
    if let Some(turns) = turns() {
        let _ = turns.ask(&Request::GoOn { after: id.max(0) as u32 });
    }
}
