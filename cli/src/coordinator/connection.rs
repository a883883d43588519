//! One peer's connection: who it is, and what is done with what it says. Whatever a peer does, only its
//! own connection suffers.

use std::{future::pending, io, os::fd::AsRawFd, path::PathBuf, pin::pin, rc::Rc, time::Duration};

use nix::sys::socket::{Shutdown, shutdown};
use stasis_protocol::{
    VERSION,
    coordinator::{
        ClientReply, ClientRequest, FromProcess, Hello, IntervalLasts, Phase, Refusal, Role, ToProcess,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{
        TcpStream, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::{AbortHandle, spawn_blocking, spawn_local},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    admission::Applicant,
    checkpoint::{self, Order, Taken},
    computation::{ClientId, Computation, Member, OUTBOX},
    dormant, interval, log,
    message::{self, Outgoing, Reader, Writer},
    stopped,
    tcp::{self, Listen},
};
use crate::{failure::Failure, process::Pidfd, remote::seal::Seals, store};

/// How long a peer may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long processes may take to end after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Serves a new connection until it ends.
pub async fn serve(computation: Rc<Computation>, stream: UnixStream) {
    computation.connected(1);
    tell_of(identify(&computation, stream).await);
    computation.connected(-1);
}

/// Serves a command over TCP that has proved itself.
pub async fn serve_from_afar(computation: Rc<Computation>, stream: TcpStream, seals: Seals) {
    computation.connected(1);
    let (reader, writer) = stream.into_split();
    let reader = Reader { stream: reader, seal: Some(seals.peers) };
    let writer = Writer { stream: writer, seal: Some(seals.own) };
    tell_of(identify_from_afar(&computation, reader, writer).await);
    computation.connected(-1);
}

fn tell_of(result: io::Result<()>) {
    match result {
        // A process that ends right after it began, or a command that was interrupted.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
        Err(error) => log::line(format_args!("a connection was dropped: {error}")),
        Ok(()) => {}
    }
}

/// Where a command is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Here,
    Afar,
}

async fn identify_from_afar(
    computation: &Rc<Computation>,
    mut reader: Reader<impl AsyncRead + Unpin + 'static>,
    mut writer: Writer<impl AsyncWrite + Unpin>,
) -> io::Result<()> {
    let hello = timeout(HELLO_DEADLINE, reader.read::<Hello>());
    let Some(hello) = hello.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else {
        return Ok(());
    };
    if hello.role != Role::Client {
        return Err(io::Error::other("a process cannot join over TCP: it is known by its pid on this host"));
    }
    greet(&mut writer, hello.version).await?;
    serve_client(computation, reader, writer, From::Afar).await
}

/// # Errors
/// When the client speaks another version, or as [`message::write`].
async fn greet(writer: &mut Writer<impl AsyncWrite + Unpin>, version: u32) -> io::Result<()> {
    let welcome = ClientReply::Welcome { version: VERSION, coordinator_pid: std::process::id() };
    writer.write(&welcome).await?;
    if version == VERSION { Ok(()) } else { Err(another_version(version)) }
}

async fn identify(computation: &Rc<Computation>, mut stream: UnixStream) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let own = nix::unistd::geteuid().as_raw();
    if peer.uid() != own && peer.uid() != 0 {
        return Err(io::Error::other(format!("it is uid {}'s and this is uid {own}", peer.uid())));
    }
    let hello = timeout(HELLO_DEADLINE, message::read::<Hello>(&mut stream));
    let Some(hello) = hello.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else {
        return Ok(());
    };
    let speaks_another = hello.version != VERSION;
    match hello.role {
        Role::Client => {
            let (reader, writer) = stream.into_split();
            let mut writer = Writer { stream: writer, seal: None };
            greet(&mut writer, hello.version).await?;
            serve_client(computation, Reader { stream: reader, seal: None }, writer, From::Here).await
        }
        Role::Process { .. } if speaks_another => {
            message::write(&mut stream, &ToProcess::Welcome { version: VERSION, epoch: 0 }).await?;
            Err(another_version(hello.version))
        }
        Role::Process { pid, argv, restarted_from, stops, epoch } => {
            let real_pid =
                peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid != 0).ok_or_else(
                    || io::Error::other("the process is in a pid namespace that cannot be seen from here"),
                )?;
            let pidfd = match Pidfd::of_peer(&stream, real_pid) {
                Ok(pidfd) => Rc::new(pidfd),
                Err(error) => {
                    // It has ended already, but may have left children (a daemon's starter).
                    dormant::call_the_last(computation);
                    return Err(error);
                }
            };
            let is_restarted = restarted_from.is_some();
            let applicant = Applicant { pid, real_pid, pidfd: &pidfd, is_restarted, epoch };
            // One that may not join asks again.
            let Some(epoch) = computation.admit(&applicant).await else { return Ok(()) };
            message::write(&mut stream, &ToProcess::Welcome { version: VERSION, epoch }).await?;
            let (reader, writer) = stream.into_split();
            let (outbox, messages) = mpsc::channel(OUTBOX);
            let writing = spawn_local(deliver(messages, writer));
            let serving = spawn_local(hold_store(computation.settings.store.clone()));
            if stops {
                stopped::await_stop(real_pid).await;
            }
            let id = computation
                .join(Member {
                    pid,
                    real_pid,
                    command: command_line(&argv),
                    restarted_from,
                    pidfd: Rc::clone(&pidfd),
                    outbox,
                    phase: Phase::Running,
                    phase_since: Instant::now(),
                    tracker: String::new(),
                    last_pause_us: None,
                    last_stood_us: None,
                    last_memory: None,
                    is_in_a_checkpoint: false,
                    has_parted: false,
                    rank: 0,
                })
                .await;
            let socket = reader.as_ref().as_raw_fd();
            let mut listening = pin!(listen(computation, id, reader));
            let result = tokio::select! {
                result = &mut listening => result,
                Ok(()) = pidfd.ended() => {
                    // What it said last may not have been read: that it has dumped itself. A child that the library did not see being
                    // made may keep the connection open, which ends behind that so.
                    let _ = shutdown(socket, Shutdown::Read);
                    listening.await
                }
            };
            computation.leave(id).await;
            dormant::call_the_last(computation);
            writing.abort();
            serving.abort();
            result
        }
    }
}

