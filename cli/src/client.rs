//! A command's connection to a coordinator: one request, one reply, blocking.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use anyhow::{Context as _, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use stasis_protocol::{
    VERSION,
    coordinator::{ClientReply, ClientRequest, Hello, Role, Status},
    wire,
};

use crate::{
    address::{Address, Target},
    failure::Failure,
    remote,
};

/// What to do where no coordinator listens.
const LAUNCH: &str = "`stasis launch` starts one with the program";

/// The same, on another host.
const LISTEN: &str = "`stasis coordinator --listen` there has one listen";

pub struct Client {
    link: Link,
    /// For messages.
    address: String,
    coordinator_pid: u32,
}

enum Link {
    Here(UnixStream),
    Afar(remote::Connection),
}

impl Client {
    /// Connects to the coordinator that listens at `address`.
    ///
    /// # Errors
    /// [`Failure::NoCoordinator`] when none does; [`Failure::Refused`] when it is another user's; otherwise
    /// why it cannot be spoken to.
    pub fn connect(address: &Address) -> anyhow::Result<Self> {
        Self::try_connect(address)?
            .ok_or_else(|| Failure::NoCoordinator { address: address.to_string(), remedy: LAUNCH }.into())
    }

    /// As [`Client::connect`], on this host or another one.
    ///
    /// # Errors
    /// As [`Client::connect`] and [`remote::connect`].
    pub fn reach(target: &Target) -> anyhow::Result<Self> {
        match target {
            Target::Here(address) => Self::connect(address),
            Target::Afar(remote) => {
                let none = || Failure::NoCoordinator { address: remote.to_string(), remedy: LISTEN };
                let connection = remote::connect(remote)?.ok_or_else(none)?;
                Ok(Self::greet(Link::Afar(connection), remote.to_string())?.ok_or_else(none)?)
            }
        }
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
        Self::greet(Link::Here(stream), address.to_string())
    }

    /// Says hello; `None` when the coordinator has gone away.
    fn greet(link: Link, address: String) -> anyhow::Result<Option<Self>> {
        let mut client = Self { link, address, coordinator_pid: 0 };
        client.send(&Hello { version: VERSION, role: Role::Client })?;
        match client.receive() {
            Ok(ClientReply::Welcome { version: VERSION, coordinator_pid }) => {
                client.coordinator_pid = coordinator_pid
            }
            Ok(ClientReply::Welcome { version, .. }) => bail!(
                "the coordinator at {} speaks version {version} and this `stasis` version {VERSION}: \
                 end its computation first, or name another coordinator with --coord",
                client.address
            ),
            Ok(reply) => bail!("the coordinator at {} answered a greeting with {reply:?}", client.address),
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
        let mut read = |buffer: &mut [u8]| match &mut self.link {
            Link::Here(stream) => stream.read(buffer),
            Link::Afar(connection) => connection.stream().read(buffer),
        };
        while read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
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
        match &mut self.link {
            Link::Here(stream) => stream.write_all(&frame),
            Link::Afar(connection) => connection.send(frame),
        }
        .with_context(|| format!("speaking to the coordinator at {}", self.address))
    }

    fn receive(&mut self) -> anyhow::Result<ClientReply> {
        let payload = match &mut self.link {
            Link::Here(stream) => read_payload(stream),
            Link::Afar(connection) => connection.receive(),
        };
        let payload = payload.with_context(|| format!("the coordinator at {} went away", self.address))?;
        wire::decode(&payload).with_context(|| format!("the coordinator at {} sent", self.address))
    }
}

/// To wait on together with something else.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.link {
            Link::Here(stream) => stream.as_fd(),
            Link::Afar(connection) => connection.stream().as_fd(),
        }
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
