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
    let is_cut_off =
        |files: &[String]| is_stasis(pid) || is_static(pid) || is_another_user_s(pid) || !has_library(files);
    process::catches(pid, STOP_SIGNAL)
        && process::mapped_files(pid).map_or(true, |files| has_begun(&files) || !is_cut_off(&files))
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
    files.iter().any(|name| name.strip_suffix(" (deleted)").unwrap_or(name).ends_with(births::SUFFIX))
}

/// Whether a process is a static program that has mapped what another one is to have, and executes that: Valgrind. It takes
/// all signals for itself.
pub fn is_interpreted(pid: u32) -> bool {
    is_static(pid) && process::mapped_files(pid).is_ok_and(|files| has_library(&files) && !has_begun(&files))
}

/// Whether the library is in a process and cannot join: the program was executed after it had become another user's.
pub fn is_cut_off(pid: u32) -> bool {
    is_another_user_s(pid)
        && process::mapped_files(pid).is_ok_and(|files| has_library(&files) && !has_begun(&files))
}

fn is_static(pid: u32) -> bool {
    let executed = fs::File::open(format!("/proc/{pid}/exe"));
    executed.and_then(|file| elf::interpreter(&file)).is_ok_and(|linker| linker.is_none())
}

fn is_another_user_s(pid: u32) -> bool {
    process::user(pid).is_some_and(|uid| uid != nix::unistd::geteuid().as_raw())
}

fn has_library(files: &[String]) -> bool {
    files.iter().any(|name| process::is_name(name, locate::LIBRARY.file))
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
