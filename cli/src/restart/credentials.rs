//! User, groups and capabilities: the restored program has what it had, and never more.

use std::fs;

use anyhow::Context as _;
use stasis_protocol::{
    coordinator::Refusal,
    image::{Credentials, ProcessImage},
    plan::Call,
};

use super::{
    plan::{Plan, attempt, call, pointing},
    refusal,
};

/// What this process has, read as the image's were.
pub fn own() -> Credentials {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |key: &str| {
        status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_string()
    };
    let ids = |key| {
        let mut ids = [u32::MAX; 4];
        for (id, word) in ids.iter_mut().zip(field(key).split_whitespace()) {
            *id = word.parse().unwrap_or(u32::MAX);
        }
        ids
    };
    let caps = |key| u64::from_str_radix(&field(key), 16).unwrap_or(0);
    // SAFETY: prctl(2) with numbers.
    let securebits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    Credentials {
        uid: ids("Uid:"),
        gid: ids("Gid:"),
        groups: field("Groups:").split_whitespace().filter_map(|group| group.parse().ok()).collect(),
        inheritable: caps("CapInh:"),
        permitted: caps("CapPrm:"),
        effective: caps("CapEff:"),
        bounding: caps("CapBnd:"),
        ambient: caps("CapAmb:"),
        securebits: securebits.max(0) as u32,
        no_new_privs: field("NoNewPrivs:") == "1",
    }
}

const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETPCAP: u64 = 1 << 8;

pub fn check(image: &ProcessImage, refusals: &mut Vec<Refusal>) {
    let (had, have) = (&image.credentials, own());
    let mut need = |missing: u64, what: String, reason: &str| {
        if have.effective & missing == 0 {
            refusals.push(refusal(what, reason, "restart it as the user that it ran as, or as root"));
        }
    };
    if had.uid != have.uid {
        need(CAP_SETUID, format!("uid {}", had.uid[1]), "you are another user, and may not become this one");
    }
    if had.gid != have.gid || !same_groups(&had.groups, &have.groups) {
        need(
            CAP_SETGID,
            format!("gid {}, groups {:?}", had.gid[1], had.groups),
            "you may not take these groups",
        );
    }
    if have.bounding & !had.bounding != 0 {
        need(
            CAP_SETPCAP,
            "its capability bounding set".into(),
            "it had fewer than you, and you may not drop them",
        );
    }
    let missing = had.permitted & !have.permitted;
    if missing != 0 {
        refusals.push(refusal(
            "its capabilities",
            format!("the program had {missing:#x}, which you do not have"),
            "restart it as root",
        ));
    }
    if have.no_new_privs && !had.no_new_privs {
        refusals.push(refusal(
            "no_new_privs",
            "it is set here and cannot be cleared; the program ran without it",
            "restart from a shell without it",
        ));
    }
}

/// Whether the groups are the same. In a user namespace the program saw those that are not mapped there as the
/// overflow group (user_namespaces(7)), each of which stands for one of ours.
fn same_groups(had: &[u32], have: &[u32]) -> bool {
    const OVERFLOW: u32 = 65534;
    let mut others = have.to_vec();
    let mut unknown = 0;
    for group in had {
        match others.iter().position(|other| other == group) {
            Some(at) => drop(others.swap_remove(at)),
            None if *group == OVERFLOW => unknown += 1,
            None => return false,
        }
    }
    others.len() == unknown
}

/// Makes the capabilities of this process survive the exec of the restorer, which chooses the threads' ids with
/// them and then drops what the program did not have. Root's do anyway (capabilities(7)).
///
/// # Errors
/// When the kernel has no ambient capabilities (before Linux 4.3).
pub fn keep_across_exec() -> anyhow::Result<()> {
    let own = own();
    if own.uid[1] == 0 || own.permitted == 0 {
        return Ok(());
    }
    let header = [CAPABILITY_VERSION_3, 0];
    let words = capability_words(own.permitted, own.permitted, own.permitted);
    // SAFETY: capset(2) reads a header of two words and six words of sets.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), words.as_ptr()) };
    let raise = |capability: u64| {
        // SAFETY: prctl(2) with numbers.
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) }
    };
    if set < 0 || (0..64).filter(|bit| own.permitted & 1 << bit != 0).any(|capability| raise(capability) < 0)
    {
        return Err(std::io::Error::last_os_error()).context("keeping capabilities for the restorer");
    }
    Ok(())
}

