//! What a service manager is told (sd_notify(3)) and gives (sd_listen_fds(3)): the protocols are a few lines each.

use std::{
    env,
    os::{
        fd::{FromRawFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram, UnixListener},
        },
    },
};

/// The first descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// The manager's socket, where there is one; connected before anything is dropped.
pub struct Manager(Option<UnixDatagram>);

impl Manager {
    pub fn connect() -> Self {
        Self(env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let socket = UnixDatagram::unbound().ok()?;
            let address = match path.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                _ => SocketAddr::from_pathname(&path),
            };
            socket.connect_addr(&address.ok()?).ok()?;
            Some(socket)
        }))
    }

    pub fn tell(&self, state: &str) {
        if let Some(socket) = &self.0 {
            // A manager that does not listen loses nothing but this.
            let _ = socket.send(state.as_bytes());
        }
    }
}

/// The listening socket that was made for this process before it was started.
pub fn passed_listener() -> Option<UnixListener> {
    let for_us = env::var("LISTEN_PID").ok()?.parse() == Ok(std::process::id());
    let count = env::var("LISTEN_FDS").ok()?.parse::<u32>().ok()?;
    if !for_us || count == 0 {
        return None;
    }
    // SAFETY: by the protocol descriptor 3 is open and this process' own; nothing else has taken it, since this is called once,
    // before anything is opened.
    Some(unsafe { UnixListener::from_raw_fd(FIRST) })
}
