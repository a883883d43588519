//! Stasis, with a store and a coordinator of the session's own.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{STASIS, Session, Taken, Tool, timed};
use crate::place::{self, Started};

/// How long a program may take until its coordinator knows it.
const JOINED: Duration = Duration::from_secs(30);

pub struct Stasis {
    stasis: PathBuf,
    server: PathBuf,
    library: PathBuf,
}

impl Stasis {
    /// # Errors
    /// When it has not been built.
    pub fn find() -> anyhow::Result<Self> {
        place::binary("stasis-restorer")?;
        Ok(Self {
            stasis: place::binary("stasis")?,
            server: place::binary("stasis-store")?,
            library: place::binary("libstasis.so")?,
        })
    }
}

impl Tool for Stasis {
    fn name(&self) -> &'static str {
        STASIS
    }

    fn is_present_at_run_time(&self) -> bool {
        true
    }

    fn open(&self, directory: &Path) -> anyhow::Result<Box<dyn Session>> {
        Ok(Box::new(StasisSession::open(self, directory)?))
    }
}

pub struct StasisSession {
    directory: PathBuf,
    stasis: PathBuf,
    library: PathBuf,
    coordinator: u32,
    last: Option<String>,
    _server: Started,
}

impl StasisSession {
    /// Starts coordinator and store server.
    ///
    /// # Errors
    /// When one does not start.
    pub fn open(tool: &Stasis, directory: &Path) -> anyhow::Result<Self> {
        let mut server = place::command(&tool.server, directory)?;
        server.arg(directory.join("store")).arg("--foreground").stdout(Stdio::piped());
        let mut server = Started::new(&mut server)?;
        let mut said = String::new();
        let stdout = server.child().stdout.take().context("a pipe was asked for")?;
        BufReader::new(stdout).read_line(&mut said)?;
        ensure!(said.starts_with("listening"), "the store server did not start; it said {said:?}");

        let mut session = Self {
            directory: directory.to_owned(),
            stasis: tool.stasis.clone(),
            library: tool.library.clone(),
            coordinator: 0,
            last: None,
            _server: server,
        };
        let started = session.json(&["coordinator", "--idle-seconds", "600"])?;
        session.coordinator = number(&started, "coordinator_pid")?.try_into()?;
        Ok(session)
    }

    fn address(&self) -> String {
        format!("unix:{}", self.directory.join("coordinator").display())
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = place::command(&self.stasis, &self.directory)?;
        command
            .args(arguments)
            .env("STASIS_STORE", self.directory.join("store"))
            .env("STASIS_COORD", self.address())
            .env("STASIS_LIB", &self.library);
        Ok(command)
    }

    fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = place::succeed(self.command(arguments)?.arg("--json"))?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// As [`Session::launch`], with a checkpoint every so many seconds; 0: none.
    ///
    /// # Errors
    /// As there.
    pub fn launch_with_interval(&self, program: &[&OsStr], seconds: f64) -> anyhow::Result<Command> {
        let mut command = self.command(&["launch", "--interval", &seconds.to_string(), "--"])?;
        command.args(program);
        Ok(command)
    }

    /// The program with nothing but the library put into it: what `stasis launch` itself costs is left out.
    ///
    /// # Errors
    /// As [`Session::launch`].
    pub fn preload(&self, program: &[&OsStr]) -> anyhow::Result<Command> {
        let [program, arguments @ ..] = program else { anyhow::bail!("no program is named") };
        let mut command = place::command(program, &self.directory)?;
        command
            .args(arguments)
            .env("LD_PRELOAD", &self.library)
            .env("STASIS_STORE", self.directory.join("store"))
            .env("STASIS_COORD", self.directory.join("coordinator"));
        Ok(command)
    }

