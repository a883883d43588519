//! What `--json` prints. These names are an interface: they stay when the messages between the parts of
//! Stasis change. Times end in `_us` (microseconds), sizes in `_bytes`.

use serde::Serialize;
use stasis_protocol::{
    PAGE_SIZE,
    coordinator::{self as wire, Phase},
    store as wire_store,
};
use stasis_store::pager::report::Progress;

use crate::{output, tracer::escapes::Escape};

#[derive(Debug, Serialize)]
pub struct Failure {
    pub error: FailureBody,
}

#[derive(Debug, Serialize)]
pub struct FailureBody {
    /// `failure`, `usage`, `no-coordinator`, `refused`, `store`, `not-executable`, `not-found`.
    pub kind: &'static str,
    pub exit_code: u8,
    pub message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
}

#[derive(Debug, Serialize)]
pub struct Refusal {
    pub what: String,
    pub reason: String,
    pub remedy: String,
}

impl From<&wire::Refusal> for Refusal {
    fn from(refusal: &wire::Refusal) -> Self {
        Self { what: refusal.what.clone(), reason: refusal.reason.clone(), remedy: refusal.remedy.clone() }
    }
}

#[derive(Debug, Serialize)]
pub struct Coordinator {
    pub address: String,
    pub coordinator_pid: u32,
    /// See [`Status::network`].
    pub network: Option<String>,
}

/// What `coordinator --stop` prints.
#[derive(Debug, Serialize)]
pub struct CoordinatorStopped {
    pub coordinator_pid: u32,
}

#[derive(Debug, Serialize)]
pub struct Launched {
    pub computation: String,
    pub pids: Vec<u32>,
    pub address: String,
    /// The same, as [`Restarted`] names it.
    pub coordinator: String,
    pub coordinator_pid: u32,
}

/// What `restart --detach` prints.
#[derive(Debug, Serialize)]
pub struct Restarted<'a> {
    pub checkpoint: &'a str,
    pub computation: &'a str,
    pub coordinator: &'a str,
    /// The same, as [`Launched`] names it.
    pub address: &'a str,
    pub coordinator_pid: u32,
    pub pids: Vec<i32>,
}

#[derive(Debug, Serialize)]
pub struct Killed {
    pub processes: u32,
}

#[derive(Debug, Serialize)]
pub struct Status {
    pub computation: String,
    pub address: String,
    /// Where the coordinator listens at TCP.
    pub network: Option<String>,
    pub coordinator_pid: u32,
    pub store: String,
    pub interval_us: Option<u64>,
    pub checkpoints_taken: u64,
    pub checkpoints_failed: u64,
    pub interval_ticks_skipped: u64,
    pub last_checkpoint: Option<String>,
    /// `null` where none failed since the last one that was taken.
    pub last_failure: Option<FailedCheckpoint>,
    pub processes: Vec<Process>,
    /// Processes of the computation that the library is not in; `null` where no tracer runs.
    pub outside: Option<Vec<Escape>>,
}

/// The last checkpoint that was not taken, and the first reason.
#[derive(Debug, Serialize)]
pub struct FailedCheckpoint {
    pub failed_us: u64,
    /// `failed_us` as RFC 3339.
    pub failed: String,
    #[serde(flatten)]
    pub refusal: Refusal,
}

