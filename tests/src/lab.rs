//! A place of its own for each test: store, coordinator, working directory, logs; and an end to all
//! that was started there.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    DEADLINE,
    launch::{Kind, Launch},
    outcome::Outcome,
    process::{self, ProcessHandle},
    running::{Files, Running},
    slowness,
};

/// The variable by which the processes of a lab are known, in the environment of every one of them:
/// restarted ones too, whose environment comes back with their memory.
const MARK: &str = "STASIS_TEST_LAB";

/// A private store, coordinator and working directory. Dropped, it ends every process started in it.
#[derive(Clone)]
pub struct Lab {
    place: Arc<Place>,
    coordinator: String,
    store: PathBuf,
}

pub(crate) struct Place {
    directory: TempDir,
    started: AtomicU32,
    last_launched: Mutex<Option<Files>>,
}

impl Lab {
    #[allow(clippy::new_without_default, reason = "it makes a directory and changes the process")]
    #[track_caller]
    pub fn new() -> Self {
        process::adopt_orphans();
        let directory =
            tempfile::Builder::new().prefix("stasis-lab-").tempdir().expect("a directory for the lab");
        for part in ["work", "run"] {
            fs::create_dir(directory.path().join(part)).expect("a directory of the lab");
        }
        let coordinator = format!("unix:{}", directory.path().join("coord.sock").display());
        let store = directory.path().join("store");
        Self {
            place: Arc::new(Place { directory, started: AtomicU32::new(0), last_launched: Mutex::default() }),
            coordinator,
            store,
        }
    }

    /// The same lab, seen through another coordinator.
    pub fn with_coordinator(&self, name: &str) -> Self {
        let address = format!("unix:{}", self.place.path().join(name).display());
        Self { coordinator: address, ..self.clone() }
    }

    /// The same lab with another directory as its store.
    pub fn with_store(&self, store: &Path) -> Self {
        Self { store: store.to_owned(), ..self.clone() }
    }

    /// Where programs are started: for files that a test makes.
    pub fn work(&self) -> PathBuf {
        self.place.path().join("work")
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Runs a command without Stasis, but otherwise as [`Lab::launch`] would.
    pub fn native<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Launch {
        Launch::new(self, Kind::Native, command)
    }

    /// Prepares `stasis launch -- COMMAND`.
    pub fn prepare<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Launch {
        Launch::new(self, Kind::Launch, command)
    }

    /// `stasis launch -- COMMAND`, output to files.
    #[track_caller]
    pub fn launch<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Running {
        self.prepare(command).start()
    }

    /// Prepares `stasis restart ARGUMENTS`, which continues what was launched last.
    pub fn prepare_restart<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Launch {
        Launch::new(self, Kind::Restart, arguments)
    }

    /// `stasis restart ARGUMENTS` of what was launched last.
    #[track_caller]
    pub fn restart<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        self.prepare_restart(arguments).start()
    }

    /// Takes a checkpoint and returns its id.
    ///
    /// # Panics
    /// When it is refused or fails, or what it prints is no id.
    #[track_caller]
    pub fn checkpoint(&self, arguments: &[&str]) -> String {
        let outcome = self.try_checkpoint(arguments);
        assert!(outcome.status.success(), "{outcome}{}", self.evidence());
        let id = outcome.stdout.trim();
        assert!(
            id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "expected a checkpoint's id: {outcome}"
        );
        id.to_owned()
    }

    /// Asks for a checkpoint, whatever comes of it.
    #[track_caller]
    pub fn try_checkpoint(&self, arguments: &[&str]) -> Outcome {
        self.run(["checkpoint"].iter().chain(arguments))
    }

    /// Takes a checkpoint with `--kill`, waits for the program's end and returns the checkpoint's id.
    #[track_caller]
    pub fn checkpoint_kill(&self, running: Running) -> String {
        self.wait_joined(&running);
        let id = self.checkpoint(&["--kill"]);
        let status = running.wait_exit();
        assert_eq!(
            crate::outcome::shell_code(status),
            128 + libc::SIGKILL,
            "checkpoint --kill ends it by SIGKILL"
        );
        id
    }

    /// Waits until the coordinator knows of a process: a restarted program can be checkpointed from then on. No event
    /// says so to others, so `stasis status` is asked until it does.
    #[track_caller]
    pub fn wait_joined(&self, running: &Running) {
        let end = Instant::now() + DEADLINE;
        let joined = || {
            let outcome = self.run(["status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
            status["processes"].as_array().is_some_and(|processes| !processes.is_empty())
        };
        while !joined() {
            assert!(!running.has_ended(), "it has ended before it joined a coordinator{}", self.evidence());
            assert!(Instant::now() < end, "no coordinator knows it after {DEADLINE:?}{}", self.evidence());
        }
    }

    /// Runs `stasis ARGUMENTS` to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        let mut command = self.stasis();
        command.args(arguments);
        Outcome::of(&mut command, self.place.path(), DEADLINE)
    }

    /// What `stasis ARGUMENTS --json` prints.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> serde_json::Value {
        let mut command = self.stasis();
        command.args(arguments).arg("--json");
        let outcome = Outcome::of(&mut command, self.place.path(), DEADLINE).expect_success();
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {outcome}"))
    }

