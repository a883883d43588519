//! The service, spoken to directly: what it sees, whom it tells, what it gives, and what it makes of clients that mean
//! it no good.

mod client;
mod connections;
mod gifts;
mod hostile;
mod lifecycle;
mod limits;
mod seen;

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use stasis_tests::Tracer;
use tempfile::TempDir;

/// A user that is nobody special.
const NOBODY: u32 = 65_534;

/// A tracer in a directory that everybody can reach; `None` skips the test.
fn tracer(options: &[&str]) -> Option<(Tracer, TempDir)> {
    let directory = tempfile::Builder::new().prefix("stasis-service-").tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The name is that of the pinned programs' directory, too.
    let name = directory.path().file_name().unwrap().to_string_lossy().into_owned();
    Some((Tracer::start_in(&directory.path().join(name), options)?, directory))
}

/// A Python program that is told line by line what to do. Dropped, it is killed.
struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    /// It runs as a user, and has said `ready`.
    #[track_caller]
    fn start(uid: u32, script: &str) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.current_dir("/");
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().expect("python3 is installed (`cargo xtask test` installs it)");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut python = Self { child, input, output };
        assert_eq!(python.line(), "ready");
        python
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn go(&mut self) {
        self.say("go");
    }

    fn say(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
