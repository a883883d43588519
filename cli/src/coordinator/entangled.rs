//! What processes have with each other that no restart could make again: refused before anybody is asked or signalled.
//!
//! Not here: children that share their parent's memory, which is what a vfork(2) leaves behind for a moment (`newborn`).

use std::{collections::BTreeMap, fs};

use stasis_protocol::coordinator::Refusal;

use super::{checkpoint::refusal, computation::Computation, dormant};
use crate::process::{self, Shared};

/// What /proc/PID/status tells of a process.
struct Relations {
    parent: Option<u32>,
    tracer: Option<u32>,
    /// Its first thread has ended, whose the descriptors are that are compared.
    is_without_leader: bool,
}

impl Relations {
    fn of(real_pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{real_pid}/status")).ok()?;
        let word =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next();
        let pid = |name| word(name).and_then(|pid| pid.parse().ok()).filter(|&pid: &u32| pid != 0);
        let is_without_leader = matches!(word("State:"), Some("Z" | "X"));
        Some(Self { parent: pid("PPid:"), tracer: pid("TracerPid:"), is_without_leader })
    }
}

/// Why the processes cannot be checkpointed together.
pub fn refusals(computation: &Computation) -> Vec<Refusal> {
    let mut processes: BTreeMap<u32, String> = computation
        .with_members(|members| members.values().map(|member| (member.real_pid, member.name())).collect());
    for real_pid in dormant::find(computation) {
        let command = fs::read_to_string(format!("/proc/{real_pid}/comm")).unwrap_or_default();
        processes.entry(real_pid).or_insert_with(|| format!("pid {real_pid} ({})", command.trim_end()));
    }
    let relations: BTreeMap<u32, Relations> =
        processes.keys().filter_map(|&real_pid| Some((real_pid, Relations::of(real_pid)?))).collect();
    let mut refusals = Vec::new();
    for (&real_pid, its) in &relations {
        let name = &processes[&real_pid];
        if let Some(tracer) = its.tracer.and_then(|tracer| processes.get(&tracer)) {
            refusals.push(refusal(
                name,
                format!("{tracer} traces it (ptrace(2)), and the kernel does not tell what it is told of"),
                "let it detach, or trace the program from outside of the computation (strace -p)",
            ));
        }
        let Some(parent) = its.parent.filter(|parent| processes.contains_key(parent)) else { continue };
        if its.is_without_leader || relations.get(&parent).is_none_or(|parent| parent.is_without_leader) {
            continue;
        }
        for (what, words, flag) in [
            (Shared::Files, "its descriptors", "CLONE_FILES"),
            (Shared::Directory, "its working directory and umask", "CLONE_FS"),
        ] {
            if process::shares(real_pid, parent, what) {
                refusals.push(refusal(
                    name,
                    format!("it shares {words} with {} (clone(2), {flag})", processes[&parent]),
                    "take the checkpoint when one of both has ended",
                ));
            }
        }
    }
    refusals
}
