//! Tasks that begin, execute and end.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use stasis_events::{Counter, Kind, Task, User, flag};

use crate::{
    kernel::{Kernel, current, current_ids, effective_user, lives, ns_pid, start_ns},
    maps::{TASKS, USERS, add, count},
    offset,
    report::{self, Report},
};

const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x10000;

/// bpf_map_update_elem(): a new entry only.
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// `task_newtask`: in the task that makes another one, which has not run yet.
#[btf_tracepoint(function = "task_newtask")]
pub fn newtask(context: BtfTracePointContext) -> i32 {
    let (creator, _) = current_ids();
    // SAFETY: a value that is replaced while it is read could be mixed up; only its own process replaces it.
    let Some(parent) = (unsafe { TASKS.get(creator) }) else { return 0 };
    let new = Kernel(context.arg::<u64>(0));
    let flags: u64 = context.arg(1);
    if flags & CLONE_THREAD != 0 {
        let tid = new.read(offset!(task_pid));
        let report = Report {
            kind: Kind::Thread,
            tgid: creator,
            other: tid,
            flags,
            uid: parent.uid,
            ns_pid: ns_pid(new),
            comm: new.read(offset!(task_comm)),
        };
        report::task(parent, &report, 0);
        return 0;
    }
    let mut task = describe(new, parent.computation, parent.owner, creator);
    if flags & CLONE_VM != 0 {
        task.flags |= flag::SHARES_MEMORY;
    }
    match track(&task) {
        Tracked::New => announce(&task, Kind::Fork, flags),
        Tracked::Refused => announce(&task, Kind::Refused, flags),
        Tracked::Already | Tracked::NoRoom => {}
    }
    0
}

fn announce(task: &Task, kind: Kind, flags: u64) {
    let report = Report {
        kind,
        tgid: task.creator,
        other: task.tgid,
        flags,
        uid: task.uid,
        ns_pid: task.ns_pid,
        comm: task.comm,
    };
    report::task(task, &report, 0);
}

/// `sched_process_exec`: in the process, which may have been another of its threads until now.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(context: BtfTracePointContext) -> i32 {
    let (tgid, _) = current_ids();
    let Some(task) = TASKS.get_ptr_mut(tgid) else { return 0 };
    let old_tid: u32 = context.arg(1);
    let program = Kernel(context.arg::<u64>(2));
    let now = current();
    let secure = program.read::<u8>(offset!(bprm_secureexec)) & offset!(bprm_secureexec_mask) as u8 != 0;
    // SAFETY: this process alone changes its entry.
    let task = unsafe { &mut *task };
    let mut flags = task.flags & !(flag::SECURE | flag::SHARES_MEMORY) | flag::EXECUTED;
    if secure {
        flags |= flag::SECURE;
    }
    task.flags = flags;
    task.uid = effective_user(now);
    task.comm = now.read(offset!(task_comm));
    let report = Report {
        kind: Kind::Exec,
        tgid,
        other: if old_tid == tgid { 0 } else { old_tid },
        flags: flags as u64,
        uid: task.uid,
        ns_pid: task.ns_pid,
        comm: task.comm,
    };
    report::task(task, &report, program.read(offset!(bprm_filename)));
    0
}

/// `sched_process_exit`: in every thread that ends. Whether it is the last is asked of the count of threads that live,
/// which has been lowered already: kernels before 6.17 do not tell it the tracepoint.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit(context: BtfTracePointContext) -> i32 {
    let (tgid, _) = current_ids();
    // SAFETY: as in `newtask`.
    let Some(entry) = (unsafe { TASKS.get(tgid) }) else { return 0 };
    let ending = Kernel(context.arg::<u64>(0));
    if lives(ending) {
        return 0;
    }
    let task = *entry;
    // Of two threads that end at once both may see none alive: one removes it.
    if TASKS.remove(tgid).is_err() {
        return 0;
    }
    release(task.owner);
    let group: i32 = ending.follow(offset!(task_signal)).read(offset!(signal_group_exit_code));
    let own: i32 = ending.read(offset!(task_exit_code));
    let code = if group != 0 { group } else { own };
    let report = Report {
        kind: Kind::Exit,
        tgid,
        other: code as u32,
        flags: 0,
        uid: task.uid,
        ns_pid: task.ns_pid,
        comm: task.comm,
    };
    report::task(&task, &report, 0);
    0
}

/// What there is to say of a task.
#[inline(always)]
pub fn describe(task: Kernel, computation: u64, owner: u32, creator: u32) -> Task {
    Task {
        computation,
        start_ns: start_ns(task),
        owner,
        tgid: task.read(offset!(task_tgid)),
        creator,
        uid: effective_user(task),
        flags: 0,
        ns_pid: ns_pid(task),
        comm: task.read(offset!(task_comm)),
    }
}

pub enum Tracked {
    New,
    /// It was.
    Already,
    /// Its user has too many.
    Refused,
    NoRoom,
}

/// Adds a process to those that are tracked.
#[inline(always)]
pub fn track(task: &Task) -> Tracked {
    if let Some(user) = USERS.get_ptr_mut(task.owner) {
        // SAFETY: fields of a map's value; the limit is changed by nobody but the service.
        // Processors that look at once may together exceed it by one each.
        unsafe {
            if (*user).tasks >= (*user).limit {
                add(&raw mut (*user).refused, 1);
                return Tracked::Refused;
            }
            add(&raw mut (*user).tasks, 1);
        }
    }
    match TASKS.insert(task.tgid, task, BPF_NOEXIST) {
        Ok(()) => Tracked::New,
        Err(EEXIST) => {
            // SAFETY: as in `newtask`.
            let before =
                unsafe { TASKS.get(task.tgid) }.map_or((0, 0), |before| (before.start_ns, before.owner));
            if before.0 == task.start_ns {
                release(task.owner);
                return Tracked::Already;
            }
            // A process whose end was not seen had this pid.
            release(before.1);
            match TASKS.insert(task.tgid, task, 0) {
                Ok(()) => Tracked::New,
                Err(_) => no_room(task.owner),
            }
        }
        Err(_) => no_room(task.owner),
    }
}

fn no_room(owner: u32) -> Tracked {
    release(owner);
    count(Counter::Untracked);
    Tracked::NoRoom
}

/// One process of a user less.
#[inline(always)]
pub fn release(owner: u32) {
    if let Some(user) = USERS.get_ptr_mut(owner) {
        let user: *mut User = user;
        // SAFETY: a field of a map's value.
        add(unsafe { &raw mut (*user).tasks }, -1);
    }
}