fn another_version(version: u32) -> io::Error {
    io::Error::other(format!("it speaks version {version} and this is version {VERSION}"))
}

/// argv for people, and not longer than they read: it is in every checkpoint's record.
fn command_line(argv: &[String]) -> String {
    const LONGEST: usize = 1024;
    let line = argv.join(" ");
    // What follows the last zero byte of /proc/PID/cmdline is no argument.
    let line = line.trim_end();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Has the store server running before the first checkpoint asks for it, and keeps it while the process is there.
async fn hold_store(directory: PathBuf) {
    /// Programs that end sooner need no store.
    const SHORT_LIVED: Duration = Duration::from_millis(100);
    sleep(SHORT_LIVED).await;
    let opened = spawn_blocking(move || store::connect_or_start(&directory)).await;
    // A store that cannot be opened is told when a checkpoint is asked for.
    let Ok(Ok(_client)) = opened else { return };
    pending::<()>().await;
}

/// Writes a process' messages. When it ends, so does the channel, which is how a sender is told.
async fn deliver(mut messages: mpsc::Receiver<Outgoing>, mut writer: OwnedWriteHalf) {
    while let Some(outgoing) = messages.recv().await {
        if let Err(error) = message::deliver(&mut writer, outgoing).await {
            log::line(format_args!("a process cannot be written to: {error}"));
            return;
        }
    }
}

/// Reads a process' messages.
async fn listen(computation: &Computation, id: u64, mut reader: OwnedReadHalf) -> io::Result<()> {
    while let Some(message) = message::read::<FromProcess>(&mut reader).await? {
        computation.said(id, message).await;
    }
    Ok(())
}

async fn serve_client(
    computation: &Rc<Computation>,
    mut reader: Reader<impl AsyncRead + Unpin + 'static>,
    mut writer: Writer<impl AsyncWrite + Unpin>,
    from: From,
) -> io::Result<()> {
    // Requests are read while one is carried out, to see the client go away.
    let (requests, mut incoming) = mpsc::channel(1);
    let (present, mut leaving) = watch::channel(());
    let reading = spawn_local(async move {
        let _present = present;
        while let Some(request) = reader.read::<ClientRequest>().await? {
            if requests.send(request).await.is_err() {
                break;
            }
        }
        Ok(())
    });
    let _reading = AbortOnDrop(reading.abort_handle());
    let client = Client::new(computation);
    while let Some(request) = incoming.recv().await {
        if let Some(refusal) = needs_to_be_here(&request).filter(|_| from == From::Afar) {
            writer.write(&ClientReply::Refused(vec![refusal])).await?;
            continue;
        }
        let ends = request == ClientRequest::Shutdown;
        let reply = tokio::select! {
            reply = carry_out(computation, client.id, request) => reply,
            // Only what waits is given up: a checkpoint that has begun is a task of its own.
            _ = leaving.changed() => break,
        };
        writer.write(&reply).await?;
        if ends {
            computation.shutdown.notify_one();
        }
    }
    reading.await.unwrap_or(Ok(()))
}

/// A command that is there.
struct Client<'a> {
    computation: &'a Computation,
    id: ClientId,
}

impl<'a> Client<'a> {
    fn new(computation: &'a Computation) -> Self {
        Self { computation, id: computation.number_client() }
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.computation.client_left(self.id);
    }
}

pub struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a command on another host is not given what it asks for: pids and files of this host are meant by it.
fn needs_to_be_here(request: &ClientRequest) -> Option<Refusal> {
    let what = match request {
        ClientRequest::Checkpoint { without, .. } if without.is_empty() => return None,
        ClientRequest::Status
        | ClientRequest::Kill
        | ClientRequest::Interval { lasts: IntervalLasts::Coordinator, .. }
        | ClientRequest::Shutdown => return None,
        ClientRequest::Checkpoint { .. } => "a checkpoint without some processes",
        ClientRequest::Interval { .. } => "an interval of a computation that is launched",
        ClientRequest::AwaitProcess { .. } | ClientRequest::AwaitProcesses { .. } => "to wait for a process",
        ClientRequest::Resume { .. } => "a restart",
        ClientRequest::Listen { .. } => "to listen",
    };
    Some(Refusal {
        what: what.into(),
        reason: "cannot be asked for over TCP: it is about pids and files of the coordinator's host".into(),
        remedy: "run `stasis` there".into(),
    })
}

