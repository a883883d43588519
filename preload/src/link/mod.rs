//! The checkpoint thread's two connections.

pub mod coordinator;
pub mod store;

use alloc::{string::String, vec::Vec};

use serde::{Serialize, de::DeserializeOwned};
use stasis_protocol::wire;
use stasis_sys::{
    Errno,
    file::{self, Fd},
    socket,
};

/// Sends one message, with a descriptor beside it if one is given.
fn send<T: Serialize>(socket: Fd, message: &T, beside: Option<Fd>) -> Result<(), Errno> {
    let bytes = wire::frame(message).map_err(|_| Errno(libc::EMSGSIZE))?;
    socket::send_all(socket, &bytes, beside)
}

/// Receives one message; EPROTO when what came is none.
fn receive<T: DeserializeOwned>(socket: Fd) -> Result<T, Errno> {
    let mut header = [0u8; wire::HEADER];
    socket::read_exact(socket, &mut header)?;
    receive_rest(socket, header)
}

/// The same, with the descriptor beside it if there is one.
fn receive_beside<T: DeserializeOwned>(socket: Fd) -> Result<(T, Option<Fd>), Errno> {
    let mut header = [0u8; wire::HEADER];
    let beside = socket::read_exact_beside(socket, &mut header)?;
    match receive_rest(socket, header) {
        Ok(message) => Ok((message, beside)),
        Err(error) => {
            beside.map(file::close);
            Err(error)
        }
    }
}

fn receive_rest<T: DeserializeOwned>(socket: Fd, header: [u8; wire::HEADER]) -> Result<T, Errno> {
    let len = wire::payload_len(header).map_err(|_| Errno(libc::EPROTO))?;
    let mut payload: Vec<u8> = alloc::vec![0; len];
    socket::read_exact(socket, &mut payload)?;
    wire::decode(&payload).map_err(|_| Errno(libc::EPROTO))
}

/// A path as text, for messages.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
