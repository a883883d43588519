//! The coordinator's main loop: from the claim of its socket to its end.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{FromRawFd, RawFd},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use stasis_protocol::coordinator::IntervalLasts;
use stasis_sys::process;
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

use super::{
    computation::{Computation, Settings},
    connection, interval, log,
    socket::Socket,
    start::{READY, TAKEN},
    tcp::{self, Listen},
};
use crate::{address::Address, args::CoordinatorArgs};

/// How long to leave connections waiting when there are no descriptors to accept them with; one of the
/// others must end first, which nothing tells.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs a coordinator at `address` until it is idle or told to end.
///
/// # Errors
/// Why it cannot listen; its starter is told too.
pub fn run(
    address: Address,
    store: PathBuf,
    args: &CoordinatorArgs,
    listen: Option<&Listen>,
) -> anyhow::Result<()> {
    let mut starter = Starter::new(args.ready_fd)?;
    let claimed = Socket::claim(&address);
    let socket = match claimed {
        Ok(Some(socket)) => socket,
        Ok(None) if starter.is_there() => {
            starter.tell(TAKEN);
            return Ok(());
        }
        Ok(None) => bail!("a coordinator listens at {address} already"),
        Err(error) => {
            starter.tell(format!("{error:#}").as_bytes());
            return Err(error);
        }
    };
    raise_descriptor_limit();
    // All processes of a checkpoint wait for it in each round.
    process::take_short_turns();
    let settings = Settings { address, store, deadline: args.deadline_seconds, idle: args.idle_seconds };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            socket.release();
            starter.tell(error.to_string().as_bytes());
            return Err(error).context("cannot start the runtime");
        }
    };
    log::bound(&settings.address);
    let computation = Computation::new(settings);
    log::line(format_args!("coordinator {} listens at {}", std::process::id(), computation.settings.address));
    let result = LocalSet::new().block_on(&runtime, async {
        if args.interval.is_some() {
            interval::set(&computation, args.interval, IntervalLasts::Coordinator);
        }
        if let Some(listen) = listen
            && let Err(error) = tcp::listen(&computation, listen).await
        {
            socket.release();
            starter.tell(error.to_string().as_bytes());
            return Err(error.into());
        }
        accept(&computation, socket, starter).await
    });
    // A store server that does not answer must not keep us.
    runtime.shutdown_background();
    result
}

/// Serves connections until the end.
async fn accept(computation: &Rc<Computation>, socket: Socket, mut starter: Starter) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = socket.listener()?;
    starter.tell(READY);
    drop(starter);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => welcome(computation, stream),
                Err(error) => {
                    log::line(format_args!("cannot accept a connection: {error}"));
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            () = idle(computation) => {
                match socket.release_if_unused()? {
                    Some(stream) => welcome(computation, stream),
                    None => {
                        log::line(format_args!("ends: nobody is here any more"));
                        return Ok(());
                    }
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = computation.shutdown.notified() => break,
        }
    }
    log::line(format_args!("ends as it was told to; the processes run on"));
    socket.release();
    Ok(())
}

fn welcome(computation: &Rc<Computation>, stream: UnixStream) {
    spawn_local(connection::serve(Rc::clone(computation), stream));
}

/// Returns when there has been no connection and no checkpoint for the set time.
async fn idle(computation: &Computation) {
    let mut changes = computation.changes();
    loop {
        changes.mark_unchanged();
        let changed = changes.changed();
        if !computation.is_idle() {
            let _ = changed.await;
        } else if timeout(computation.settings.idle, changed).await.is_err() {
            return;
        }
    }
}

/// The command that started us and waits to be told that we listen.
struct Starter(Option<File>);

impl Starter {
    fn new(fd: Option<RawFd>) -> io::Result<Self> {
        let Some(fd) = fd else { return Ok(Self(None)) };
        // Also tells whether there is such a descriptor at all.
        // SAFETY: F_SETFD takes integers only.
        if fd < 3 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: it was opened for us (--ready-fd), before anything else of this process was.
        Ok(Self(Some(unsafe { File::from_raw_fd(fd) })))
    }

    fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Says the one thing that there is to say.
    fn tell(&mut self, word: &[u8]) {
        if let Some(mut pipe) = self.0.take() {
            // It may have been interrupted meanwhile.
            let _ = pipe.write_all(word);
        }
    }
}

/// A computation may have more processes than the usual soft limit has descriptors.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
