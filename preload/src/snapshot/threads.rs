//! The threads' part of the record: what they said of themselves in the stop handler, and what the
//! kernel says of them from outside.

use alloc::{string::String, vec, vec::Vec};
use core::sync::atomic::Ordering::Relaxed;

use stasis_protocol::image::{Credentials, Thread};
use stasis_sys::process;

use crate::{procfs, quiesce::Quiet, threads};

/// What /proc/TID/status says of a stopped thread.
pub struct Seen {
    pub tid: i32,
    /// Its own signals that are pending.
    pub pending: u64,
    /// Where they are not those that stand for its process.
    own_credentials: Option<Credentials>,
    own_umask: u32,
}

/// Reads the status of each thread once: it takes some 20 µs. `common`: who the process is; `known`: the subject's.
pub fn look(quiet: &Quiet, common: &Credentials, known: &[u8]) -> Vec<Seen> {
    let look = |&tid: &i32| {
        let status = if tid == super::subject() { Vec::from(known) } else { procfs::thread_status(tid) };
        let securebits = threads::claim(tid).map_or(0, |slot| slot.securebits.load(Relaxed));
        let own = super::process::credentials(&status, securebits);
        Seen {
            tid,
            pending: procfs::field(&status, "SigPnd:").and_then(procfs::hex).unwrap_or(0),
            own_credentials: (own != *common && !status.is_empty()).then_some(own),
            own_umask: procfs::field(&status, "Umask:").and_then(procfs::octal).unwrap_or(0o22) as u32,
        }
    };
    quiet.tids.iter().map(look).collect()
}

/// The working directory and umask of a thread that has its own.
fn own_directory(seen: &Seen) -> Option<(String, u32)> {
    let (tid, subject) = (seen.tid, super::subject());
    if tid == subject || process::shares(subject, tid, process::Shared::Directory) != Some(false) {
        return None;
    }
    let cwd = procfs::link(path!("/proc/self/task/{tid}/cwd").as_c_str()).ok()?;
    Some((String::from_utf8_lossy(&cwd).into_owned(), seen.own_umask))
}

pub fn capture(quiet: &Quiet, seen: &[Seen]) -> Vec<Thread> {
    let pid = process::getpid();
    let mut threads: Vec<Thread> = seen
        .iter()
        .filter_map(|seen| {
            let tid = seen.tid;
            let slot = threads::claim(tid)?;
            Some(Thread {
                resume_sp: slot.resume_sp.load(Relaxed),
                fs_base: slot.fs_base.load(Relaxed),
                gs_base: slot.gs_base.load(Relaxed),
                clear_tid: slot.clear_tid.load(Relaxed),
                name: name(slot),
                in_vdso: slot.in_vdso.load(Relaxed) != 0,
                own_directory: own_directory(seen),
                own_credentials: seen.own_credentials.clone(),
                ..outside(tid)
            })
        })
        .collect();
    threads.extend(quiet.exited.iter().map(|&tid| Thread { exited: true, ..outside(tid) }));
    threads.sort_by_key(|thread| (thread.tid != pid, thread.tid));
    threads
}

fn name(slot: &threads::Slot) -> String {
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&slot.name[0].load(Relaxed).to_ne_bytes());
    bytes[8..].copy_from_slice(&slot.name[1].load(Relaxed).to_ne_bytes());
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(16);
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

/// ioprio_get(2) of one thread.
fn io_priority(tid: i32) -> u32 {
    const IOPRIO_WHO_PROCESS: usize = 1;
    let asked = process::numbers(libc::SYS_ioprio_get, [IOPRIO_WHO_PROCESS, tid as usize, 0, 0, 0]);
    asked.unwrap_or(0) as u32
}

/// What any thread can ask about another.
fn outside(tid: i32) -> Thread {
    // SAFETY: plain numbers.
    let mut attr: libc::sched_attr = unsafe { core::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: sched_getattr(2) fills in at most `size` bytes of the structure.
    let _ = unsafe { process::with(libc::SYS_sched_getattr, [tid as usize, 0, size, 0, 0, 0], 1, &mut attr) };
    let mut affinity = [0u8; 1024];
    let len = affinity.len();
    // SAFETY: sched_getaffinity(2) fills in at most `len` bytes.
    let used = unsafe {
        process::with(libc::SYS_sched_getaffinity, [tid as usize, len, 0, 0, 0, 0], 2, &mut affinity)
    }
    .unwrap_or(0);
    Thread {
        tid,
        resume_sp: 0,
        fs_base: 0,
        gs_base: 0,
        clear_tid: 0,
        name: String::new(),
        policy: attr.sched_policy,
        priority: attr.sched_priority,
        nice: attr.sched_nice,
        sched_flags: attr.sched_flags,
        sched_times: [attr.sched_runtime, attr.sched_deadline, attr.sched_period],
        io_priority: io_priority(tid),
        affinity: vec::Vec::from(&affinity[..used]),
        exited: false,
        in_vdso: false,
        own_directory: None,
        own_credentials: None,
    }
}