async fn carry_out(computation: &Rc<Computation>, client: ClientId, request: ClientRequest) -> ClientReply {
    match request {
        ClientRequest::Checkpoint { kill, label, without, outside } => {
            let turn = computation.turn.clone().lock_owned().await;
            let order = Order { kill, label, without, outside };
            let taking = spawn_local(checkpoint::take(Rc::clone(computation), order, turn));
            match taking.await {
                Ok(Ok(Taken { record, outside })) => ClientReply::Checkpoint { record, outside },
                Ok(Err(refusals)) => ClientReply::Refused(refusals),
                Err(error) => failed("the checkpoint", &error),
            }
        }
        ClientRequest::Status => match computation.status() {
            Ok(mut status) => {
                status.processes.extend(dormant::find(computation).into_iter().filter_map(dormant::status));
                ClientReply::Status(status)
            }
            Err(error) => failed("the status", &error),
        },
        ClientRequest::Kill => kill(computation).await,
        ClientRequest::Interval { micros, lasts } => {
            interval::set(computation, micros.map(Duration::from_micros), lasts);
            ClientReply::Done { count: 0 }
        }
        ClientRequest::AwaitProcesses { processes } => {
            let mut changes = computation.changes();
            while computation.joined() < processes && changes.changed().await.is_ok() {}
            ClientReply::Done { count: computation.joined() }
        }
        ClientRequest::AwaitProcess { real_pid } => await_process(computation, real_pid).await,
        ClientRequest::Resume { computation: id, checkpoint, processes } => {
            match computation.resume(client, id, checkpoint, &processes) {
                Ok(()) => ClientReply::Done { count: 0 },
                Err(refusal) => ClientReply::Refused(vec![refusal]),
            }
        }
        ClientRequest::Shutdown => ClientReply::Done { count: 0 },
        ClientRequest::Listen { at, token_file } => {
            let listen = Listen { at, token_file: token_file.into() };
            match tcp::listen(computation, &listen).await {
                Ok(()) => ClientReply::Done { count: 0 },
                Err(Failure::Refused(refusals)) => ClientReply::Refused(refusals),
                Err(error) => failed("to listen", &error),
            }
        }
    }
}

async fn await_process(computation: &Computation, real_pid: u32) -> ClientReply {
    let ended = || {
        ClientReply::Refused(vec![Refusal {
            what: format!("pid {real_pid}"),
            reason: "ended before it joined the computation".into(),
            remedy: "run it without --detach to see why".into(),
        }])
    };
    let Ok(pidfd) = Pidfd::open(real_pid) else { return ended() };
    let mut changes = computation.changes();
    loop {
        let here =
            computation.with_members(|members| members.values().any(|member| member.real_pid == real_pid));
        if here {
            return ClientReply::Done { count: 1 };
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = pidfd.ended() => return ended(),
        }
    }
}

/// Ends every process.
async fn kill(computation: &Computation) -> ClientReply {
    /// Those that do not answer end all the same; they may stand stopped.
    const PART_DEADLINE: Duration = Duration::from_millis(300);
    checkpoint::tell(computation, &ToProcess::Part);
    computation.await_parting(PART_DEADLINE).await;
    let mut targets: Vec<(String, Rc<Pidfd>)> = computation.with_members(|members| {
        members.values().map(|member| (member.name(), Rc::clone(&member.pidfd))).collect()
    });
    let dormant = dormant::find(computation).into_iter();
    targets.extend(dormant.filter_map(|pid| Some((format!("pid {pid}"), Rc::new(Pidfd::open(pid).ok()?)))));
    let mut refusals = Vec::new();
    let mut refuse = |name: &String, reason: String| {
        let remedy = "see `stasis status` and end it as root".into();
        refusals.push(Refusal { what: name.clone(), reason, remedy });
    };
    let mut ending = Vec::new();
    for (name, pidfd) in &targets {
        match pidfd.signal(libc::SIGKILL) {
            Ok(()) => ending.push((name, pidfd)),
            // It was faster.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => refuse(name, format!("cannot be killed: {error}")),
        }
    }
    let count = ending.len() as u32;
    let until = Instant::now() + KILL_DEADLINE;
    for (name, pidfd) in ending {
        if timeout_at(until, pidfd.ended()).await.is_err() {
            refuse(name, "was killed and does not end".into());
        }
    }
    if refusals.is_empty() { ClientReply::Done { count } } else { ClientReply::Refused(refusals) }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> ClientReply {
    ClientReply::Refused(vec![Refusal {
        what: what.into(),
        reason: error.to_string(),
        remedy: "see the coordinator's log".into(),
    }])
}
