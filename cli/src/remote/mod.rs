//! A coordinator that is reached over TCP, from another host or container: `tcp:HOST:PORT`.
//!
//! Nobody on the network is trusted. Who connects and who listens prove to each other that they know a token, which
//! never travels ([`token`]), and seal every message with keys of that one connection ([`seal`]): what is said can be
//! neither made up nor changed, repeated, dropped or put in another order without the connection being dropped.
//! It can be read: nothing is encrypted.
//!
//! The coordinator speaks first: a [`seal::GREETING`] and a nonce. Who connects answers with a nonce and its proof, and
//! is given the coordinator's proof if its own is right. So who does not know the token is told nothing that could be
//! tried against it. From there on it is the conversation of the unix socket, each payload with a tag behind it.
//!
//! [`connect`] is a command's side; the coordinator's is `coordinator/tcp.rs`.
//!
//! Not here: processes of the computation. They are known by pids and pidfds, which do not leave their host.

pub mod seal;
pub mod token;

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::fd::AsFd,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::socket::{
    setsockopt,
    sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval},
};

use crate::{client, failure::Failure};
use seal::{GREETING, Handshake, NONCE, Nonce, PROOF, Seals};
use token::Token;

/// How long each step of making a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a coordinator listens on the network, and what proves that it may be spoken to.
#[derive(Clone, Debug)]
pub struct Remote {
    /// `HOST:PORT`.
    pub at: String,
    pub token_file: PathBuf,
}

impl Remote {
    pub fn host(&self) -> &str {
        self.at.rsplit_once(':').map_or(&self.at, |(host, _)| host)
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tcp:{}", self.at)
    }
}

/// A connection to a coordinator that has proved itself.
pub struct Connection {
    stream: TcpStream,
    seals: Seals,
}

/// Connects; `None` when nobody listens there.
///
/// # Errors
/// [`Failure::Refused`] when the token is of no use or the two sides do not know the same one; otherwise why the
/// coordinator cannot be reached.
pub fn connect(remote: &Remote) -> anyhow::Result<Option<Connection>> {
    let token = Token::read(&remote.token_file)?;
    let Some(mut stream) = reach(remote)? else { return Ok(None) };
    // One write is one message; none is to wait for more (tcp(7)).
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;

    let no_coordinator = || format!("what listens at {remote} does not greet as a coordinator does");
    let mut greeting = [0; GREETING.len()];
    let mut theirs: Nonce = [0; NONCE];
    stream.read_exact(&mut greeting).with_context(no_coordinator)?;
    if greeting != GREETING {
        bail!(no_coordinator());
    }
    stream.read_exact(&mut theirs).with_context(no_coordinator)?;

    let ours = seal::nonce().context("/dev/urandom")?;
    let handshake = Handshake::new(&token, theirs, ours);
    let mut answer = Vec::from(ours);
    answer.extend(handshake.commands_proof().as_bytes());
    stream.write_all(&answer).with_context(|| format!("speaking to the coordinator at {remote}"))?;

    let mut proof = [0; PROOF];
    if let Err(error) = stream.read_exact(&mut proof) {
        if !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
            return Err(error).with_context(|| format!("the coordinator at {remote} does not answer"));
        }
        bail!(Failure::refused(
            format!("the coordinator at {remote}"),
            format!("it does not take the token in {}", remote.token_file.display()),
            "copy the file that `stasis coordinator --listen` was given there"
        ));
    }
    if handshake.coordinators_proof() != proof {
        bail!(Failure::refused(
            format!("what listens at {remote}"),
            format!(
                "it does not know the token in {}, and was asked for nothing",
                remote.token_file.display()
            ),
            "see who listens there, and which token its coordinator was given"
        ));
    }
    stream.set_read_timeout(None)?;
    Ok(Some(Connection { stream, seals: handshake.for_the_command() }))
}

/// To the first of the host's addresses at which somebody listens.
fn reach(remote: &Remote) -> anyhow::Result<Option<TcpStream>> {
    let cannot = || format!("cannot connect to {remote}");
    let mut result = Ok(None);
    for address in remote.at.to_socket_addrs().with_context(cannot)? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => result = Err(error).with_context(cannot),
        }
    }
    result
}

/// Has a connection end within two minutes whose other host is gone without a word: it may be one that waits for a
/// checkpoint, where nothing is sent.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn keep_alive(socket: &impl AsFd) -> nix::Result<()> {
    setsockopt(socket, KeepAlive, &true)?;
    setsockopt(socket, TcpKeepIdle, &60)?;
    setsockopt(socket, TcpKeepInterval, &10)?;
    setsockopt(socket, TcpKeepCount, &6)
}

impl Connection {
    /// Sends what [`stasis_protocol::wire::frame`] made.
    ///
    /// # Errors
    /// What the socket reports.
    pub fn send(&mut self, mut frame: Vec<u8>) -> io::Result<()> {
        self.seals.own.close(&mut frame);
        self.stream.write_all(&frame)
    }

    /// Receives a message's payload.
    ///
    /// # Errors
    /// What the socket reports; InvalidData when the message is not what the coordinator sent.
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        let payload = client::read_payload_from(&mut self.stream)?;
        let mut tag = [0; PROOF];
        self.stream.read_exact(&mut tag)?;
        self.seals.peers.check(&payload, tag)?;
        Ok(payload)
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}
