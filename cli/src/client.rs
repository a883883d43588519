//! A command's connection to a coordinator: one request, one reply, blocking.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

use anyhow::{Context as _, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use stasis_protocol::{
    VERSION,
    coordinator::{ClientReply, ClientRequest, Hello, Role, Status},
    wire,
};

use crate::{address::Address, failure::Failure};

pub struct Client {
    stream: UnixStream,
    address: Address,
    coordinator_pid: u32,
}

impl Client {
    /// Connects to the coordinator that listens at `address`.
    ///
    /// # Errors
    /// [`Failure::NoCoordinator`] when none does; [`Failure::Refused`] when it is another user's; otherwise
    /// why it cannot be spoken to.
    pub fn connect(address: &Address) -> anyhow::Result<Self> {
        Self::try_connect(address)?
            .ok_or_else(|| Failure::NoCoordinator { address: address.to_string() }.into())
    }

    /// As [`Client::connect`]; `None` when no coordinator listens.
    pub fn try_connect(address: &Address) -> anyhow::Result<Option<Self>> {
        let stream = match UnixStream::connect(address.path()) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => bail!(Failure::refused(
                format!("the coordinator at {address}"),
                "this user may not connect to it",
                "name a coordinator of your own with --coord, or set XDG_RUNTIME_DIR to a directory of yours"
            )),
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {address}")),
        };
        let peer = getsockopt(&stream, PeerCredentials)?;
        let uid = nix::unistd::geteuid().as_raw();
        if peer.uid() != uid && peer.uid() != 0 {
            bail!(Failure::refused(
                format!("the coordinator at {address}"),
                format!("it belongs to uid {} and this is uid {uid}", peer.uid()),
                "name a coordinator of your own with --coord"
            ));
        }
        let mut client = Self { stream, address: address.clone(), coordinator_pid: 0 };
        client.send(&Hello { version: VERSION, role: Role::Client })?;
        match client.receive() {
            Ok(ClientReply::Welcome { version: VERSION, coordinator_pid }) => {
                client.coordinator_pid = coordinator_pid
            }
            Ok(ClientReply::Welcome { version, .. }) => bail!(
                "the coordinator at {address} speaks version {version} and this `stasis` version {VERSION}: \
                 end its computation first, or name another coordinator with --coord"
            ),
            Ok(reply) => bail!("the coordinator at {address} answered a greeting with {reply:?}"),
            // It went away between our connect(2) and its accept(2).
            Err(error) if is_end_of_file(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(client))
    }

    /// The coordinator's pid.
    pub fn coordinator_pid(&self) -> u32 {
        self.coordinator_pid
    }

    /// Sends a request and waits for its reply, however long that takes.
    ///
    /// # Errors
    /// [`Failure::Refused`] when the coordinator refuses; otherwise why it cannot be spoken to.
    pub fn request(&mut self, request: &ClientRequest) -> anyhow::Result<ClientReply> {
        self.send(request)?;
        self.reply()
    }

    /// Waits for the reply to a request that was sent with [`Client::send`].
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn reply(&mut self) -> anyhow::Result<ClientReply> {
        match self.receive()? {
            ClientReply::Refused(refusals) => bail!(Failure::Refused(refusals)),
            reply => Ok(reply),
        }
    }

    /// A request that is answered by a number.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn count(&mut self, request: &ClientRequest) -> anyhow::Result<u32> {
        match self.request(request)? {
            ClientReply::Done { count } => Ok(count),
            reply => bail!(self.unexpected(&reply)),
        }
    }

    /// Waits for the end of a coordinator that was told to end: its socket is gone then.
    pub fn await_end(mut self) {
        // Whatever comes, nothing is to be said to it.
        while self.stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    }

    /// # Errors
    /// As [`Client::request`].
    pub fn status(&mut self) -> anyhow::Result<Status> {
        match self.request(&ClientRequest::Status)? {
            ClientReply::Status(status) => Ok(status),
            reply => bail!(self.unexpected(&reply)),
        }
    }

    /// The error for a reply of the wrong kind.
    pub fn unexpected(&self, reply: &ClientReply) -> anyhow::Error {
        anyhow::anyhow!("the coordinator at {} answered with something else: {reply:?}", self.address)
    }

    /// # Errors
    /// Why the message could not be sent.
    pub fn send<T: Serialize>(&mut self, message: &T) -> anyhow::Result<()> {
        let frame = wire::frame(message)?;
        self.stream
            .write_all(&frame)
            .with_context(|| format!("speaking to the coordinator at {}", self.address))
    }

    fn receive(&mut self) -> anyhow::Result<ClientReply> {
        let payload = read_payload(&mut self.stream)
            .with_context(|| format!("the coordinator at {} went away", self.address))?;
        wire::decode(&payload).with_context(|| format!("the coordinator at {} sent", self.address))
    }

    /// The connection, to wait on together with something else.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// Reads one message's payload. Memory grows with what arrives, not with what the header announces.
pub fn read_payload(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    read_payload_from(stream)
}

/// The same, of what else can be read.
pub fn read_payload_from(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = [0; wire::HEADER];
    stream.read_exact(&mut header)?;
    let len = wire::payload_len(header).map_err(io::Error::other)?;
    let mut payload = Vec::new();
    stream.take(len as u64).read_to_end(&mut payload)?;
    if payload.len() < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(payload) }
}

fn is_end_of_file(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| {
        matches!(
            cause.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        )
    })
}
