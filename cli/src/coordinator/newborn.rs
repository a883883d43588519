//! Processes that a checkpoint must wait for: children that have not said hello yet, and processes that are executing
//! another program, which say it again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    rc::Rc,
    time::Duration,
};

use stasis_protocol::coordinator::Refusal;
use tokio::{
    task::{AbortHandle, spawn_local},
    time::Instant,
};

use super::{
    computation::{Event, Events, MemberId},
    dormant::{self, Library},
    stopped::{self, STOP_SIGNAL},
};
use crate::{
    locate,
    process::{self, Pidfd},
};

/// How long one is awaited that does not look as if it came: it may end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// In place of a member's, which these processes do not have yet.
const NOBODY: MemberId = MemberId::MAX;

struct Awaited {
    /// What is said of it when it does not come.
    refusal: Refusal,
    until: Instant,
    /// When it is overdue even if it is about to come, and need only be scheduled.
    latest: Instant,
    /// It looked so when it was overdue first.
    was_coming: bool,
    /// Watches for its end.
    watch: AbortHandle,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// By their pids here.
pub struct Newborn {
    awaited: BTreeMap<u32, Awaited>,
    /// Processes without the library that the checkpoint is taken without.
    without: Vec<u32>,
    /// Processes that stood stopped and were continued to say hello: their threads wait for the checkpoint.
    continued: BTreeSet<u32>,
    /// How long one may take that is about to come.
    allowance: Duration,
}

impl Newborn {
    /// Awaits whoever must be awaited, but for these.
    pub fn but(without: &[u32], allowance: Duration) -> Self {
        Self { awaited: BTreeMap::new(), without: without.to_vec(), continued: BTreeSet::new(), allowance }
    }

    /// Awaits the children of a process that `is_known` does not know.
    pub fn await_children(&mut self, parent: (u32, &str), is_known: impl Fn(u32) -> bool, events: &Events) {
        for child in children(parent.0).into_iter().filter(|&child| !is_known(child)) {
            self.await_process(child, parent.0, &format!("child of {}", parent.1), events);
        }
    }

    /// Awaits a process whose parent may have ended; false where it has ended, too, or is none to wait for.
    pub fn await_orphan(&mut self, real_pid: u32, events: &Events) -> bool {
        !dormant::is_command(real_pid)
            && self.await_process(real_pid, std::process::id(), "whose parent has ended", events)
    }

    /// `like`: who has the seccomp filters that this one was made with.
    fn await_process(&mut self, real_pid: u32, like: u32, whose: &str, events: &Events) -> bool {
        let Ok(pidfd) = Pidfd::open(real_pid) else { return false };
        // Also of those that their parent has not waited for.
        if pidfd.has_ended() {
            return false;
        }
        let mut reason = "it runs without libstasis.so, and has not joined the computation: it is linked statically, gained \
                          rights when it was executed, or was made by a raw system call"
            .to_string();
        let mut remedy = "take the checkpoint when it has ended";
        let mut patience = PATIENCE;
        let is_new = !self.awaited.contains_key(&real_pid);
        let library = if is_new { dormant::library(real_pid) } else { Library::None };
        let can_be_called = library == Library::Begun && process::catches(real_pid, STOP_SIGNAL);
        if library == Library::CutOff {
            reason = format!(
                "it executes a program as uid {}: the library cannot join the coordinator of uid {} from there",
                process::user(real_pid).unwrap_or_default(),
                nix::unistd::geteuid()
            );
            remedy = "launch it as its user, or take the checkpoint when it has ended";
            patience = Duration::ZERO;
        } else if library == Library::Interpreted {
            reason = "a static program interprets it (Valgrind), which could not be restarted".into();
            patience = Duration::ZERO;
        } else if can_be_called && process::is_filtered_beyond(real_pid, like) {
            // Such a filter may end it for the very calls that make a checkpoint thread.
            reason = "a seccomp filter of its own allows it some system calls only (seccomp(2)): it could not be stopped, or \
                      would be without the filter when it is restarted"
                .into();
            remedy = "let the program do without its sandbox, or take the checkpoint when it has ended";
            // It does not come, and others may stand still.
            patience = Duration::ZERO;
        } else if can_be_called {
            match stopped::call(real_pid, &pidfd) {
                Ok(false) => {}
                Ok(true) => _ = self.continued.insert(real_pid),
                Err(error) => reason = format!("it cannot be called: {error}"),
            }
        }
        let command = fs::read_to_string(format!("/proc/{real_pid}/comm")).unwrap_or_default();
        let refusal = Refusal {
            what: format!("pid {real_pid} ({}), {whose}", command.trim_end()),
            reason,
            remedy: remedy.into(),
        };
        self.insert(real_pid, Rc::new(pidfd), refusal, patience, events);
        true
    }

