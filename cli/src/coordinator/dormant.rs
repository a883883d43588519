//! Processes of the computation that have not said hello: children that were forked and have executed no other program make
//! their checkpoint thread when they are called (preload/src/dormant.rs).
//!
//! Not here: calling them for a checkpoint (`newborn`).

use std::{collections::BTreeSet, fs, rc::Rc};

use stasis_protocol::{
    births,
    coordinator::{Phase, ProcessStatus},
};
use tokio::task::spawn_local;

use super::{
    computation::Computation,
    log,
    stopped::{self, STOP_SIGNAL},
};
use crate::{
    elf, locate,
    process::{self, Pidfd},
};

/// The dormant processes, by their pids here: children of those that are known, and children whose parents have ended.
pub fn find(computation: &Computation) -> Vec<u32> {
    let members: Vec<u32> =
        computation.with_members(|members| members.values().map(|member| member.real_pid).collect());
    let mut known: BTreeSet<u32> = members.iter().copied().collect();
    let mut found = Vec::new();
    let mut is_dormant = |pid: u32| {
        // Looking at one takes time: not at those that are known.
        !known.contains(&pid)
            && can_be_called(pid)
            && !matches!(process::state(pid), Some('Z' | 'X'))
            && known.insert(pid)
    };
    found.extend(
        computation
            .births()
            .into_iter()
            .filter_map(|pid| computation.real_pid(pid))
            .filter(|&pid| is_dormant(pid)),
    );
    let mut parents = members;
    parents.extend(&found);
    while let Some(parent) = parents.pop() {
        let children: Vec<u32> =
            process::children(parent).into_iter().filter(|&child| is_dormant(child)).collect();
        parents.extend(&children);
        found.extend(children);
    }
    found
}

/// Whether a process that has not said hello takes the stop signal for the library. Others have a handler, too: Go, and glibc in
/// any program with threads.
pub fn can_be_called(pid: u32) -> bool {
    process::catches(pid, STOP_SIGNAL) && library(pid) == Library::Begun
}

/// What the library is in a process that has not said hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// It is at work there, or will be; or nobody may look.
    Begun,
    /// It cannot join: the program was executed after it had become another user's.
    CutOff,
    /// A static program has mapped what another one is to have, and executes that: Valgrind. It takes all signals for itself.
    Interpreted,
    /// It is not there, or not to do anything: in a command about the computation.
    None,
}

pub fn library(pid: u32) -> Library {
    let Ok(files) = process::mapped_files(pid) else { return Library::Begun };
    if has_begun(&files) {
        Library::Begun
    } else if is_stasis(pid) || !files.iter().any(|name| name == locate::LIBRARY.file) {
        Library::None
    } else if process::user(pid).is_some_and(|uid| uid != nix::unistd::geteuid().as_raw()) {
        Library::CutOff
    } else if is_static(pid) {
        Library::Interpreted
    } else {
        Library::Begun
    }
}

/// Whether a process is a command that a program gives about itself, which is no part of the computation. (Of clones, `stasis` may
/// be what they execute, as far as the kernel knows.)
pub fn is_command(pid: u32) -> bool {
    is_stasis(pid) && !process::mapped_files(pid).is_ok_and(|files| has_begun(&files))
}

fn is_stasis(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("stasis"))
}

/// Whether the library has begun in a process, or in the one that it was forked from, which shows in its maps: most have the list of
/// births.
fn has_begun(files: &[String]) -> bool {
    files.iter().any(|name| name.ends_with(births::SUFFIX))
}

fn is_static(pid: u32) -> bool {
    let executed = fs::File::open(format!("/proc/{pid}/exe"));
    executed.and_then(|file| elf::interpreter(&file)).is_ok_and(|linker| linker.is_none())
}

/// What there is to tell of a dormant process; nothing where it has ended.
pub fn status(real_pid: u32) -> Option<ProcessStatus> {
    let command = fs::read(format!("/proc/{real_pid}/cmdline")).ok()?;
    let arguments = command.split(|&byte| byte == 0).map(|argument| String::from_utf8_lossy(argument));
    Some(ProcessStatus {
        pid: process::own_pid(real_pid)?,
        real_pid,
        command: arguments.collect::<Vec<_>>().join(" "),
        phase: Phase::Running,
        state: process::state(real_pid)?,
        phase_for_us: 0,
        tracker: String::new(),
        last_pause_us: None,
        last_stood_us: None,
        last_memory: None,
        restarted_from: None,
    })
}

/// Has all dormant processes say hello, when nobody else is left who could tell of them; and those that one of them has made,
/// should it end before it does.
pub fn call_the_last(computation: &Rc<Computation>) {
    if computation.with_members(|members| !members.is_empty()) {
        return;
    }
    for real_pid in find(computation) {
        let Ok(pidfd) = Pidfd::open(real_pid) else { continue };
        if process::is_stopped(real_pid) || process::is_filtered_beyond(real_pid, std::process::id()) {
            continue;
        }
        if let Err(reason) = stopped::call(real_pid, &pidfd) {
            log::line(format_args!("pid {real_pid} cannot be called: {reason}"));
            continue;
        }
        let computation = Rc::clone(computation);
        spawn_local(async move {
            if pidfd.ended().await.is_ok() {
                call_the_last(&computation);
            }
        });
    }
}
