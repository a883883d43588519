//! Limits, scheduling and the other settings that a process has in the kernel.

use std::fs;

use stasis_protocol::{
    coordinator::Refusal,
    image::{ProcessImage, Thread},
    plan::Call,
};

use super::{
    descriptors::path_now,
    plan::{Plan, attempt, call, pointing},
    refusal,
};

fn own_limit(resource: u32) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) fills in one struct rlimit.
    (unsafe { libc::getrlimit(resource, &mut limit) } == 0).then_some((limit.rlim_cur, limit.rlim_max))
}

pub fn check(image: &ProcessImage, refusals: &mut Vec<Refusal>) {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let may_raise = super::credentials::own().effective & CAP_SYS_RESOURCE != 0;
    for limit in &image.limits {
        let Some((_, hard)) = own_limit(limit.resource) else { continue };
        if limit.hard > hard && !may_raise {
            refusals.push(refusal(
                format!("resource limit {} (getrlimit(2))", limit.resource),
                format!("the program had a hard limit of {}, and yours is {hard}", limit.hard),
                "raise it (ulimit -H), or restart as root",
            ));
        }
    }
    tell_of_scheduling(image);
    let directories = image.threads.iter().filter_map(|thread| thread.own_directory.as_ref());
    for directory in directories.map(|(directory, _)| directory).chain([&image.cwd]) {
        if path_now(image, directory) != *directory {
            // What the process sees of itself in /proc is there when it is.
            continue;
        }
        let reason = match fs::metadata(directory) {
            Ok(found) if found.is_dir() => continue,
            Ok(_) => "it is no directory any more".into(),
            Err(error) => format!("it cannot be found: {error}"),
        };
        refusals.push(refusal(
            format!("pid {}, its working directory {directory}", image.ids.pid),
            reason,
            "make a directory there",
        ));
    }
    if image.threads.first().is_none_or(|leader| leader.tid != image.ids.pid) {
        refusals.push(refusal(
            format!("pid {}", image.ids.pid),
            "the image is damaged: its first thread is not the leader",
            "run `stasis verify`, and restart from another checkpoint",
        ));
    }
}

/// Settings that are made by the restored process itself, before its credentials. `namespaced`: what needs capabilities there
/// is left to a child in a user namespace.
pub fn plan(image: &ProcessImage, exe: Option<i32>, namespaced: bool, plan: &mut Plan) {
    memory_map(image, exe, namespaced, plan);
    for limit in &image.limits {
        let own = own_limit(limit.resource);
        if own == Some((limit.soft, limit.hard)) {
            continue;
        }
        let bytes: Vec<u8> = [limit.soft, limit.hard].iter().flat_map(|value| value.to_ne_bytes()).collect();
        let at = plan.keep(&bytes);
        let set = pointing(call(libc::SYS_prlimit64, &[0, limit.resource.into(), 0, 0]), 2, at);
        if limit.resource == libc::RLIMIT_NPROC && own.is_some_and(|(_, hard)| limit.hard <= hard) {
            // The threads that the program had are made whatever it has allowed itself since.
            plan.last_calls.push(set);
        } else {
            plan.calls.push(set);
        }
    }
    keys(image.settings.protection_keys, plan);
    let flag = |option: i32, value: bool| call(libc::SYS_prctl, &[option as u64, value.into(), 0, 0, 0]);
    plan.calls.push(flag(libc::PR_SET_CHILD_SUBREAPER, image.settings.subreaper));
    let thp = image.settings.thp_disable;
    let disable = |flags: u32| [libc::PR_SET_THP_DISABLE as u64, (thp & 1).into(), flags.into(), 0, 0];
    // The flags are not known to all kernels.
    plan.calls.push(call(libc::SYS_prctl, &disable(0)));
    if thp & !1 != 0 {
        plan.calls.push(attempt(libc::SYS_prctl, &disable(thp & !1)));
    }
}

