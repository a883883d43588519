//! Ids for whoever may not ask the kernel for them (clone3(2), `set_tid`): the tracer has the kernel choose this one next
//! (/proc/sys/kernel/ns_last_pid), and what is made then looks whether it has it. Somebody else may have been faster, so
//! that is done again.
//!
//! All processes of a restart speak by one connection, each in its turn: who has the lock of a file that all have, which
//! is a process' own (fcntl(2)) and free when it has ended. Whatever else a restart makes meanwhile is made in a turn, too,
//! or it would take the ids of others.
//!
//! `stasis restart` has this file as well. It calls nobody but the kernel, and allocates nothing.

use stasis_protocol::tracer::{self, Request};
use stasis_sys::{
    Errno, Result,
    file::{self, Fd},
    process, socket, sync,
};

/// How long it is tried to get one id, in nanoseconds: others have those that they were faster to get for a moment only,
/// or for long.
const PATIENCE: u64 = 1_000_000_000;

/// Where turns are taken.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// The connection to the tracer, for which whoever opened it is registered.
    pub socket: Fd,
    /// Whose lock who has a turn holds.
    pub file: Fd,
}

impl Turns {
    /// Makes a process or thread with this id. `make` gives the kernel's answer, and is called again where another id came of
    /// it, once `ended` has seen to the end of what has that. In a child that `make` gives 0 for, this returns 0 at once; the
    /// child must look whether it has the id, and end if not.
    ///
    /// # Errors
    /// EEXIST when the id cannot be had; those of `make`, or of the connection to the tracer.
    pub fn take(
        &self,
        id: i32,
        mut make: impl FnMut() -> Result<i32>,
        mut ended: impl FnMut(i32),
    ) -> Result<i32> {
        let begun = sync::monotonic_ns();
        loop {
            self.lock(libc::F_WRLCK)?;
            let granted = self.ask(&Request::NextPid { pid: id as u32 });
            let made = if granted == Ok(true) { make() } else { Err(Errno(libc::EEXIST)) };
            if made == Ok(0) {
                return made;
            }
            let gone_on = if granted == Ok(true) { self.ask(&Request::GoOn { after: 0 }) } else { Ok(true) };
            self.lock(libc::F_UNLCK)?;
            match made {
                Ok(other) if other != id => ended(other),
                Err(Errno(libc::EEXIST)) => {}
                made => return made,
            }
            granted.and(gone_on)?;
            if sync::monotonic_ns() - begun > PATIENCE {
                return Err(Errno(libc::EEXIST));
            }
            await_free(id);
        }
    }

    /// Makes something with an id that the kernel chooses, while nobody else has a turn.
    pub fn without_id<T>(&self, make: impl FnOnce() -> T) -> T {
        // Without the lock it may take somebody's id, who then asks again.
        let _ = self.lock(libc::F_WRLCK);
        let made = make();
        let _ = self.lock(libc::F_UNLCK);
        made
    }

    /// Asks the tracer; whether it has done it.
    ///
    /// # Errors
    /// Those of its connection, ETIMEDOUT among them.
    pub fn ask(&self, request: &Request) -> Result<bool> {
        let (mut buffer, mut header) = ([0; 1024], [0; 4]);
        let frame = tracer::frame_in(request, &mut buffer).ok_or(Errno(libc::EMSGSIZE))?;
        socket::send_all(self.socket, frame, None)?;
        // The connection's reads have a time limit.
        let late = |Errno(errno)| Errno(if errno == libc::EAGAIN { libc::ETIMEDOUT } else { errno });
        socket::read_exact(self.socket, &mut header).map_err(late)?;
        let payload = buffer.get_mut(..u32::from_le_bytes(header) as usize).ok_or(Errno(libc::EPROTO))?;
        socket::read_exact(self.socket, payload).map_err(late)?;
        Ok(tracer::is_done(payload))
    }

    fn lock(&self, kind: i32) -> Result<()> {
        // SAFETY: struct flock is numbers; zeros are the whole of the file.
        let mut lock: libc::flock = unsafe { core::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        loop {
            // SAFETY: what the command takes.
            match unsafe { file::fcntl_with(self.file, libc::F_SETLKW, &mut lock) } {
                Ok(_) => return Ok(()),
                Err(Errno(libc::EINTR)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits a moment for the end of who has an id; a process has it until it is waited for, which no descriptor tells.
fn await_free(id: i32) {
    if let Ok(pidfd) = process::pidfd_open(id, 0) {
        let _ = sync::poll(pidfd, libc::POLLIN, 10);
        let _ = file::close(pidfd);
    }
    let _ = sync::poll(-1, 0, 1);
}
