//! The record of this process: asked of the kernel while every thread stands still.

pub mod advice;
pub mod descriptors;
pub mod kernel_state;
pub mod mappings;
mod names;
mod objects;
mod process;
mod system_v;
mod threads;

use alloc::{format, vec, vec::Vec};
use core::sync::atomic::{AtomicI32, Ordering};

use stasis_protocol::{
    coordinator::{End, Refusal, Sharable},
    image::{IMAGE_VERSION, ProcessImage, Resume, Zombie},
};

pub use descriptors::{Share, open_pidfd};
pub use objects::{Objects, Opening, Source};
pub use process::{Children, Program, children, credentials, is_command, note_filters};

use crate::{arch, checkpoint, procfs, quiesce::Quiet, restart};

/// A thread of the program, through which /proc shows the program's descriptors: the leader's entry
/// is empty after pthread_exit(3).
static SUBJECT: AtomicI32 = AtomicI32::new(0);

/// The thread through which /proc/self/task is asked.
pub fn subject() -> i32 {
    SUBJECT.load(Ordering::Relaxed)
}

/// Chooses the subject from the threads of the program.
pub fn set_subject(tid: i32) {
    SUBJECT.store(tid, Ordering::Relaxed);
}

/// A snapshot: the record, and where the content of its objects is.
pub struct Snapshot {
    pub image: ProcessImage,
    pub objects: Objects,
    pub mappings: Vec<mappings::Found>,
    /// See [`Checked::reads_directly`].
    pub reads_directly: bool,
    pub ends: Vec<End>,
    pub sharable: Vec<Sharable>,
    /// Keeps descriptors that are on their way to the process where [`Sharable`] says.
    pub held: descriptors::Rights,
    /// Dropped when the checkpoint has been stored.
    pub rooms: Vec<descriptors::Room>,
    /// The keys of what several processes may have, and one copies.
    pub keys: Vec<u64>,
    /// Of them, those that nobody copies as far as is known.
    pub uncopied: Vec<u64>,
    /// Of sockets on their way to this process: their keys, and whether it is the one that copies.
    pub received: Vec<(u64, bool)>,
}

/// What a look at the running process has shown.
pub struct Checked {
    pub program: Program,
    pub mappings: Vec<mappings::Found>,
    pub ends: Vec<End>,
    /// The keys of its objects, as far as they are mapped, and of its sockets' queues.
    pub objects: Vec<u64>,
    /// Whether a file is open to be read directly (open(2), O_DIRECT).
    pub reads_directly: bool,
    /// Whether descriptors are on their way to it.
    pub receives: bool,
}

/// Descriptors that a checkpoint needs at once, beside what it can do without.
const LEAST_DESCRIPTORS: u64 = 8;

fn refuse_without_room() -> Result<(), Vec<Refusal>> {
    let limit = stasis_sys::process::soft_limit(libc::RLIMIT_NOFILE);
    if limit >= LEAST_DESCRIPTORS {
        return Ok(());
    }
    Err(vec![Refusal {
        what: format!("pid {}", stasis_sys::process::getpid()),
        reason: format!(
            "its limit of {limit} descriptors (RLIMIT_NOFILE) holds for the checkpoint thread, too"
        ),
        remedy: format!("let the program allow itself {LEAST_DESCRIPTORS} (ulimit -n)"),
    }])
}

/// Looks for what cannot be checkpointed, while threads run.
pub fn check() -> Result<Checked, Vec<Refusal>> {
    set_subject(stasis_sys::process::getpid());
    let mut refusals = Vec::new();
    refuse_without_room()?;
    process::check(&mut refusals);
    let mut objects = Objects::default();
    let (ends, mut keys, reads_directly, receives) =
        match descriptors::capture(&mut objects, descriptors::Moment::Running, Share::default()) {
            Ok(captured) => (captured.ends, captured.queues, captured.reads_directly, captured.receives),
            Err(more) => {
                refusals.extend(more);
                Default::default()
            }
        };
    let mappings = mappings::capture(&mut objects).unwrap_or_else(|more| {
        refusals.extend(more);
        Vec::new()
    });
    match system_v::look(&mut objects) {
        Ok(more) => keys.extend(more),
        Err(refusal) => refusals.push(refusal),
    }
    keys.extend(objects.each().map(|(_, _, [name, _])| name));
    objects.close();
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let program = Program::look(&mappings);
    Ok(Checked { program, mappings, ends, objects: keys, reads_directly, receives })
}

/// Takes the record of a process whose threads are all stopped. `stopped`: it stood stopped by a signal before; `hold`: it is to be
/// ended; `program`: what was seen before it stood still.
pub fn take(
    quiet: &Quiet,
    program: Program,
    stopped: bool,
    hold: bool,
    zombies: Vec<Zombie>,
    share: Share<'_>,
) -> Result<Snapshot, Vec<Refusal>> {
    let pid = stasis_sys::process::getpid();
    set_subject(quiet.tids.first().copied().unwrap_or(pid));
    let mut objects = Objects::default();
    let captured = match descriptors::capture(&mut objects, descriptors::Moment::Stopped, share) {
        Ok(captured) => captured,
        Err(refusals) => {
            objects.close();
            return Err(refusals);
        }
    };
    let mappings = match mappings::capture(&mut objects) {
        Ok(mappings) => mappings,
        Err(refusals) => {
            objects.close();
            return Err(refusals);
        }
    };
    let looked =
        system_v::look(&mut objects).and_then(|keys| Ok((keys, system_v::capture(share.elsewhere)?)));
    let (system_v_keys, system_v) = match looked {
        Ok(found) => found,
        Err(refusal) => {
            objects.close();
            return Err([refusal].into());
        }
    };
    let status = procfs::read(path!("/proc/self/task/{}/status", subject()).as_c_str()).unwrap_or_default();
    let process = process::capture(stopped, program, &status);
    let seen = threads::look(quiet, &process.credentials, &status);
    let image = ProcessImage {
        version: IMAGE_VERSION,
        machine: process.machine,
        ids: process.ids,
        argv: process.argv,
        exe: process.exe,
        cwd: process.cwd,
        umask: process.umask,
        layout: process.layout,
        mappings: mappings.iter().map(|found| found.mapping.clone()).collect(),
        objects: objects.records(),
        system_v,
        undo: crate::system_v::own_undo(),
        descriptions: captured.descriptions,
        descriptors: captured.descriptors,
        in_flight: captured.in_flight,
        threads: threads::capture(quiet, &seen),
        zombies,
        credentials: process.credentials,
        limits: process.limits,
        settings: process.settings,
        resume: Resume {
            thread_entry: arch::resume_entry as *const () as u64,
            checkpoint_entry: restart::checkpoint_thread as *const () as u64,
            checkpoint_sp: checkpoint::stack_top() as u64,
            restart_info: restart::info_address(),
        },
        handover: kernel_state::capture(quiet, hold, &seen, &mappings),
    };
    let mut keys = captured.queues;
    keys.extend(system_v_keys);
    let copied = objects.each().filter(|(_, _, [name, _])| share.elsewhere.binary_search(name).is_err());
    keys.extend(copied.flat_map(|(_, _, names)| names));
    Ok(Snapshot {
        image,
        objects,
        mappings,
        reads_directly: captured.reads_directly,
        ends: captured.ends,
        sharable: captured.sharable,
        held: captured.held,
        keys,
        uncopied: captured.uncopied,
        received: captured.received,
        rooms: captured.rooms,
    })
}
