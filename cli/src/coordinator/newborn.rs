//! Processes that a checkpoint must wait for: children that have not said hello yet, and processes that are executing
//! another program, which say it again.

use std::{collections::BTreeMap, fs, rc::Rc, time::Duration};

use stasis_protocol::coordinator::Refusal;
use tokio::{
    task::{AbortHandle, spawn_local},
    time::Instant,
};

use super::computation::{Event, Events, MemberId};
use crate::process::{self, Pidfd};

/// How long one may take: it has only to be scheduled, and loaded.
const PATIENCE: Duration = Duration::from_secs(2);

/// In place of a member's, which these processes do not have yet.
const NOBODY: MemberId = MemberId::MAX;

struct Awaited {
    /// What is said of it when it does not come.
    refusal: Refusal,
    until: Instant,
    /// Watches for its end.
    watch: AbortHandle,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// By their pids here.
#[derive(Default)]
pub struct Newborn(BTreeMap<u32, Awaited>);

impl Newborn {
    /// Awaits the children of a process that `is_known` does not know.
    pub fn await_children(&mut self, parent: (u32, &str), is_known: impl Fn(u32) -> bool, events: &Events) {
        for child in children(parent.0).into_iter().filter(|&child| !is_known(child)) {
            let Ok(pidfd) = Pidfd::open(child) else { continue };
            // Also for those that end before their parent waits for them.
            if pidfd.has_ended() {
                continue;
            }
            let command = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            let refusal = Refusal {
                what: format!("pid {child} ({}), child of {}", command.trim_end(), parent.1),
                reason: "it runs without libstasis.so, and has not joined the computation: it is linked statically, gained \
                         rights when it was executed, or was made by a raw system call"
                    .into(),
                remedy: "take the checkpoint when it has ended".into(),
            };
            self.insert(child, Rc::new(pidfd), refusal, events);
        }
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
        self.insert(real_pid, pidfd, refusal, events);
    }

    fn insert(&mut self, real_pid: u32, pidfd: Rc<Pidfd>, refusal: Refusal, events: &Events) {
        let events = events.clone();
        let watch = spawn_local(async move {
            if pidfd.ended().await.is_ok() {
                // The checkpoint may have ended meanwhile.
                let _ = events.send((NOBODY, Event::Ended(real_pid))).await;
            }
        });
        let until = Instant::now() + PATIENCE;
        self.0.entry(real_pid).or_insert(Awaited { refusal, until, watch: watch.abort_handle() });
    }

    /// One has come, or has ended.
    pub fn settle(&mut self, real_pid: u32) {
        self.0.remove(&real_pid);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first of them is overdue.
    pub fn until(&self) -> Option<Instant> {
        self.0.values().map(|awaited| awaited.until).min()
    }

    /// Why the checkpoint cannot be taken, for those that are overdue.
    pub fn overdue(&self) -> Vec<Refusal> {
        let now = Instant::now();
        self.0
            .values()
            .filter(|awaited| awaited.until <= now)
            .map(|awaited| awaited.refusal.clone())
            .collect()
    }
}

/// The children of a process that have not ended (proc(5), /proc/pid/task/tid/children).
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .filter(|&child| !matches!(process::state(child), None | Some('Z' | 'X')))
        .collect()
}
