//! The threads' part of the record: what they said of themselves in the stop handler, and what the
//! kernel says of them from outside.

use alloc::{string::String, vec, vec::Vec};
use core::sync::atomic::Ordering::Relaxed;

use stasis_protocol::image::Thread;
use stasis_sys::process;

use crate::{quiesce::Quiet, threads};

pub fn capture(quiet: &Quiet) -> Vec<Thread> {
    let pid = process::getpid();
    let mut threads: Vec<Thread> = quiet
        .tids
        .iter()
        .filter_map(|&tid| {
            let slot = threads::claim(tid)?;
            Some(Thread {
                resume_sp: slot.resume_sp.load(Relaxed),
                fs_base: slot.fs_base.load(Relaxed),
                gs_base: slot.gs_base.load(Relaxed),
                clear_tid: slot.clear_tid.load(Relaxed),
                name: name(slot),
                in_vdso: slot.in_vdso.load(Relaxed) != 0,
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
        affinity: vec::Vec::from(&affinity[..used]),
        exited: false,
        in_vdso: false,
    }
}