    /// Awaits a process that has closed its connection and runs on.
    pub fn await_program(&mut self, real_pid: u32, name: &str, pidfd: Rc<Pidfd>, events: &Events) {
        let refusal = Refusal {
            what: name.into(),
            reason: "it has left the computation and runs on: it executes a program without libstasis.so, or closed the \
                     library's connection"
                .into(),
            remedy: "take the checkpoint when it has ended".into(),
        };
        self.insert(real_pid, pidfd, refusal, PATIENCE, events);
    }

    fn insert(
        &mut self,
        real_pid: u32,
        pidfd: Rc<Pidfd>,
        refusal: Refusal,
        patience: Duration,
        events: &Events,
    ) {
        if self.without.contains(&real_pid) {
            return;
        }
        let events = events.clone();
        let watch = spawn_local(async move {
            if pidfd.ended().await.is_ok() {
                // The checkpoint may have ended meanwhile.
                let _ = events.send((NOBODY, Event::Ended(real_pid))).await;
            }
        });
        let now = Instant::now();
        let (until, watch) = (now + patience, watch.abort_handle());
        let latest = if patience.is_zero() { until } else { now + self.allowance };
        self.awaited.entry(real_pid).or_insert(Awaited { refusal, until, latest, was_coming: false, watch });
    }

    /// Does not wait any more for those that have turned out to execute a command about the computation.
    pub fn leave_commands(&mut self) {
        self.awaited.retain(|&real_pid, _| !dormant::is_command(real_pid));
    }

    /// One has come, or has ended.
    pub fn settle(&mut self, real_pid: u32) {
        self.awaited.remove(&real_pid);
    }

    /// Whether one that has come stood stopped, and its threads wait for the checkpoint; told once.
    pub fn was_continued(&mut self, real_pid: u32) -> bool {
        self.continued.remove(&real_pid)
    }

    pub fn is_empty(&self) -> bool {
        self.awaited.is_empty()
    }

    /// When the first of them is overdue.
    pub fn until(&self) -> Option<Instant> {
        self.awaited.values().map(|awaited| awaited.until).min()
    }

    /// Why the checkpoint cannot be taken, for those that are overdue.
    pub fn overdue(&mut self) -> Vec<Refusal> {
        let now = Instant::now();
        for (&real_pid, awaited) in &mut self.awaited {
            if awaited.until <= now && now < awaited.latest && is_coming(real_pid) {
                awaited.until = awaited.latest.min(now + PATIENCE);
                awaited.was_coming = true;
            }
        }
        let overdue = self.awaited.iter().filter(|(_, awaited)| awaited.until <= now);
        overdue.map(|(&real_pid, awaited)| refusal(real_pid, awaited)).collect()
    }
}

/// Whether a process has the library, or is being loaded and may have it soon: then it comes when it is scheduled.
fn is_coming(real_pid: u32) -> bool {
    let Ok(files) = process::mapped_files(real_pid) else { return false };
    let maps = |part: &str| files.iter().any(|name| name.starts_with(part));
    // The loader maps what LD_PRELOAD names before what the program needs (elf/rtld.c, `dl_main`).
    maps(locate::LIBRARY.file) || (maps("ld-linux") && !maps("libc.so"))
}

/// What is said of a process that does not come.
fn refusal(real_pid: u32, awaited: &Awaited) -> Refusal {
    let refusal = &awaited.refusal;
    let parent = process::parent(real_pid);
    match parent.filter(|&parent| process::shares(real_pid, parent, process::Shared::Memory)) {
        Some(parent) => Refusal {
            reason: format!(
                "it has the memory of pid {parent} together with that (vfork(2), clone(2) with CLONE_VM)"
            ),
            remedy: "take the checkpoint when it has executed a program or ended".into(),
            ..refusal.clone()
        },
        None if awaited.was_coming => Refusal {
            reason: format!(
                "it has not joined the computation in time, and is {} now",
                process::state(real_pid).map_or("gone", process::state_name)
            ),
            remedy:
                "checkpoint again; where that fails too, start the coordinator with a longer --deadline-seconds"
                    .into(),
            ..refusal.clone()
        },
        None => refusal.clone(),
    }
}

/// The children of a process that may belong to the computation.
fn children(pid: u32) -> Vec<u32> {
    let children = process::children(pid).into_iter();
    // A command that a program gives about itself is no part of the computation.
    children.filter(|&child| !dormant::is_command(child)).collect()
}
