//! Processes of a computation that the library is not in: who they are, who started them and why, and what can be
//! done about it. That they are there the kernel has told the tracer; why, their files tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use stasis_protocol::{
    coordinator::{ClientRequest, Refusal},
    tracer::Task,
};

use super::client::Tracer;
use crate::{
    address::Address,
    client::Client,
    elf, locate, output,
    process::{self, Pidfd},
};

/// How long a process may take to load the library and say hello, or to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process that cannot be checkpointed.
#[derive(Clone, Debug, Serialize)]
pub struct Escape {
    pub pid: u32,
    pub command: String,
    /// Who made it: `pid 12 (bash)`.
    pub creator: String,
    /// `static`, `interpreted`, `set-user-id`, `other-user`, `musl`, `environment`, `raw-clone`, `executing`, `unknown`.
    pub kind: &'static str,
    pub reason: String,
    pub remedy: String,
}

impl Escape {
    /// It may only not have said hello yet.
    fn may_join(&self) -> bool {
        matches!(self.kind, "executing" | "raw-clone")
    }
}

impl From<&Escape> for Refusal {
    fn from(escape: &Escape) -> Self {
        Self {
            what: format!(
                "pid {} ({}), made by {}",
                escape.pid,
                output::printable(&escape.command),
                output::printable(&escape.creator)
            ),
            reason: escape.reason.clone(),
            remedy: escape.remedy.clone(),
        }
    }
}

/// What the tracer knows of a computation.
pub struct Census {
    /// Processes that are tracked, by their pids.
    tasks: BTreeMap<u32, Task>,
    /// Processes that could not be tracked because of the user's limit.
    pub refused: u64,
}

/// Asks for a computation's processes; `members`, which the coordinator knows, are registered where they are not yet
/// (they joined while no tracer ran).
///
/// # Errors
/// Why the tracer does not tell.
pub fn census(tracer: &mut Tracer, address: &Address, members: &[u32]) -> anyhow::Result<Census> {
    let number = super::number(address);
    let mut known = tracer.tasks(Some(number))?;
    let mut registered = false;
    for &member in members {
        if known.0.iter().any(|task| task.pid == member) {
            continue;
        }
        if let Ok(pidfd) = Pidfd::open(member) {
            // A member that gave up its user's rights is not the user's own any more: nothing is lost but the tracking.
            registered |= tracer.register(number, &super::label(address), &pidfd).is_ok();
        }
    }
    if registered {
        known = tracer.tasks(Some(number))?;
    }
    let tasks = known.0.into_iter().map(|task| (task.pid, task)).collect();
    Ok(Census { tasks, refused: known.1.refused })
}

impl Census {
    /// The processes that are not among `members`, as they are now: one may be about to join, or to end.
    pub fn strangers(&self, members: &BTreeSet<u32>) -> Vec<Escape> {
        self.tasks
            .values()
            .filter(|task| !members.contains(&task.pid))
            .filter(|task| !is_ours(task.pid))
            .filter(|task| !matches!(crate::process::state(task.pid), None | Some('Z' | 'X')))
            .filter_map(|task| self.describe(task))
            .collect()
    }

    fn describe(&self, task: &Task) -> Option<Escape> {
        let (kind, reason, remedy) = why(task)?;
        let creator = match self.tasks.get(&task.creator) {
            Some(creator) => format!("pid {} ({})", creator.pid, creator.command),
            None => match fs::read_to_string(format!("/proc/{}/comm", task.creator)) {
                Ok(name) => format!("pid {} ({})", task.creator, name.trim_end()),
                Err(_) => format!("pid {} (which has ended)", task.creator),
            },
        };
        let command = command_line(task.pid).unwrap_or_else(|| task.command.clone());
        Some(Escape { pid: task.pid, command, creator, kind, reason, remedy })
    }
}

/// Those that are there now.
///
/// # Errors
/// Why tracer or coordinator do not tell.
pub fn present(address: &Address, client: &mut Client) -> anyhow::Result<Vec<Escape>> {
    let Some(mut tracer) = Tracer::connect()? else { return Ok(Vec::new()) };
    seen(&mut tracer, address, client)
}

fn seen(tracer: &mut Tracer, address: &Address, client: &mut Client) -> anyhow::Result<Vec<Escape>> {
    let joined: Vec<u32> = client.status()?.processes.iter().map(|process| process.real_pid).collect();
    Ok(census(tracer, address, &joined)?.strangers(&joined.into_iter().collect()))
}