/// The protection keys, before memory gets them: the kernel gives the lowest that is free (pkey_alloc(2)).
fn keys(keys: u32, plan: &mut Plan) {
    let Some(highest) = keys.checked_ilog2() else { return };
    let mut calls: Vec<Call> = (1..=highest).map(|_| call(libc::SYS_pkey_alloc, &[0, 0])).collect();
    let not_had = (1..=highest).filter(|key| keys & 1 << key == 0);
    calls.extend(not_had.map(|key| call(libc::SYS_pkey_free, &[key.into()])));
    plan.calls.splice(0..0, calls);
}

/// prctl(2), PR_SET_MM_MAP: where the program's parts, its arguments and its environment are. The link
/// /proc/self/exe needs CAP_CHECKPOINT_RESTORE, in whichever user namespace; without, the rest is set all the same.
fn memory_map(image: &ProcessImage, exe: Option<i32>, namespaced: bool, plan: &mut Plan) {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    const MAP_SIZE: u64 = 104;
    let layout = &image.layout;
    let mut auxv: Vec<u8> = layout.auxv.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // The kernel keeps AT_VECTOR_SIZE words and wants whole pairs.
    auxv.truncate(auxv.len() / 16 * 16);
    let auxv_at = plan.keep(&auxv);
    let words = [
        layout.start_code,
        layout.end_code,
        layout.start_data,
        layout.end_data,
        layout.start_brk,
        layout.brk,
        layout.start_stack,
        layout.arg_start,
        layout.arg_end,
        layout.env_start,
        layout.env_end,
        // Set below: the address of the auxiliary vector in the plan.
        0,
    ];
    let mut exes = vec![-1];
    exes.extend(exe);
    for exe in exes {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend((auxv.len() as u32).to_ne_bytes());
        bytes.extend(exe.to_ne_bytes());
        let at = plan.keep(&bytes);
        plan.pointers.push((at + 11 * 8, auxv_at));
        let set = pointing(call(libc::SYS_prctl, &[PR_SET_MM, PR_SET_MM_MAP, 0, MAP_SIZE, 0]), 2, at);
        // CONFIG_CHECKPOINT_RESTORE may be missing: then ps(1) shows the restorer's arguments.
        let calls = if namespaced && exe >= 0 { &mut plan.namespaced } else { &mut plan.calls };
        calls.push(Call { may_fail: 1, ..set });
    }
}

/// struct sched_attr (sched_setattr(2)), first version: 48 bytes.
const SCHED_ATTR: u32 = 48;

/// Not in the libc crate (linux/sched.h).
const SCHED_DEADLINE: u32 = 6;

/// The slice of the processor's time that this process has, in nanoseconds, where the kernel tells (Linux 6.12).
fn slice() -> u64 {
    let mut attr = [0u64; SCHED_ATTR as usize / 8];
    // SAFETY: sched_getattr(2) fills in at most as many bytes.
    unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attr.as_mut_ptr(), SCHED_ATTR, 0) };
    attr[3]
}

/// Whether a thread is not scheduled as this process is.
fn has_own_scheduling(thread: &Thread) -> bool {
    // SAFETY: getpriority(2) and sched_getscheduler(2) take numbers.
    let (nice, policy) = unsafe { (libc::getpriority(libc::PRIO_PROCESS, 0), libc::sched_getscheduler(0)) };
    let has_own_times = thread.sched_times != [slice(), 0, 0] && thread.sched_times != [0; 3];
    thread.nice != nice
        || thread.policy != policy as u32
        || thread.sched_flags != 0
        || thread.priority != 0
        || has_own_times
}

fn attributes(thread: &Thread) -> Vec<u8> {
    let mut attr = Vec::with_capacity(SCHED_ATTR as usize);
    attr.extend(SCHED_ATTR.to_ne_bytes());
    attr.extend(thread.policy.to_ne_bytes());
    attr.extend(thread.sched_flags.to_ne_bytes());
    attr.extend(thread.nice.to_ne_bytes());
    attr.extend(thread.priority.to_ne_bytes());
    attr.extend(thread.sched_times.iter().flat_map(|time| time.to_ne_bytes()));
    attr.resize(SCHED_ATTR as usize, 0);
    attr
}

