//! The other parts of Stasis: are they there, and do they fit?

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stasis_protocol::{
    VERSION,
    coordinator::{Hello, Role, ToProcess},
    wire,
};

use super::Finding;
use crate::{address::Target, client, context::Context, failure::Failure, locate, process::Pidfd};

const BUILD: &str = "`cargo xtask build` puts all parts side by side, `cargo xtask install` installs them";

/// How long a program that does nothing may take to join, in milliseconds.
const JOIN: u16 = 5000;

/// Launches a program with the library and waits until it has said hello.
pub fn library() -> Finding {
    let path = match locate::find(locate::LIBRARY) {
        Ok(path) => path,
        Err(error) => return Finding::missing(error.to_string(), BUILD),
    };
    match greet(&path) {
        Ok(VERSION) => {
            Finding::Works(format!("{}, version {VERSION}; a program joined with it", path.display()))
        }
        Ok(version) => Finding::missing(
            format!("{} speaks version {version}, this `stasis` version {VERSION}", path.display()),
            BUILD,
        ),
        Err(error) => Finding::missing(format!("{}: {error:#}", path.display()), BUILD),
    }
}

/// The version that a program with the library at `path` says hello with.
fn greet(path: &Path) -> anyhow::Result<u32> {
    let lair = Lair::new().context("no place for a socket")?;
    let socket = lair.0.join("s");
    let listener = UnixListener::bind(&socket)?;
    // Any dynamically linked program will do, if it lives until it has joined: this one waits for input.
    let child = Command::new("cat")
        .env("LD_PRELOAD", path)
        .env("STASIS_COORD", &socket)
        .env("STASIS_STORE", &lair.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start cat")?;
    let child = Reaped(child);
    let ended = Pidfd::open(child.0.id())?;
    let mut events =
        [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
    poll(&mut events, PollTimeout::from(JOIN))?;
    if !events[0].any().unwrap_or(false) {
        let why = if ended.has_ended() { "ended without joining" } else { "did not join in time" };
        bail!("a program started with it {why}");
    }
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(std::time::Duration::from_millis(JOIN.into())))?;
    let hello: Hello = wire::decode(&client::read_payload(&mut stream)?)?;
    if !matches!(hello.role, Role::Process { .. }) {
        bail!("a program started with it joined as a client");
    }
    welcome(&mut stream)?;
    Ok(hello.version)
}

fn welcome(stream: &mut UnixStream) -> anyhow::Result<()> {
    let frame = wire::frame(&ToProcess::Welcome { version: VERSION, epoch: 0 })?;
    match io::Write::write_all(stream, &frame) {
        // It may have ended in the meantime.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A directory of our own, removed at the end.
struct Lair(PathBuf);

impl Lair {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("stasis-doctor-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Lair {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child that is gone at the end, whatever it does.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn restorer() -> Finding {
    found(locate::RESTORER)
}

pub fn store_server() -> Finding {
    found(locate::STORE_SERVER)
}

fn found(part: locate::Part) -> Finding {
    let path = match locate::find(part) {
        Ok(path) => path,
        Err(error) => return Finding::missing(format!("{error:#}"), BUILD),
    };
    match nix::unistd::eaccess(&path, nix::unistd::AccessFlags::X_OK) {
        Ok(()) => Finding::Works(path.display().to_string()),
        Err(error) => Finding::missing(format!("{} cannot be executed: {error}", path.display()), BUILD),
    }
}

/// Whether one listens now; none need be, until a program is launched.
pub fn coordinator(context: &Context) -> Finding {
    let remedy = "name another one with --coord";
    let target = match context.coordinator() {
        Ok(target) => target,
        Err(error) => return Finding::missing(format!("{error:#}"), remedy),
    };
    match client::Client::reach(&target) {
        Ok(client) => Finding::Works(format!("pid {} listens at {target}", client.coordinator_pid())),
        Err(error) => match (error.downcast_ref(), &target) {
            (Some(Failure::NoCoordinator { .. }), Target::Here(address)) => {
                Finding::Works(format!("none listens at {address}; `stasis launch` starts one"))
            }
            _ => Finding::missing(format!("{error:#}"), remedy),
        },
    }
}
