//! The peers of a coordinator, played by the tests.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use stasis_protocol::{
    VERSION,
    coordinator::{ClientReply, ClientRequest, FromProcess, Hello, Phase, Role, ToProcess},
    store::{CheckpointRecord, DumpStats, Reply, Request},
    wire,
};
use tempfile::TempDir;

/// Long enough for any machine, short enough to end a run that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

pub const STASIS: &str = env!("CARGO_BIN_EXE_stasis");

/// Names the socket to [`play_a_process`].
pub const PLAYED: &str = "STASIS_TEST_PLAYED_PROCESS";

/// A coordinator in the foreground, with a directory for its socket and store.
pub struct Coordinator {
    child: Child,
    pub directory: TempDir,
    pub store: FakeStore,
}

impl Coordinator {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Returns when it listens.
    pub fn start_with(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = FakeStore::start(&directory.path().join("store"));
        let (mut ready, report) = io::pipe().unwrap();
        let report = OwnedFd::from(report);
        let mut command = Command::new(STASIS);
        let fd = report.as_raw_fd();
        command
            .args(["coordinator", "--foreground", "--ready-fd", &fd.to_string()])
            .args(["--coord", &address(directory.path()), "--store"])
            .arg(directory.path().join("store"))
            .args(options)
            .stderr(fs::File::create(directory.path().join("log")).unwrap());
        // SAFETY: fcntl is async-signal-safe.
        unsafe {
            command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            })
        };
        let child = command.spawn().unwrap();
        drop(report);
        let mut said = String::new();
        ready.read_to_string(&mut said).unwrap();
        assert_eq!(said, "ready");
        Self { child, directory, store }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("c")
    }

    /// A `stasis` command to it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(STASIS);
        command
            .args(args)
            .env("STASIS_COORD", address(self.directory.path()))
            .env("STASIS_STORE", self.directory.path().join("store"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command; returns its exit code and its JSON output.
    pub fn json(&self, args: &[&str]) -> (i32, serde_json::Value) {
        let output = self.command(args).arg("--json").output().unwrap();
        (output.status.code().unwrap(), parse(&output))
    }

    /// Starts a command that will be waited for with [`finish`].
    pub fn start_json(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One request of a client.
    pub fn request(&self, request: &ClientRequest) -> ClientReply {
        self.client().request(request)
    }

    pub fn client(&self) -> FakeClient {
        let mut stream = self.connect();
        stream.write_all(&wire::frame(&Hello { version: VERSION, role: Role::Client }).unwrap()).unwrap();
        assert!(matches!(receive(&mut stream), Some(ClientReply::Welcome { version: VERSION, .. })));
        FakeClient { stream }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// That it still does its work, whatever has been done to it.
    pub fn assert_well(&self) {
        let mut process = FakeProcess::join(self);
        let checkpoint = self.start_json(&["checkpoint"]);
        let token = process.expect_checkpoint().0;
        process.dump(token);
        let (code, report) = finish(checkpoint);
        assert_eq!(code, 0, "{report} {}", self.log());
        assert!(matches!(process.receive(), Some(ToProcess::Committed { kill: false, .. })));
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address(directory: &Path) -> String {
    format!("unix:{}/c", directory.display())
}

pub fn finish(child: Child) -> (i32, serde_json::Value) {
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), parse(&output))
}

fn parse(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A command.
pub struct FakeClient {
    stream: UnixStream,
}

impl FakeClient {
    pub fn request(&mut self, request: &ClientRequest) -> ClientReply {
        self.stream.write_all(&wire::frame(request).unwrap()).unwrap();
        receive(&mut self.stream).unwrap()
    }
}

/// The checkpoint thread of a process, which is this one.
pub struct FakeProcess {
    pub stream: UnixStream,
}

impl FakeProcess {
    pub fn join(coordinator: &Coordinator) -> Self {
        Self::join_as(coordinator.connect(), None)
    }

    pub fn join_as(stream: UnixStream, restarted_from: Option<&str>) -> Self {
        let mut process = Self { stream };
        let argv = vec!["fake".into(), "process".into()];
        let pid = std::process::id();
        process.send(&Hello {
            version: VERSION,
            role: Role::Process {
                pid,
                argv,
                restarted_from: restarted_from.map(Into::into),
                stops: false,
                epoch: 0,
            },
        });
        assert!(matches!(process.receive(), Some(ToProcess::Welcome { version: VERSION, .. })));
        process
    }

    pub fn send(&mut self, message: &impl Serialize) {
        self.stream.write_all(&wire::frame(message).unwrap()).unwrap();
    }

    /// `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<ToProcess> {
        receive(&mut self.stream)
    }

    /// The token, and whether to hold.
    pub fn expect_checkpoint(&mut self) -> (u64, bool) {
        match self.receive() {
            Some(ToProcess::Checkpoint { token, hold, .. }) => (token, hold),
            other => panic!("{other:?}"),
        }
    }

    pub fn phase(&mut self, token: u64, phase: Phase) {
        self.send(&FromProcess::Phase { token, phase });
    }

    pub fn dump(&mut self, token: u64) {
        self.dump_as(token, "wp-async");
    }

    fn dump_as(&mut self, token: u64, tracker: &str) {
        let stats = DumpStats { pages: 256, received: 16, written: 8, zero: 2, bytes: 8 * 4096 };
        let tracker = tracker.into();
        self.send(&FromProcess::Dumped {
            token,
            manifest: [7; 32],
            stats,
            pause_us: 850,
            stood_us: 850,
            memory: 4 << 20,
            tracker,
        });
    }
}

/// Receives a message; `None` at the end of the connection.
pub fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> Option<T> {
    let mut header = [0; wire::HEADER];
    match stream.read_exact(&mut header) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            return None;
        }
        result => result.unwrap(),
    }
    let mut payload = vec![0; wire::payload_len(header).unwrap()];
    stream.read_exact(&mut payload).unwrap();
    Some(wire::decode(&payload).unwrap())
}

/// A store server that keeps checkpoints in memory.
pub struct FakeStore {
    pub kept: Arc<Mutex<Vec<CheckpointRecord>>>,
    pub discarded: Arc<Mutex<Vec<u64>>>,
    /// Commits are refused while this is set.
    pub full: Arc<AtomicBool>,
}

impl FakeStore {
    fn start(directory: &Path) -> Self {
        let socket = directory.join("s");
        fs::create_dir(directory).unwrap();
        // Who launches looks whether this is a store.
        fs::write(directory.join("FORMAT"), "").unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        fs::write(directory.join("LOCK"), format!("{}\n{}\n", std::process::id(), socket.display())).unwrap();
        let store = Self { kept: Arc::default(), discarded: Arc::default(), full: Arc::default() };
        let shared = Self {
            kept: Arc::clone(&store.kept),
            discarded: Arc::clone(&store.discarded),
            full: Arc::clone(&store.full),
        };
        let shared = Arc::new(shared);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.serve(&mut stream.unwrap()));
            }
        });
        store
    }

    fn serve(&self, stream: &mut UnixStream) {
        while let Some(request) = receive::<Request>(stream) {
            let reply = self.answer(request);
            if stream.write_all(&wire::frame(&reply).unwrap()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: Request) -> Reply {
        let mut kept = self.kept.lock().unwrap();
        match request {
            Request::Hello { .. } => Reply::Welcome { version: VERSION, server_pid: std::process::id() },
            Request::Commit { .. } if self.full.load(Ordering::SeqCst) => {
                Reply::Refused("the file system is full; make room".into())
            }
            Request::Commit { draft, .. } => {
                let sequence = kept.len() as u64 + 1;
                let id = format!("{sequence:016x}");
                let record = CheckpointRecord { id, sequence, taken_us: sequence * 1_000_000, draft };
                kept.push(record.clone());
                Reply::Committed(record)
            }
            Request::Discard { token } => {
                self.discarded.lock().unwrap().push(token);
                Reply::Done
            }
            Request::List => Reply::Checkpoints(kept.clone()),
            Request::Resolve { reference } => {
                match kept.iter().find(|record| record.id.ends_with(&reference)) {
                    Some(record) => Reply::Checkpoint(record.clone()),
                    None => Reply::Refused(format!("{reference}: no such checkpoint")),
                }
            }
            other => Reply::Refused(format!("not played here: {other:?}")),
        }
    }
}

/// Another process of this program that plays a process of the computation until it is killed: what is
/// to be killed or stopped cannot be the tests themselves.
pub fn spawn_player(coordinator: &Coordinator) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "peers::play_a_process", "--nocapture"]).env(PLAYED, coordinator.socket());
    command.stdout(Stdio::piped()).stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    // The harness prints lines of its own first.
    let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().ends_with("joined")));
    child
}

/// Not a test: the body of [`spawn_player`].
#[test]
fn play_a_process() {
    let Some(socket) = std::env::var_os(PLAYED) else { return };
    // As the library names its thread.
    // SAFETY: PR_SET_NAME reads a string that ends in NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"stasis-ckpt".as_ptr()) };
    let mut process = FakeProcess::join_as(UnixStream::connect(socket).unwrap(), None);
    println!("joined");
    while let Some(message) = process.receive() {
        match message {
            ToProcess::Checkpoint { token, was_stopped, .. } => {
                process.phase(token, Phase::Snapshotting);
                process.dump_as(token, if was_stopped { "was stopped" } else { "wp-async" });
            }
            ToProcess::Committed { kill: true, .. } => std::process::abort(),
            _ => {}
        }
    }
    // Not through the harness, which would print to a pipe that nobody reads.
    std::process::exit(0);
}
