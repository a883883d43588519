//! A program that was started: what it writes, its go, its end.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::Mutex,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    DEADLINE,
    lab::Lab,
    outcome::shell_code,
    process::ProcessHandle,
    watch::{self, Waited},
};

/// Where a program's output goes, and the file that it waits for; a restarted one has the same.
#[derive(Clone, Debug)]
pub struct Files {
    pub stdout: PathBuf,
    pub stderr: PathBuf,
    pub go: PathBuf,
}

/// A started program: the process that was started for it (`stasis launch` becomes the program; `stasis
/// restart` stands for it). Dropped, it is killed.
pub struct Running {
    lab: Lab,
    child: Mutex<Option<Child>>,
    process: ProcessHandle,
    command: String,
    files: Files,
}

impl Running {
    pub(crate) fn new(lab: Lab, child: Child, command: String, files: Files) -> Self {
        let process =
            ProcessHandle::open(child.id()).expect("the pidfd of a child that is not collected yet");
        Self { lab, child: Mutex::new(Some(child)), process, command, files }
    }

    /// The pid of the process that was started.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.files.stdout).unwrap_or_default()).into_owned()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.files.stderr).unwrap_or_default()).into_owned()
    }

    /// Waits for the line `ready`.
    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait_line("ready");
    }

    /// Waits until one of the lines on standard output is `line`.
    #[track_caller]
    pub fn wait_line(&self, line: &str) {
        let expected = line.as_bytes();
        let waited = watch::content(&self.files.stdout, &self.process, DEADLINE, |content| {
            let Some(end) = content.iter().rposition(|byte| *byte == b'\n') else { return false };
            content[..end].split(|byte| *byte == b'\n').any(|found| found == expected)
        });
        self.must_have_come(waited, &format!("the line `{line}`"));
    }

    /// Waits until `is_there(standard output)`; `what` names it in the message of a failure.
    #[track_caller]
    pub fn wait_output(&self, what: &str, mut is_there: impl FnMut(&str) -> bool) {
        let waited = watch::content(&self.files.stdout, &self.process, DEADLINE, |content| {
            is_there(&String::from_utf8_lossy(content))
        });
        self.must_have_come(waited, what);
    }

    /// Waits until a file has grown to `bytes` bytes.
    #[track_caller]
    pub fn wait_size(&self, path: &Path, bytes: u64) {
        let waited = watch::size(path, &self.process, DEADLINE, bytes);
        self.must_have_come(waited, &format!("{bytes} bytes in {}", path.display()));
    }

    #[track_caller]
    fn must_have_come(&self, waited: Waited, what: &str) {
        match waited {
            Waited::Come => {}
            Waited::Ended => panic!("`{}` ended before {what} came{}", self.command, self.lab.evidence()),
            Waited::TimedOut => {
                panic!("`{}`: {what} did not come in {DEADLINE:?}{}", self.command, self.lab.evidence())
            }
        }
    }

    /// Lets the program verify its state: makes the file that it waits for.
    #[track_caller]
    pub fn go(&self) {
        File::create(&self.files.go).unwrap_or_else(|error| panic!("{}: {error}", self.files.go.display()));
    }

    /// Lets the program verify its state, and asserts that it finds all right.
    #[track_caller]
    pub fn expect_ok(self) {
        self.go();
        let status = self.end(DEADLINE);
        let stdout = self.stdout();
        assert!(
            status.success() && stdout.lines().last() == Some("ok"),
            "`{}`: {status}, and its last line should be `ok`{}",
            self.command,
            self.lab.evidence()
        );
    }

    /// Sends a signal to the process that was started.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal).unwrap_or_else(|error| panic!("{signal} to `{}`: {error}", self.command));
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.process.wait_ended(Duration::ZERO)
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait_exit(self) -> ExitStatus {
        self.end(DEADLINE)
    }

    /// Waits for the end and asserts that the status, as a shell's `$?`, is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) {
        let status = self.end(DEADLINE);
        assert_eq!(shell_code(status), code, "`{}`: {status}{}", self.command, self.lab.evidence());
    }

    /// Waits for the end for as long as work may take that is longer than a step.
    #[track_caller]
    pub fn wait_exit_within(self, deadline: Duration) -> ExitStatus {
        self.end(deadline)
    }

    #[track_caller]
    fn end(&self, deadline: Duration) -> ExitStatus {
        if !self.process.wait_ended(deadline) {
            panic!("`{}` has not ended after {deadline:?}{}", self.command, self.lab.evidence());
        }
        let mut child = self.child.lock().expect("no test panicked holding it");
        child.as_mut().expect("only dropping takes it").wait().expect("the child's status")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(mut child) = self.child.lock()
            && let Some(mut child) = child.take()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