    /// The command that restarts the program from a checkpoint, with more arguments.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub fn restart_with(&self, id: &str, arguments: &[&str]) -> anyhow::Result<Command> {
        self.command(&[&["restart", id], arguments].concat())
    }

    /// The last checkpoint.
    ///
    /// # Errors
    /// When there is none.
    pub fn last(&self) -> anyhow::Result<String> {
        self.last.clone().context("no checkpoint has been taken")
    }

    /// How the memory of the restarted program arrives, as `stasis status` tells it; null: no pager looks after it (yet).
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub fn arriving(&self) -> anyhow::Result<Value> {
        Ok(self.json(&["status"])?["processes"][0]["memory"].clone())
    }

    /// Restarts so many clones; their pids. They are this process' children from then on, as orphans.
    ///
    /// # Errors
    /// When one cannot be.
    pub fn clones(&self, id: &str, count: usize) -> anyhow::Result<Vec<u32>> {
        let told = self.json(&["restart", id, "--clones", &count.to_string(), "--detach"])?;
        let clones = told["clones"].as_array().context("clones are listed")?;
        let pid = |clone: &Value| Some(clone["pids"].as_array()?.first()?.as_u64()? as u32);
        clones.iter().map(|clone| pid(clone).with_context(|| format!("no pid in {clone}"))).collect()
    }

    /// The pid of the one process that runs.
    ///
    /// # Errors
    /// When there is none.
    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(number(&self.json(&["status"])?["processes"][0], "real_pid")?.try_into()?)
    }

    /// How many checkpoints were taken, and how many failed.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub fn checkpoints(&self) -> anyhow::Result<(u64, u64)> {
        let status = self.json(&["status"])?;
        Ok((number(&status, "checkpoints_taken")?, number(&status, "checkpoints_failed")?))
    }
}

impl Session for StasisSession {
    fn launch(&self, program: &[&OsStr]) -> anyhow::Result<Command> {
        let mut command = self.command(&["launch", "--"])?;
        command.args(program);
        Ok(command)
    }

    /// The program does not wait for its coordinator. No command awaits a program that is there already: the
    /// coordinator is asked until it knows it.
    fn await_joined(&self, pid: u32) -> anyhow::Result<()> {
        let until = Instant::now() + JOINED;
        while Instant::now() < until {
            let status = self.json(&["status"])?;
            let processes = status["processes"].as_array().context("a status has processes")?;
            if processes.iter().any(|process| process["real_pid"] == pid) {
                return Ok(());
            }
        }
        bail!("pid {pid} has not joined its computation within {} s", JOINED.as_secs())
    }

    fn checkpoint(&mut self, _pid: u32) -> anyhow::Result<Taken> {
        let (latency, printed) = timed(self.command(&["checkpoint"])?.arg("--json"))?;
        let checkpoint: Value = serde_json::from_slice(&printed)?;
        self.last = Some(checkpoint["id"].as_str().context("a checkpoint has an id")?.to_owned());
        Ok(Taken {
            latency,
            said_pause: Some(Duration::from_micros(number(&checkpoint, "pause_us")?)),
            said_written: Some(number(&checkpoint, "written_bytes")?),
        })
    }

    fn restart(&self) -> anyhow::Result<Command> {
        let id = self.last.as_deref().context("no checkpoint has been taken")?;
        self.command(&["restart", "--eager", id])
    }

    fn image_bytes(&self) -> u64 {
        place::disk_usage(&self.directory.join("store"))
    }

    fn ask(&self) -> anyhow::Result<Option<Duration>> {
        Ok(Some(timed(&mut self.command(&["status"])?)?.0))
    }
}

impl Drop for StasisSession {
    fn drop(&mut self) {
        // A program that still runs is one that a measurement failed with.
        let failed = ["kill", "coordinator"].map(|command| {
            let stop: &[&str] = if command == "coordinator" { &[command, "--stop"] } else { &[command] };
            self.command(stop).and_then(|mut command| place::succeed(&mut command)).err()
        });
        match failed {
            [_, None] => place::collect(self.coordinator),
            [_, Some(error)] => eprintln!("the coordinator did not end: {error:#}"),
        }
    }
}

fn number(value: &Value, name: &str) -> anyhow::Result<u64> {
    value[name].as_u64().with_context(|| format!("no number {name} in {value}"))
}
