//! One pass over all processes: it begins to track those that are asked for, finds what was missed, and tells all
//! that are tracked. It runs when the service reads from the iterator.

use core::ffi::c_void;

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use stasis_events::{Counter, Task, flag};

use crate::{
    kernel::{Kernel, lives, start_ns},
    maps::{REQUESTS, TASKS, count},
    offset,
    tasks::{Tracked, describe, release, track},
};

/// `bpf_iter__task`: the kernel fills in pointers that may be handed to helpers as they are.
#[repr(C)]
struct Context {
    meta: *const Meta,
    task: *const c_void,
}

#[repr(C)]
pub struct Meta {
    pub seq: *mut seq_file,
}

/// Nanoseconds in a clock tick of /proc/PID/stat (USER_HZ is 100 on every architecture that Stasis runs on).
const TICK: u64 = 10_000_000;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn all_tasks(context: *const c_void) -> i32 {
    let context: *const Context = context.cast();
    // SAFETY: the context is what the kernel says it is; the verifier checks it.
    let (meta, task) = unsafe { ((*context).meta, (*context).task) };
    // The last call says that there are no more.
    if task.is_null() {
        return 0;
    }
    let task = Kernel(task as u64);
    let tgid: u32 = task.read(offset!(task_tgid));
    let first = task.read::<u32>(offset!(task_pid)) == tgid;
    if !first || !lives(task) {
        return 0;
    }
    // SAFETY: a value that is replaced while it is copied could be mixed up; only its own process replaces it.
    let known = match unsafe { TASKS.get(tgid) } {
        // An entry of another process, whose end was not seen, that had this pid.
        Some(known) if known.start_ns != start_ns(task) => {
            release(known.owner);
            let _ = TASKS.remove(tgid);
            false
        }
        Some(_) => true,
        None => false,
    };
    register(task, tgid, known);
    if !known {
        find(task, tgid);
    }
    // SAFETY: as above.
    let Some(entry) = (unsafe { TASKS.get(tgid) }) else { return 0 };
    let copy: Task = *entry;
    // SAFETY: the kernel's own pointer; the record is on the stack. When there is no room the kernel calls again.
    unsafe { bpf_seq_write((*meta).seq, (&raw const copy).cast(), size_of::<Task>() as u32) };
    0
}

/// Tracks a process that is asked for.
#[inline(always)]
fn register(task: Kernel, tgid: u32, known: bool) {
    // SAFETY: the service changes no request while it reads the iterator.
    let Some(request) = (unsafe { REQUESTS.get(tgid) }) else { return };
    let mut new = describe(task, request.computation, request.owner, 0);
    if new.start_ns / TICK != request.start_ticks || (request.uid != 0 && new.uid != request.uid) {
        return;
    }
    if known {
        let Some(entry) = TASKS.get_ptr_mut(tgid) else { return };
        // SAFETY: its own process changes other fields of it only.
        let entry = unsafe { &mut *entry };
        if entry.owner == request.owner {
            entry.computation = request.computation;
            entry.flags |= flag::REGISTERED;
        }
        return;
    }
    new.creator = parent(task);
    new.flags = flag::REGISTERED;
    add(task, &new);
}

/// Tracks a child of a tracked process that is not tracked: it was made while no program was attached, or there was
/// no room.
#[inline(always)]
fn find(task: Kernel, tgid: u32) {
    let parent = parent(task);
    // SAFETY: as above.
    let Some(of) = (unsafe { TASKS.get(parent) }) else { return };
    let (computation, owner) = (of.computation, of.owner);
    // SAFETY: as above.
    if parent == tgid || unsafe { TASKS.get(tgid) }.is_some() {
        return;
    }
    let mut new = describe(task, computation, owner, parent);
    new.flags = flag::FOUND;
    if add(task, &new) {
        count(Counter::Found);
    }
}

fn parent(task: Kernel) -> u32 {
    task.follow(offset!(task_real_parent)).read(offset!(task_tgid))
}

/// Whether it is tracked now.
#[inline(always)]
fn add(task: Kernel, new: &Task) -> bool {
    if !matches!(track(new), Tracked::New) {
        return false;
    }
    // It may have ended meanwhile, before there was an entry to be removed.
    if !lives(task) && TASKS.remove(new.tgid).is_ok() {
        release(new.owner);
        return false;
    }
    true
}