impl From<&wire::FailedCheckpoint> for FailedCheckpoint {
    fn from(failed: &wire::FailedCheckpoint) -> Self {
        Self {
            failed_us: failed.failed_us,
            failed: output::timestamp(failed.failed_us),
            refusal: Refusal::from(&failed.refusal),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Process {
    /// The pid that the program knows itself by.
    pub pid: u32,
    pub real_pid: u32,
    pub command: String,
    /// The kernel's letter.
    pub state: char,
    /// See [`phase`].
    pub phase: &'static str,
    pub phase_for_us: u64,
    /// Empty before the first checkpoint.
    pub tracker: String,
    pub last_pause_us: Option<u64>,
    /// How long it stood still in all for the last checkpoint.
    pub last_stood_us: Option<u64>,
    /// How much memory the last checkpoint took in the process, in bytes.
    pub last_memory: Option<u64>,
    pub restarted_from: Option<String>,
    /// How the memory of a lazily restarted process arrives; null: it has no pager.
    pub memory: Option<Progress>,
}

impl From<wire::Status> for Status {
    fn from(status: wire::Status) -> Self {
        Self {
            computation: status.computation,
            address: status.address,
            network: status.network,
            coordinator_pid: status.coordinator_pid,
            store: status.store,
            interval_us: status.interval_us,
            checkpoints_taken: status.checkpoints_taken,
            checkpoints_failed: status.checkpoints_failed,
            interval_ticks_skipped: status.ticks_skipped,
            last_checkpoint: status.last,
            last_failure: status.last_failure.as_ref().map(FailedCheckpoint::from),
            processes: status.processes.into_iter().map(Process::from).collect(),
            outside: None,
        }
    }
}

impl From<wire::ProcessStatus> for Process {
    fn from(process: wire::ProcessStatus) -> Self {
        Self {
            pid: process.pid,
            real_pid: process.real_pid,
            command: process.command,
            state: process.state,
            phase: phase(process.phase),
            phase_for_us: process.phase_for_us,
            tracker: process.tracker,
            memory: None,
            last_pause_us: process.last_pause_us,
            last_stood_us: process.last_stood_us,
            last_memory: process.last_memory,
            restarted_from: process.restarted_from,
        }
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::Checking => "checking",
        Phase::Ready => "ready",
        Phase::Quiescing => "quiescing",
        Phase::Snapshotting => "snapshotting",
        Phase::Storing => "storing",
        Phase::Held => "held",
    }
}

#[derive(Debug, Serialize)]
pub struct Checkpoint {
    pub id: String,
    pub sequence: u64,
    pub taken_us: u64,
    /// `taken_us` as RFC 3339.
    pub taken: String,
    pub computation: String,
    pub parent: Option<String>,
    pub label: Option<String>,
    pub host: String,
    pub pause_us: u64,
    /// Memory that the checkpoint names.
    pub size_bytes: u64,
    /// Of it, written for this checkpoint.
    pub written_bytes: u64,
    pub processes: Vec<CheckpointProcess>,
}

#[derive(Debug, Serialize)]
pub struct CheckpointProcess {
    pub pid: u32,
    pub command: String,
    pub tracker: String,
    pub manifest: String,
    pub pages: u64,
    pub pages_received: u64,
    pub pages_written: u64,
    pub pages_zero: u64,
    pub written_bytes: u64,
}

impl From<wire_store::CheckpointRecord> for Checkpoint {
    fn from(record: wire_store::CheckpointRecord) -> Self {
        let draft = record.draft;
        let pages: u64 = draft.processes.iter().map(|process| process.stats.pages).sum();
        Self {
            id: record.id,
            sequence: record.sequence,
            taken_us: record.taken_us,
            taken: output::timestamp(record.taken_us),
            computation: draft.computation,
            parent: draft.parent,
            label: draft.label,
            host: draft.host,
            pause_us: draft.pause_us,
            size_bytes: pages.saturating_mul(PAGE_SIZE as u64),
            written_bytes: draft.processes.iter().map(|process| process.stats.bytes).sum(),
            processes: draft.processes.into_iter().map(CheckpointProcess::from).collect(),
        }
    }
}

impl From<wire_store::ProcessEntry> for CheckpointProcess {
    fn from(entry: wire_store::ProcessEntry) -> Self {
        Self {
            pid: entry.pid,
            command: entry.command,
            tracker: entry.tracker,
            manifest: output::hex(&entry.manifest),
            pages: entry.stats.pages,
            pages_received: entry.stats.received,
            pages_written: entry.stats.written,
            pages_zero: entry.stats.zero,
            written_bytes: entry.stats.bytes,
        }
    }
}

/// `stasis gc`.
#[derive(Debug, Serialize)]
pub struct Collected {
    /// Of packs; less what was copied.
    pub freed_bytes: u64,
    /// Some of it goes only when a restart under way has opened it.
    pub waiting: bool,
    pub packs_removed: u64,
    pub packs_compacted: u64,
    /// Packs that were rewritten only in order to be compressed.
    pub packs_compressed: u64,
    pub moved_bytes: u64,
    /// Of them, those that were compressed, as they were and as they are.
    pub compressed_from_bytes: u64,
    pub compressed_to_bytes: u64,
    pub nodes_removed: u64,
    /// Packs that should have been compacted and were not, and why.
    pub left: Vec<String>,
}

impl From<&wire_store::Collected> for Collected {
    fn from(collected: &wire_store::Collected) -> Self {
        Self {
            freed_bytes: collected.freed,
            waiting: collected.waiting,
            packs_removed: collected.packs_removed,
            packs_compacted: collected.packs_compacted,
            packs_compressed: collected.packs_compressed,
            compressed_from_bytes: collected.compressed_from,
            compressed_to_bytes: collected.compressed_to,
            moved_bytes: collected.pages_moved.saturating_mul(PAGE_SIZE as u64),
            nodes_removed: collected.nodes_removed,
            left: collected.left.clone(),
        }
    }
}

/// `stasis export`.
#[derive(Debug, Serialize)]
pub struct Exported {
    pub checkpoints: u64,
    pub memory_bytes: u64,
    pub stream_bytes: u64,
}

impl From<&wire_store::Exported> for Exported {
    fn from(exported: &wire_store::Exported) -> Self {
        Self {
            checkpoints: exported.checkpoints,
            memory_bytes: exported.pages.saturating_mul(PAGE_SIZE as u64),
            stream_bytes: exported.bytes,
        }
    }
}

/// `stasis import`.
#[derive(Debug, Serialize)]
pub struct Imported {
    /// Those that were not there.
    pub checkpoints: Vec<Checkpoint>,
    pub known: u64,
    pub memory_bytes: u64,
    pub written_bytes: u64,
}

impl From<wire_store::Imported> for Imported {
    fn from(imported: wire_store::Imported) -> Self {
        Self {
            checkpoints: imported.checkpoints.into_iter().map(Checkpoint::from).collect(),
            known: imported.known,
            memory_bytes: imported.pages.saturating_mul(PAGE_SIZE as u64),
            written_bytes: imported.written.saturating_mul(PAGE_SIZE as u64),
        }
    }
}

/// `stasis show`.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub checkpoint: Checkpoint,
    /// In the order of the checkpoint's processes.
    pub images: Vec<Image>,
}

#[derive(Debug, Serialize)]
pub struct Image {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// Effective.
    pub uid: u32,
    /// Effective.
    pub gid: u32,
    pub exe: String,
    pub cwd: String,
    pub argv: Vec<String>,
    pub kernel: String,
    pub stopped: bool,
    pub threads: Vec<Thread>,
    pub descriptors: Vec<Descriptor>,
    pub mappings: Vec<Mapping>,
}

#[derive(Debug, Serialize)]
pub struct Thread {
    pub tid: i32,
    pub name: String,
    /// SCHED_*, its static priority, and the nice value.
    pub policy: u32,
    pub priority: u32,
    pub nice: i32,
    pub exited: bool,
}

#[derive(Debug, Serialize)]
pub struct Descriptor {
    pub fd: i32,
    /// Descriptors of the same description share offset and flags.
    pub description: u32,
    pub close_on_exec: bool,
    pub kind: &'static str,
    pub what: String,
    /// O_*.
    pub flags: u32,
    pub offset: u64,
}

#[derive(Debug, Serialize)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// As in /proc/PID/maps.
    pub protection: String,
    pub offset: u64,
    pub backing: String,
}

/// `stasis doctor`.
#[derive(Debug, Serialize)]
pub struct Doctor {
    /// Nothing is missing.
    pub healthy: bool,
    pub probes: Vec<Probe>,
}

#[derive(Debug, Serialize)]
pub struct Probe {
    pub name: &'static str,
    /// The commands that use it.
    pub purpose: &'static str,
    /// `ok`, `fallback` (something else takes its place) or `missing`.
    pub state: &'static str,
    pub detail: String,
    pub remedy: Option<String>,
}
