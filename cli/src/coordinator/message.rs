//! Messages on the coordinator's side of a connection, where any peer may be slow or hostile.

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Serialize, de::DeserializeOwned};
use stasis_protocol::wire;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::unix::OwnedWriteHalf,
    time::timeout,
};

use crate::remote::seal::{PROOF, Seal};

/// The longest payload taken from a peer, in bytes: a command line has at most 6 MiB (execve(2): three
/// quarters of the 8 MiB that argv and environment may have in all).
const MAX_PAYLOAD: usize = 8 << 20;

/// How long a peer may take to read what it is sent.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a peer may take over a message that it has begun to send.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(10);

/// Where a peer's messages come from; `seal` where they come over TCP.
pub struct Reader<R> {
    pub stream: R,
    pub seal: Option<Seal>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// # Errors
    /// As [`read`].
    pub async fn read<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        read_sealed(&mut self.stream, self.seal.as_mut()).await
    }
}

/// Where a peer's messages go.
pub struct Writer<W> {
    pub stream: W,
    pub seal: Option<Seal>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// # Errors
    /// As [`write_frame`].
    pub async fn write<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut frame = wire::frame(message).map_err(io::Error::other)?;
        if let Some(seal) = &mut self.seal {
            seal.close(&mut frame);
        }
        write_frame(&mut self.stream, &frame).await
    }
}

/// Reads one message, however long it takes to come; `None` when the peer closed the connection between
/// two messages.
///
/// # Errors
/// A message that is too long, malformed, cut short or does not go on, or what the socket reports.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    read_sealed(stream, None).await
}

async fn read_sealed<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    seal: Option<&mut Seal>,
) -> io::Result<Option<T>> {
    let mut header = [0; wire::HEADER];
    let got = stream.read(&mut header).await?;
    if got == 0 {
        return Ok(None);
    }
    match timeout(MESSAGE_DEADLINE, read_rest(stream, header, got, seal)).await {
        Ok(message) => message.map(Some),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "half a message came, and no more")),
    }
}

/// Reads what follows the first `got` bytes of a header.
async fn read_rest<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    mut header: [u8; wire::HEADER],
    got: usize,
    seal: Option<&mut Seal>,
) -> io::Result<T> {
    stream.read_exact(&mut header[got..]).await?;
    let len = wire::payload_len(header).map_err(io::Error::other)?;
    if len > MAX_PAYLOAD {
        return Err(io::Error::other(wire::WireError::TooLong(len)));
    }
    // Grows with what arrives, not with what the header announces.
    let mut payload = Vec::new();
    (&mut *stream).take(len as u64).read_to_end(&mut payload).await?;
    if payload.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Some(seal) = seal {
        let mut tag = [0; PROOF];
        stream.read_exact(&mut tag).await?;
        seal.check(&payload, tag)?;
    }
    wire::decode(&payload).map_err(io::Error::other)
}

/// Encodes and writes one message.
///
/// # Errors
/// As [`write_frame`].
pub async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    write_frame(stream, &wire::frame(message).map_err(io::Error::other)?).await
}

/// Writes an encoded message.
///
/// # Errors
/// TimedOut when the peer does not read, or what the socket reports.
pub async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    match timeout(WRITE_DEADLINE, stream.write_all(frame)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")),
    }
}

/// A message on its way to a process.
pub struct Outgoing {
    pub frame: Vec<u8>,
    /// A descriptor that travels beside it (SCM_RIGHTS, unix(7)).
    pub beside: Option<OwnedFd>,
}

/// Writes an encoded message with its descriptor.
///
/// # Errors
/// As [`write_frame`].
pub async fn deliver(stream: &mut OwnedWriteHalf, outgoing: Outgoing) -> io::Result<()> {
    let Some(descriptor) = outgoing.beside else { return write_frame(stream, &outgoing.frame).await };
    let raw = [descriptor.as_raw_fd()];
    let first = || {
        let (parts, rights) = ([IoSlice::new(&outgoing.frame)], [ControlMessage::ScmRights(&raw)]);
        let socket = stream.as_ref().as_raw_fd();
        Ok(sendmsg::<()>(socket, &parts, &rights, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT, None)?)
    };
    let sent = timeout(WRITE_DEADLINE, stream.as_ref().async_io(Interest::WRITABLE, first));
    let sent =
        sent.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not read"))??;
    write_frame(stream, &outgoing.frame[sent..]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        run(write(&mut bytes, &"hello".to_string())).unwrap();
        assert_eq!(run(read::<String>(&mut &bytes[..])).unwrap().as_deref(), Some("hello"));
        assert_eq!(run(read::<String>(&mut &[][..])).unwrap(), None);
    }

    #[test]
    fn a_message_cut_short_anywhere_is_an_error() {
        let bytes = wire::frame(&"hello".to_string()).unwrap();
        for len in 1..bytes.len() {
            assert!(run(read::<String>(&mut &bytes[..len])).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_header_cannot_make_us_allocate() {
        let bytes = u32::MAX.to_le_bytes();
        assert!(run(read::<String>(&mut &bytes[..])).is_err());
        let bytes = (MAX_PAYLOAD as u32 + 1).to_le_bytes();
        assert!(run(read::<String>(&mut &bytes[..])).is_err());
    }
}