/// The escapes that stay: those that join or end within a moment are none. `patient`: waits also for the ends of those
/// that will never join. Nothing is found where there is no tracer.
///
/// # Errors
/// Why tracer or coordinator do not tell.
pub fn settled(address: &Address, client: &mut Client, patient: bool) -> anyhow::Result<Vec<Escape>> {
    let Some(mut tracer) = Tracer::connect()? else { return Ok(Vec::new()) };
    let until = Instant::now() + PATIENCE;
    loop {
        let escapes = seen(&mut tracer, address, client)?;
        let left = until.saturating_duration_since(Instant::now());
        let unsettled = escapes.iter().find(|escape| patient || escape.may_join());
        match unsettled {
            Some(unsettled) if !left.is_zero() => await_change(address, unsettled.pid, left)?,
            _ => return Ok(escapes),
        }
    }
}

/// Waits until the process has joined or ended, at most so long.
fn await_change(address: &Address, pid: u32, at_most: Duration) -> anyhow::Result<()> {
    let mut client = Client::connect(address)?;
    client.send(&ClientRequest::AwaitProcess { real_pid: pid })?;
    let mut events = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::ZERO);
    // Interrupted or not: the caller looks again.
    let _ = poll(&mut events, timeout);
    Ok(())
}

/// Whether it is a part of Stasis: a program that takes its own checkpoint starts some.
pub fn is_ours(pid: u32) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let Some(executed) = identity(Path::new(&format!("/proc/{pid}/exe"))) else { return false };
    let parts = [env::current_exe().ok(), locate::find(locate::STORE_SERVER).ok()];
    parts.into_iter().flatten().any(|part| identity(&part) == Some(executed))
}

fn command_line(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|bytes| !bytes.is_empty())?;
    let words: Vec<String> = bytes
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    Some(words.join(" "))
}

/// Why the library is not in a process: the kind, the reason, the remedy. `None` when it has ended meanwhile.
fn why(task: &Task) -> Option<(&'static str, String, String)> {
    let ends = "take the checkpoint when it has ended".to_string();
    let path = format!("/proc/{}/exe", task.pid);
    let shown = fs::read_link(&path).map(|target| target.display().to_string());
    if task.secure {
        let program = shown.unwrap_or_else(|_| task.command.clone());
        let reason = format!(
            "it executes {program}, which gained rights when it was executed (set-user-id, set-group-id or file \
             capabilities): the dynamic linker ignores LD_PRELOAD there"
        );
        return Some((
            "set-user-id",
            reason,
            "take the checkpoint when it has ended, or run it outside".into(),
        ));
    }
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            let reason = format!("it cannot be looked at (uid {}): {error}", task.uid);
            return Some(("unknown", reason, "take the checkpoint as its user, or when it has ended".into()));
        }
    };
    let program = shown.unwrap_or_else(|_| task.command.clone());
    let has_library = process::has_mapped(task.pid, locate::LIBRARY.file) == Some(true);
    Some(match elf::interpreter(&file) {
        Ok(None) if has_library => (
            "interpreted",
            format!(
                "{program} interprets it: the library is in what is interpreted, and could not restart the rest"
            ),
            "launch it without, or take the checkpoint when it has ended".into(),
        ),
        Ok(None) => (
            "static",
            format!(
                "it executes {program}, which is linked statically: there is no dynamic linker to load the library"
            ),
            "link it dynamically, or take the checkpoint when it has ended".into(),
        ),
        Ok(Some(name)) if name.to_string_lossy().contains("ld-musl") => (
            "musl",
            format!("it executes {program}, which uses musl ({}); the library is for glibc", name.display()),
            "use a program for glibc, or take the checkpoint when it has ended".into(),
        ),
        Ok(Some(_)) if has_library && task.uid != task.owner => (
            "other-user",
            format!(
                "it executes {program} as uid {}: the library cannot join the coordinator of uid {} from there",
                task.uid, task.owner
            ),
            "launch it as its user, or take the checkpoint when it has ended".into(),
        ),
        Ok(Some(_)) if has_library => (
            "raw-clone",
            format!("it is a copy of {program} that was made by a raw system call, not by the C library"),
            ends,
        ),
        Ok(Some(_)) => match names_library(task.pid) {
            Some(false) => (
                "environment",
                format!("it executes {program} with an environment without LD_PRELOAD"),
                "keep LD_PRELOAD and STASIS_* in its environment, or take the checkpoint when it has ended"
                    .into(),
            ),
            // Loaded and not said hello, or not loaded yet: it will.
            _ => ("executing", format!("it is just executing {program}"), ends),
        },
        Err(error) => ("unknown", format!("{program} cannot be read: {error}"), ends),
    })
}

/// Whether the environment that a process was started with names the library.
fn names_library(pid: u32) -> Option<bool> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    // Just executed: the kernel has not laid it out yet.
    if environment.is_empty() && fs::metadata(format!("/proc/{pid}/exe")).map(|meta| meta.size()).is_err() {
        return None;
    }
    let name = locate::LIBRARY.file.as_bytes();
    Some(environment.split(|&byte| byte == 0).any(|entry| {
        entry.starts_with(b"LD_PRELOAD=") && entry.windows(name.len()).any(|window| window == name)
    }))
}