/// The calls that each thread makes before any restored code runs, so that it has exactly what it had.
/// Credentials are a thread's own for the kernel (credentials(7)). `have` is what the restorer will have.
pub fn plan(image: &ProcessImage, have: &Credentials, plan: &mut Plan) {
    let dumpable = image.settings.dumpable;
    let common = calls(&image.credentials, have, dumpable, plan);
    plan.thread_calls.extend(common);
    for (index, thread) in image.threads.iter().enumerate() {
        if let Some(own) = &thread.own_credentials {
            let own = calls(own, have, dumpable, plan);
            let (record, calls) = &mut plan.threads[index];
            record.own = 1;
            calls.extend(own);
        }
    }
}

/// Those of a thread that had `had`.
fn calls(had: &Credentials, have: &Credentials, dumpable: u32, plan: &mut Plan) -> Vec<Call> {
    let mut calls = Vec::new();
    let id = u64::from;
    let dropped = have.bounding & !had.bounding;
    for capability in (0..64).filter(|bit| dropped & 1 << bit != 0) {
        calls.push(call(libc::SYS_prctl, &[libc::PR_CAPBSET_DROP as u64, capability]));
    }
    if !same_groups(&had.groups, &have.groups) {
        let bytes: Vec<u8> = had.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        let at = plan.keep(&bytes);
        calls.push(pointing(call(libc::SYS_setgroups, &[had.groups.len() as u64, 0]), 1, at));
    }
    if had.gid != have.gid {
        calls.push(call(libc::SYS_setresgid, &[id(had.gid[0]), id(had.gid[1]), id(had.gid[2])]));
        calls.push(attempt(libc::SYS_setfsgid, &[id(had.gid[3])]));
    }
    let ids_change = had.uid != have.uid;
    if ids_change {
        calls.push(call(libc::SYS_prctl, &[libc::PR_SET_KEEPCAPS as u64, 1]));
        calls.push(call(libc::SYS_setresuid, &[id(had.uid[0]), id(had.uid[1]), id(had.uid[2])]));
        calls.push(attempt(libc::SYS_setfsuid, &[id(had.uid[3])]));
    }
    let sets = (had.effective, had.permitted, had.inheritable);
    // Which takes a capability that the program may not have (capabilities(7), CAP_SETPCAP).
    let securebits_change = had.securebits != have.securebits;
    if securebits_change {
        let all = had.permitted | have.permitted & CAP_SETPCAP;
        calls.push(set_capabilities((all, all, had.inheritable), plan));
    } else if ids_change || sets != (have.effective, have.permitted, have.inheritable) {
        calls.push(set_capabilities(sets, plan));
    }
    if had.ambient != have.ambient || ids_change {
        calls.push(attempt(
            libc::SYS_prctl,
            &[libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0, 0],
        ));
        for capability in (0..64).filter(|bit| had.ambient & 1 << bit != 0) {
            calls.push(call(
                libc::SYS_prctl,
                &[libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_RAISE as u64, capability, 0, 0],
            ));
        }
    }
    if securebits_change {
        calls.push(call(libc::SYS_prctl, &[libc::PR_SET_SECUREBITS as u64, id(had.securebits)]));
        calls.push(set_capabilities(sets, plan));
    }
    if ids_change && had.securebits == have.securebits {
        calls.push(attempt(libc::SYS_prctl, &[libc::PR_SET_KEEPCAPS as u64, 0]));
    }
    if had.no_new_privs {
        calls.push(call(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]));
    }
    // Changing ids makes a process undumpable (prctl(2), PR_SET_DUMPABLE); 2 cannot be set, and is what
    // remains then.
    if dumpable <= 1 {
        calls.push(call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, id(dumpable)]));
    }
    calls
}

/// The version of capset(2)'s header.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// capset(2)'s sets: the low halves of all three, then the high ones.
fn capability_words(effective: u64, permitted: u64, inheritable: u64) -> [u32; 6] {
    let sets = [effective, permitted, inheritable];
    let (low, high) = (sets.map(|set| set as u32), sets.map(|set| (set >> 32) as u32));
    [low[0], low[1], low[2], high[0], high[1], high[2]]
}

fn set_capabilities((effective, permitted, inheritable): (u64, u64, u64), plan: &mut Plan) -> Call {
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let header = plan.keep(&bytes(&[CAPABILITY_VERSION_3, 0]));
    let data = plan.keep(&bytes(&capability_words(effective, permitted, inheritable)));
    pointing(pointing(call(libc::SYS_capset, &[0, 0]), 0, header), 1, data)
}