    /// How the pager of the first process goes on, as `stasis status` tells.
    #[track_caller]
    pub fn memory(&self) -> serde_json::Value {
        self.json(["status"])["processes"][0]["memory"].take()
    }

    /// The command `stasis`, with this lab's environment.
    pub fn stasis(&self) -> Command {
        self.command(binary("stasis"))
    }

    /// A command with this lab's environment, in its working directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("STASIS_") {
                command.env_remove(name);
            }
        }
        command
            .env_remove("LD_PRELOAD")
            .env("STASIS_COORD", &self.coordinator)
            .env("STASIS_STORE", &self.store)
            .env("XDG_RUNTIME_DIR", self.place.path().join("run"))
            // Another one than the machine's, and none unless the test starts it.
            .env("STASIS_TRACER", self.tracer_directory().join("socket"))
            .env("XDG_STATE_HOME", self.place.path().join("run"))
            .env(MARK, self.place.path())
            .current_dir(self.work());
        if slowness() > 1 {
            command.env("STASIS_DEADLINE_SECONDS", (10 * slowness()).to_string());
        }
        inherit_standard_descriptors_only(&mut command);
        command
    }

    /// Where the lab's tracer has its socket: beside the lab, since other users must reach it.
    pub(crate) fn tracer_directory(&self) -> PathBuf {
        let mut name = self.place.path().as_os_str().to_owned();
        name.push("-tracer");
        name.into()
    }

    /// The processes of this lab whose `comm` (at most 15 bytes) is `name`.
    pub fn processes(&self, name: &str) -> Vec<ProcessHandle> {
        let mut found = process::with_environment(&self.place.mark());
        found.retain(|process| process.comm() == name);
        found
    }

    /// The coordinator of this lab, as `stasis status` names it.
    #[track_caller]
    pub fn coordinator(&self) -> ProcessHandle {
        let status = self.json(["status"]);
        let pid =
            status["coordinator_pid"].as_u64().unwrap_or_else(|| panic!("no coordinator_pid: {status:#}"));
        ProcessHandle::open(pid as u32).expect("the coordinator is there")
    }

    pub(crate) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    pub(crate) fn evidence(&self) -> String {
        self.place.evidence()
    }
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Numbers what is started, from 1.
    pub(crate) fn next_number(&self) -> u32 {
        self.started.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What a restart continues unless it is told otherwise.
    pub(crate) fn last_launched(&self) -> Option<Files> {
        self.last_launched.lock().expect("no test panicked holding it").clone()
    }

    pub(crate) fn set_last_launched(&self, files: Files) {
        *self.last_launched.lock().expect("no test panicked holding it") = Some(files);
    }

    fn mark(&self) -> String {
        format!("{MARK}={}", self.path().display())
    }

    /// The ends of all logs of the lab, for a message about a failure.
    pub(crate) fn evidence(&self) -> String {
        let mut logs = Vec::new();
        collect_logs(self.path(), &mut logs);
        logs.sort();
        let mut text = String::new();
        for path in logs {
            let content = fs::read(&path).unwrap_or_default();
            if !content.is_empty() {
                let end = &content[content.len().saturating_sub(2000)..];
                text += &format!("\n--- {}\n{}", path.display(), String::from_utf8_lossy(end));
            }
        }
        text
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        process::end_all_with_environment(&self.mark());
    }
}

fn collect_logs(directory: &Path, logs: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_dir() {
            // RocksDB calls its journals logs too.
            if !path.ends_with("store/index") {
                collect_logs(&path, logs);
            }
        } else if kind.is_file()
            && path
                .extension()
                .is_some_and(|extension| ["log", "stdout", "stderr"].iter().any(|e| extension == *e))
        {
            logs.push(path);
        }
    }
}

/// What the test's own surroundings left open (a shell's pipes, a job server's) is no program's business here, and
/// would be one more connection to the outside in every checkpoint.
fn inherit_standard_descriptors_only(command: &mut Command) {
    let close = || {
        // SAFETY: close_range takes three integers; with this flag it closes nothing before exec.
        match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) }
        {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(close) };
}

/// A binary that `cargo xtask build` made.
///
/// # Panics
/// When it has not been made.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let path = binary_directory().join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask build` first", path.display());
    path
}

/// Where the binaries are: `STASIS_BIN_DIR`, or where this test was built.
pub fn binary_directory() -> PathBuf {
    if let Some(directory) = env::var_os("STASIS_BIN_DIR") {
        return directory.into();
    }
    // <target>/release/deps/this-test
    let this = env::current_exe().expect("the path of this test");
    this.ancestors().nth(2).expect("a test lies in <target>/<profile>/deps").to_owned()
}

/// Cargo's target directory.
pub(crate) fn target_directory() -> PathBuf {
    binary_directory().parent().expect("<target>/<profile>").to_owned()
}

/// Waits for each process to end.
///
/// # Panics
/// With the pid of the first one that has not after `deadline`.
#[track_caller]
pub fn wait_all_ended(processes: &[ProcessHandle], deadline: Duration) {
    for process in processes {
        assert!(process.wait_ended(deadline), "process {} is still there after {deadline:?}", process.pid());
    }
}
