//! Ending a server, and waiting until it has ended.

use std::{
    io,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use super::{Client, ClientError};
use crate::{
    location::{announced_socket, socket_path},
    transport::{self, TransportError},
};

impl Client {
    /// Ends the server of the store in `directory` and waits for that; returns its pid, if there was one. One of
    /// another version, which cannot be asked, gets SIGTERM: what it is writing is lost, what is committed is not.
    ///
    /// # Errors
    /// It cannot be ended.
    pub fn stop(directory: &Path) -> Result<Option<u32>, ClientError> {
        let (pid, server) = match Self::connect(directory) {
            Ok(mut client) => {
                let server = watch(client.server_pid);
                client.shutdown()?;
                (client.server_pid, server)
            }
            Err(ClientError::NotRunning(_)) => return Ok(None),
            Err(ClientError::Refused(why)) => {
                let pid = stranger(directory).ok_or(ClientError::Refused(why))?;
                let server = watch(pid);
                kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM)
                    .map_err(io::Error::from)
                    .map_err(lost)?;
                (pid, server)
            }
            Err(other) => return Err(other),
        };
        if let Ok(server) = server {
            let mut events = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
            while let Err(nix::Error::EINTR) = poll(&mut events, PollTimeout::NONE) {}
        }
        Ok(Some(pid))
    }
}

fn lost(error: io::Error) -> ClientError {
    ClientError::Lost(TransportError::Io(error))
}

/// The pid of a server that we do not understand, as the kernel knows who listens, if it is this user's.
fn stranger(directory: &Path) -> Option<u32> {
    let sockets = announced_socket(directory).into_iter().chain(socket_path(directory).ok());
    let stream = sockets.into_iter().find_map(|socket| UnixStream::connect(socket).ok())?;
    let peer = transport::peer(&stream).ok()?;
    let ours = peer.uid() == geteuid().as_raw() || geteuid().is_root();
    u32::try_from(peer.pid()).ok().filter(|pid| ours && *pid > 0)
}

/// A descriptor that is readable when the process has ended (pidfd_open(2)).
fn watch(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
