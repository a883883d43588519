//! The socket a coordinator listens on: who may have it, and how it is given up.
//!
//! Two starters, a starter and a coordinator that is about to end, a socket file left by a crash: a lock
//! file beside the socket orders them, and is held only while the socket file changes.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::address::Address;

pub struct Socket {
    address: Address,
    /// Does not block.
    listener: UnixListener,
}

impl Socket {
    /// Listens at `address`; `None` when another coordinator does.
    ///
    /// # Errors
    /// When the socket or its lock cannot be made, or the path is something else's.
    pub fn claim(address: &Address) -> anyhow::Result<Option<Self>> {
        let _lock = lock(address)?;
        let path = address.path();
        match UnixStream::connect(path) {
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Nobody listens: left by a coordinator that was killed. Never remove what is no socket.
                if !fs::symlink_metadata(path)?.file_type().is_socket() {
                    bail!("{} is not a socket: name another one with --coord unix:PATH", path.display());
                }
                fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {address}")),
        }
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(Some(Self { address: address.clone(), listener }))
    }

    /// The listener, for the runtime.
    ///
    /// # Errors
    /// When it cannot be duplicated or watched.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }

    /// Gives the socket up, unless somebody has connected: then that connection, which would otherwise
    /// be lost, and the socket goes on.
    ///
    /// # Errors
    /// When the lock cannot be taken; the socket goes on.
    pub fn release_if_unused(&self) -> anyhow::Result<Option<tokio::net::UnixStream>> {
        let _lock = lock(&self.address)?;
        let path = self.address.path();
        let aside = self.aside();
        // From here on connect(2) finds nothing, so the queue of connections is complete.
        if fs::rename(path, &aside).is_err() {
            return Ok(None);
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                fs::rename(&aside, path)?;
                stream.set_nonblocking(true)?;
                Ok(Some(tokio::net::UnixStream::from_std(stream)?))
            }
            Err(_) => {
                fs::remove_file(&aside)?;
                Ok(None)
            }
        }
    }

    /// Gives the socket up.
    pub fn release(&self) {
        if let Ok(_lock) = lock(&self.address) {
            // Gone already when the directory was cleaned up.
            let _ = fs::remove_file(self.address.path());
        }
    }

    fn aside(&self) -> PathBuf {
        self.address.beside(".ending")
    }
}

/// The lock beside the socket. Its file is there only while somebody has it.
struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

/// Waits for the lock.
fn lock(address: &Address) -> anyhow::Result<Lock> {
    let path = address.beside(".lock");
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let file = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        // Who had it has removed it.
        let held = file.metadata()?;
        if fs::metadata(&path).is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            return Ok(Lock { path, _file: file });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
