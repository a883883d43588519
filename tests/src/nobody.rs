//! Stasis as a user without privileges runs it, in tests that are root's.

use std::{
    fs,
    io::{PipeReader, pipe},
    os::unix::{fs::chown, process::ExitStatusExt},
    path::PathBuf,
    time::Instant,
};

use crate::{DEADLINE, Lab, Outcome, Running, compile, lab::binary};

/// The pids of the first process, as `stasis status --json` has them: its own and the kernel's.
fn of_status(status: &serde_json::Value) -> Option<(u64, u64)> {
    let process = &status["processes"][0];
    Some((process["pid"].as_u64()?, process["real_pid"].as_u64()?))
}

/// What uid 65534 runs, and where: the binaries of this build may lie where only root looks.
pub struct Nobody {
    pub lab: Lab,
    pub binaries: PathBuf,
}

impl Nobody {
    pub const ID: u32 = 65534;

    /// With these of the test programs. To be called as root.
    ///
    /// # Panics
    /// When they cannot be put where that user finds them.
    #[must_use]
    pub fn new(programs: &[&str]) -> Self {
        let lab = Lab::new();
        let binaries = lab.work().join("bin");
        fs::create_dir(&binaries).unwrap();
        for name in ["stasis", "stasis-store", "stasis-restorer", "libstasis.so"] {
            fs::copy(binary(name), binaries.join(name)).unwrap();
        }
        for program in programs {
            fs::copy(compile::program(program), binaries.join(program)).unwrap();
        }
        let work = lab.work();
        let place = work.parent().unwrap();
        for directory in [place, &work, &place.join("run")] {
            chown(directory, Some(Self::ID), Some(Self::ID)).unwrap();
        }
        Self { lab, binaries }
    }

    /// A command as that user.
    #[must_use]
    pub fn command(&self, program: &str, arguments: &[&str]) -> Vec<String> {
        let id = Self::ID.to_string();
        let program = self.binaries.join(program);
        ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", program.to_str().unwrap()]
            .iter()
            .chain(arguments)
            .map(ToString::to_string)
            .collect()
    }

    /// Runs `stasis ARGUMENTS` to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let words = self.command("stasis", arguments);
        Outcome::of(self.lab.command(&words[0]).args(&words[1..]), &self.lab.work(), DEADLINE)
    }

    /// Starts `stasis ARGUMENTS` with standard output and error that are pipes, the ends of which come back: a file
    /// that the test makes is root's, and could not be opened again at a restart.
    #[track_caller]
    pub fn start(&self, arguments: &[&str]) -> (Running, [PipeReader; 2]) {
        let (output, stdout) = pipe().unwrap();
        let (errors, stderr) = pipe().unwrap();
        let prepared = self.lab.native(self.command("stasis", arguments));
        (prepared.stdout(stdout).stderr(stderr).start(), [output, errors])
    }

    /// Waits until the program has joined: its pids. The coordinator is this user's, and answers nobody else.
    #[track_caller]
    pub fn pids(&self, running: &Running) -> (u64, u64) {
        let begun = Instant::now();
        loop {
            let outcome = self.run(&["status", "--json"]);
            if let Some(pids) = serde_json::from_str(&outcome.stdout).ok().as_ref().and_then(of_status) {
                return pids;
            }
            assert!(!running.has_ended() && begun.elapsed() < DEADLINE, "{outcome}\n{}", running.stderr());
        }
    }

    #[track_caller]
    pub fn checkpoint_kill(&self, running: Running) {
        self.run(&["checkpoint", "--kill"]).expect_success();
        assert_eq!(running.wait_exit().signal(), Some(libc::SIGKILL));
    }
}
