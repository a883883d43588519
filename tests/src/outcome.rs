//! A command that was run to its end, with what it said.

use std::{
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::process::ProcessHandle;

/// How a command ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Runs a command to its end.
    ///
    /// Output goes through files in `directory` and not through pipes: what the command starts in the
    /// background may hold a pipe open for as long as it lives.
    ///
    /// # Panics
    /// When it cannot be started, or has not ended after `deadline`: it is killed then.
    #[track_caller]
    pub fn of(command: &mut Command, directory: &Path, deadline: Duration) -> Self {
        let described = describe(command);
        let files =
            tempfile::Builder::new().prefix("run-").tempdir_in(directory).expect("a directory for output");
        let (stdout, stderr) = (files.path().join("stdout"), files.path().join("stderr"));
        let mut child = command
            .stdout(File::create(&stdout).expect("a file for stdout"))
            .stderr(File::create(&stderr).expect("a file for stderr"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{described}: {error}"));
        let handle = ProcessHandle::open(child.id()).expect("the pidfd of a child that is not collected yet");
        let ended = handle.wait_ended(deadline);
        if !ended {
            let _ = handle.signal(Signal::SIGKILL);
        }
        let status = child.wait().expect("the child's status");
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let outcome = Self { command: described, status, stdout: read(&stdout), stderr: read(&stderr) };
        assert!(ended, "not ended after {deadline:?}, killed: {outcome}");
        outcome
    }

    /// The status as a shell's `$?` has it: the exit code, or 128 and the signal's number.
    pub fn code(&self) -> i32 {
        shell_code(self.status)
    }

    /// Asserts that the command exited 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Asserts that the command failed and that what it said to the user contains every one of `words`
    /// (in any case).
    #[track_caller]
    pub fn expect_refusal(self, words: &[&str]) -> Self {
        assert!(self.status.code().is_some_and(|code| code != 0), "expected a refusal: {self}");
        let said = self.stderr.to_lowercase();
        for word in words {
            assert!(said.contains(&word.to_lowercase()), "the refusal does not name `{word}`: {self}");
        }
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        write!(f, "`{command}`: {status}\n--- its stdout\n{stdout}\n--- its stderr\n{stderr}")
    }
}

/// See [`Outcome::code`].
pub fn shell_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The command line as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