/// Says which threads will not be scheduled as they were, because this user may not ask for it. Asked of the kernel, by threads
/// of this process.
fn tell_of_scheduling(image: &ProcessImage) {
    let mut told = Vec::new();
    for thread in image.threads.iter().filter(|thread| !thread.exited && has_own_scheduling(thread)) {
        let wanted = (thread.nice, thread.policy, thread.priority);
        if told.contains(&wanted) {
            continue;
        }
        told.push(wanted);
        let (nice, attr) = (thread.nice, attributes(thread));
        let asks = move || {
            // SAFETY: the calling thread alone is changed, and ends; sched_setattr(2) reads the structure.
            unsafe {
                libc::setpriority(libc::PRIO_PROCESS, 0, nice) != 0
                    || libc::syscall(libc::SYS_sched_setattr, 0, attr.as_ptr(), 0) != 0
            }
        };
        if std::thread::spawn(asks).join().unwrap_or(false) {
            let (pid, tid, (nice, policy, priority)) = (image.ids.pid, thread.tid, wanted);
            eprintln!(
                "stasis: pid {pid}, thread {tid}: it had nice {nice}, scheduling policy {policy} and priority {priority}, and goes \
                 on with what this command may give it; restart it without nice(1), with CAP_SYS_NICE, or with higher limits \
                 (RLIMIT_NICE, RLIMIT_RTPRIO)"
            );
        }
    }
}

/// The calls that one thread makes for itself.
pub fn thread_calls(thread: &Thread, plan: &mut Plan) -> Vec<Call> {
    let mut calls = Vec::new();
    if has_own_scheduling(thread) {
        let attr = attributes(thread);
        let at = plan.keep(&attr);
        // The nice value by itself: under SCHED_IDLE sched_setattr(2) does not take it.
        calls.push(attempt(libc::SYS_setpriority, &[libc::PRIO_PROCESS.into(), 0, thread.nice as u64]));
        calls.push(pointing(attempt(libc::SYS_sched_setattr, &[0, 0, 0]), 1, at));
    }
    if thread.io_priority != 0 {
        const IOPRIO_WHO_PROCESS: u64 = 1;
        let args = [IOPRIO_WHO_PROCESS, 0, thread.io_priority.into()];
        // The realtime class may not be for this user any more.
        calls.push(attempt(libc::SYS_ioprio_set, &args));
    }
    if let Some((path, umask)) = &thread.own_directory {
        let mut bytes = path.clone().into_bytes();
        bytes.push(0);
        let at = plan.keep(&bytes);
        calls.push(call(libc::SYS_unshare, &[libc::CLONE_FS as u64]));
        calls.push(pointing(call(libc::SYS_chdir, &[0]), 0, at));
        calls.push(call(libc::SYS_umask, &[u64::from(*umask)]));
    }
    // Threads with a deadline run on all processors (sched(7)).
    if !thread.affinity.is_empty() && thread.policy != SCHED_DEADLINE {
        let at = plan.keep(&thread.affinity);
        // A processor that is not there any more: the rest of the mask, or all, must do.
        calls.push(pointing(
            attempt(libc::SYS_sched_setaffinity, &[0, thread.affinity.len() as u64, 0]),
            2,
            at,
        ));
    }
    calls
}

/// Settings that the child makes before it becomes the restorer.
pub fn apply(image: &ProcessImage) {
    // The execution domain is each thread's own affair: some would change how the restorer maps memory.
    // SAFETY: umask(2) takes a number.
    unsafe {
        libc::umask(image.umask);
    }
    let filter = format!("{:#x}", image.settings.coredump_filter);
    let _ = fs::write("/proc/self/coredump_filter", filter);
    // Lowering it is root's: the program is then killed earlier than it was when memory is short.
    let _ = fs::write("/proc/self/oom_score_adj", image.settings.oom_score_adj.to_string());
}
