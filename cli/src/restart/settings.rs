//! Limits, scheduling and the other settings that a process has in the kernel.

use std::fs;

use stasis_protocol::{
    coordinator::Refusal,
    image::{ProcessImage, Thread},
    plan::Call,
};

use super::{
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
    if image.threads.first().is_none_or(|leader| leader.tid != image.ids.pid) {
        refusals.push(refusal(
            format!("pid {}", image.ids.pid),
            "the image is damaged: its first thread is not the leader",
            "run `stasis verify`, and restart from another checkpoint",
        ));
    }
}

/// Settings that are made by the restored process itself, before its credentials.
pub fn plan(image: &ProcessImage, exe: Option<i32>, plan: &mut Plan) {
    memory_map(image, exe, plan);
    for limit in &image.limits {
        if own_limit(limit.resource) == Some((limit.soft, limit.hard)) {
            continue;
        }
        let bytes: Vec<u8> = [limit.soft, limit.hard].iter().flat_map(|value| value.to_ne_bytes()).collect();
        let at = plan.keep(&bytes);
        plan.calls.push(pointing(call(libc::SYS_prlimit64, &[0, limit.resource.into(), 0, 0]), 2, at));
    }
    let flag = |option: i32, value: bool| call(libc::SYS_prctl, &[option as u64, value.into(), 0, 0, 0]);
    plan.calls.push(flag(libc::PR_SET_CHILD_SUBREAPER, image.settings.subreaper));
    plan.calls.push(flag(libc::PR_SET_THP_DISABLE, image.settings.thp_disable));
}

/// prctl(2), PR_SET_MM_MAP: where the program's parts, its arguments and its environment are. The link
/// /proc/self/exe needs CAP_CHECKPOINT_RESTORE; without, the rest is set all the same.
fn memory_map(image: &ProcessImage, exe: Option<i32>, plan: &mut Plan) {
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
        plan.calls.push(Call { may_fail: 1, ..set });
    }
}

/// struct sched_attr (sched_setattr(2)), first version: 48 bytes.
const SCHED_ATTR: u32 = 48;

/// The calls that one thread makes for itself.
pub fn thread_calls(thread: &Thread, plan: &mut Plan) -> Vec<Call> {
    let mut calls = Vec::new();
    // SAFETY: getpriority(2) and sched_getscheduler(2) take numbers.
    let (nice, policy) = unsafe { (libc::getpriority(libc::PRIO_PROCESS, 0), libc::sched_getscheduler(0)) };
    if thread.nice != nice || thread.policy != policy as u32 || thread.priority != 0 {
        let mut attr = Vec::with_capacity(SCHED_ATTR as usize);
        attr.extend(SCHED_ATTR.to_ne_bytes());
        attr.extend(thread.policy.to_ne_bytes());
        attr.extend(thread.sched_flags.to_ne_bytes());
        attr.extend(thread.nice.to_ne_bytes());
        attr.extend(thread.priority.to_ne_bytes());
        attr.resize(SCHED_ATTR as usize, 0);
        let at = plan.keep(&attr);
        // The nice value by itself: under SCHED_IDLE sched_setattr(2) does not take it.
        calls.push(call(libc::SYS_setpriority, &[libc::PRIO_PROCESS.into(), 0, thread.nice as u64]));
        calls.push(pointing(call(libc::SYS_sched_setattr, &[0, 0, 0]), 1, at));
    }
    if !thread.affinity.is_empty() {
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
    // SAFETY: umask(2) and personality(2) take numbers.
    unsafe {
        libc::umask(image.umask);
        libc::personality(libc::c_ulong::from(image.settings.personality));
    }
    // Lowering it is root's: the program is then killed earlier than it was when memory is short.
    let _ = fs::write("/proc/self/oom_score_adj", image.settings.oom_score_adj.to_string());
}
