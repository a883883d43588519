//! A connection to the tracer: blocking, one request and one reply, each with a deadline.

use std::{
    env,
    fs::File,
    io::{self, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt::PeerCredentials,
};
use stasis_protocol::{
    tracer::{self, Connection, Event, Hello, Limits, Reply, Request, State, Task},
    wire,
};

use crate::{
    client::{read_payload, read_payload_from},
    failure::Failure,
};

/// Far above what it needs: a tracer that hangs must not hang everybody's launches.
const DEADLINE: Duration = Duration::from_secs(2);

pub struct Tracer {
    stream: UnixStream,
    pid: u32,
}

/// The socket's path, unless STASIS_TRACER says that none is to be used.
pub fn socket() -> Option<PathBuf> {
    match env::var_os("STASIS_TRACER") {
        Some(path) => Some(path).filter(|path| !path.is_empty()).map(PathBuf::from),
        None => Some(tracer::SOCKET.into()),
    }
}

impl Tracer {
    /// Connects to the tracer; `None` when none listens.
    ///
    /// # Errors
    /// Why the one that listens cannot be used.
    pub fn connect() -> anyhow::Result<Option<Self>> {
        let Some(path) = socket() else { return Ok(None) };
        let shown = path.display();
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {shown}")),
        };
        let peer = getsockopt(&stream, PeerCredentials)?;
        if peer.uid() != 0 {
            bail!("what listens at {shown} is uid {}'s and not root's", peer.uid());
        }
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut tracer = Self { stream, pid: 0 };
        tracer.stream.write_all(&wire::frame(&Hello { version: tracer::VERSION })?)?;
        match tracer.receive()? {
            Reply::Hello { version: tracer::VERSION, pid } => tracer.pid = pid,
            Reply::Hello { version, .. } => {
                bail!(
                    "the tracer at {shown} speaks version {version}, this `stasis` version {}",
                    tracer::VERSION
                )
            }
            Reply::Refused(refusal) => bail!(Failure::Refused(vec![refusal])),
            reply => bail!("the tracer at {shown} answered a greeting with {reply:?}"),
        }
        Ok(Some(tracer))
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn request(&mut self, request: &Request) -> anyhow::Result<Reply> {
        self.stream.write_all(&wire::frame(request)?).context("speaking to the tracer")?;
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<Reply> {
        match self.receive()? {
            Reply::Refused(refusal) => bail!(Failure::Refused(vec![refusal])),
            reply => Ok(reply),
        }
    }

    fn receive(&mut self) -> anyhow::Result<Reply> {
        let payload = read_payload(&mut self.stream).context("the tracer does not answer")?;
        Ok(wire::decode(&payload)?)
    }

    /// Has a process tracked.
    ///
    /// # Errors
    /// [`Failure::Refused`] when it is not to be.
    pub fn register(&mut self, computation: u64, label: &str, process: &impl AsFd) -> anyhow::Result<()> {
        let frame = wire::frame(&Request::Register { computation, label: label.into() })?;
        let descriptors = [process.as_fd().as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let parts = [io::IoSlice::new(&frame)];
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        // What did not fit into the socket's buffer follows without the descriptor.
        self.stream.write_all(&frame[sent..])?;
        self.answer()?;
        Ok(())
    }

    /// # Errors
    /// Why they cannot be told.
    pub fn tasks(&mut self, computation: Option<u64>) -> anyhow::Result<(Vec<Task>, Limits)> {
        match self.request(&Request::Tasks { computation })? {
            Reply::Tasks { tasks, limits } => Ok((tasks, limits)),
            reply => bail!(unexpected(&reply)),
        }
    }

    /// # Errors
    /// Why they cannot be told.
    pub fn connections(&mut self, computation: u64) -> anyhow::Result<Vec<Connection>> {
        match self.request(&Request::Connections { computation })? {
            Reply::Connections(connections) => Ok(connections),
            reply => bail!(unexpected(&reply)),
        }
    }

    /// # Errors
    /// Why it cannot be told.
    pub fn state(&mut self) -> anyhow::Result<State> {
        match self.request(&Request::State)? {
            Reply::State(state) => Ok(state),
            reply => bail!(unexpected(&reply)),
        }
    }

    /// An open /dev/userfaultfd, for this process, which must be registered.
    ///
    /// # Errors
    /// [`Failure::Refused`] when it is not to have one.
    pub fn userfaultfd(&mut self) -> anyhow::Result<File> {
        self.stream.write_all(&wire::frame(&Request::Userfaultfd)?).context("speaking to the tracer")?;
        // The descriptor comes with the answer's first byte.
        let mut first = [0];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut first)];
        let message = recvmsg::<()>(
            self.stream.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let beside = message.cmsgs()?.find_map(|part| match part {
            // SAFETY: the kernel has just made this descriptor for this process.
            ControlMessageOwned::ScmRights(fds) => fds.first().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => None,
        });
        let payload =
            read_payload_from(&mut first.chain(&mut self.stream)).context("the tracer does not answer")?;
        match (wire::decode(&payload)?, beside) {
            (Reply::Done, Some(device)) => Ok(device.into()),
            (Reply::Refused(refusal), _) => bail!(Failure::Refused(vec![refusal])),
            (reply, _) => bail!(unexpected(&reply)),
        }
    }

    /// Asks whether it gives ids to this process, which must be registered.
    ///
    /// # Errors
    /// [`Failure::Refused`] when it does not.
    pub fn gives_ids(&mut self) -> anyhow::Result<()> {
        match self.request(&Request::GoOn { after: 0 })? {
            Reply::Done => Ok(()),
            reply => bail!(unexpected(&reply)),
        }
    }

    /// Calls `look` with every event from now on, until it says that it has seen enough.
    ///
    /// # Errors
    /// Why there are no more, or what `look` says.
    pub fn watch(
        mut self,
        computation: Option<u64>,
        began: impl FnOnce() -> anyhow::Result<()>,
        mut look: impl FnMut(Event) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        self.request(&Request::Watch { computation })?;
        self.stream.set_read_timeout(None)?;
        began()?;
        let mut stream = io::BufReader::with_capacity(1 << 16, self.stream);
        loop {
            let payload = read_payload_from(&mut stream).context("the tracer has ended")?;
            match wire::decode(&payload)? {
                Reply::Event(event) => {
                    if !look(event)? {
                        return Ok(());
                    }
                }
                reply => bail!(unexpected(&reply)),
            }
        }
    }
}

/// For whoever speaks with it in another way: every request so far has its reply.
impl From<Tracer> for OwnedFd {
    fn from(tracer: Tracer) -> Self {
        tracer.stream.into()
    }
}

fn unexpected(reply: &Reply) -> anyhow::Error {
    anyhow::anyhow!("the tracer answered with something else: {reply:?}")
}
