//! Messages over a unix stream socket, with file descriptors beside them (SCM_RIGHTS, unix(7)).
//!
//! One message is one `sendmsg`; descriptors travel with its first byte and are received together
//! with the header. A peer can neither make this side allocate more than it sends nor leave it
//! descriptors that it did not expect.
//!
//! Not here: what the messages mean.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg, sendmsg, sockopt,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use stasis_protocol::wire;

/// The most descriptors that the kernel lets one message carry (SCM_MAX_FD, unix(7)). There is room for
/// all of them: with less, the kernel would still install some and not say which.
const MAX_DESCRIPTORS: usize = 253;

/// The most descriptors of one message that are kept; the rest is closed.
const KEPT_DESCRIPTORS: usize = 4;

/// How much of a payload is allocated before its bytes have come.
const READ_STEP: usize = 1 << 20;

/// Why a message could not be received or sent.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the connection was closed in the middle of a message")]
    Truncated,
    #[error("{0}")]
    Wire(wire::WireError),
}

/// Sends one message with `descriptors` beside it.
///
/// # Errors
/// The value is too long to send, or the connection failed (with the given `flags`, e.g.
/// MSG_DONTWAIT, also: there is no room).
pub fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> Result<(), TransportError> {
    let bytes = wire::frame(message).map_err(TransportError::Wire)?;
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let mut sent = 0;
    while sent < bytes.len() {
        let control: &[ControlMessage<'_>] = if sent == 0 && !raw.is_empty() { &rights } else { &[] };
        let rest = [IoSlice::new(&bytes[sent..])];
        match sendmsg::<()>(stream.as_raw_fd(), &rest, control, flags | MsgFlags::MSG_NOSIGNAL, None) {
            Ok(count) => sent += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    Ok(())
}

/// Receives one message and the descriptors beside it; `None` when the peer has closed.
///
/// # Errors
/// The connection failed or ended within a message, or the bytes are not a message of this type.
pub fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
) -> Result<Option<(T, Vec<OwnedFd>)>, TransportError> {
    let mut header = [0; wire::HEADER];
    let mut descriptors = Vec::new();
    let mut got = 0;
    while got < header.len() {
        match receive_some(stream, &mut header[got..], &mut descriptors)? {
            0 if got == 0 => return Ok(None),
            0 => return Err(TransportError::Truncated),
            count => got += count,
        }
    }
    let len = wire::payload_len(header).map_err(TransportError::Wire)?;
    let mut payload = Vec::new();
    while payload.len() < len {
        let start = payload.len();
        payload.resize(len.min(start + READ_STEP), 0);
        let mut filled = start;
        while filled < payload.len() {
            match receive_some(stream, &mut payload[filled..], &mut descriptors)? {
                0 => return Err(TransportError::Truncated),
                count => filled += count,
            }
        }
    }
    let message = wire::decode(&payload).map_err(TransportError::Wire)?;
    Ok(Some((message, descriptors)))
}

fn receive_some(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, TransportError> {
    let mut control = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    loop {
        let mut parts = [IoSliceMut::new(buffer)];
        let received =
            recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC);
        let message = match received {
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        for part in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel has just made these descriptors for this process; nobody else
                // knows their numbers.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        descriptors.truncate(KEPT_DESCRIPTORS);
        return Ok(message.bytes);
    }
}

/// Who is at the other end, as the kernel saw it when the connection was made.
///
/// # Errors
/// The socket is not a connected unix socket.
pub fn peer(stream: &UnixStream) -> io::Result<UnixCredentials> {
    Ok(getsockopt(stream, sockopt::PeerCredentials)?)
}
