//! Where the ids of a computation can be had: all of them in one place.
//!
//! Here, when they are free and may be asked for: then nothing differs from before. Otherwise in a pid namespace of
//! its own; for those who may not make one, inside a user namespace.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{
    credentials,
    running::Child,
    spawn::{self, Request, Unspawned},
};
use crate::{failure::Failure, process};

/// A place to try.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Here,
    /// A pid namespace; with a user namespace of the given user and group.
    Namespace {
        user: Option<(u32, u32)>,
    },
}

/// How long whoever waits for those that have just ended (`checkpoint --kill`), such as init, may take to.
const REAPING: Duration = Duration::from_millis(300);

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

/// Makes the computation go on, in the first place where that is possible.
///
/// # Errors
/// Why it is in none, or what else could not be restored. Nothing is left then.
pub fn spawn(request: &Request<'_>) -> anyhow::Result<Child> {
    let mut reasons = Vec::new();
    for place in [here, namespace, user_namespace] {
        let spawned = match place(request) {
            Ok(place) => spawn::spawn(request, place),
            Err(reason) => Err(Unspawned::Ids(reason)),
        };
        match spawned {
            Ok(child) => return Ok(child),
            Err(Unspawned::Other(error)) => return Err(error),
            Err(Unspawned::Ids(reason)) => reasons.push(reason),
        }
    }
    bail!(Failure::refused(
        format!("pid {}", request.computation.processes[0].image.ids.pid),
        format!("the program must have the ids that it knows itself by: {}", reasons.join("; ")),
        "restart when they are free (`stasis kill` ends a computation), as root, or where user namespaces are allowed \
         (sysctl user.max_user_namespaces); see `stasis doctor`"
    ))
}

/// The ids that must be had: of processes, of their threads, of those that have ended.
pub fn ids<'a>(request: &'a Request<'_>) -> impl Iterator<Item = i32> + 'a {
    let processes = request.computation.processes.iter();
    let threads = processes.flat_map(|saved| saved.image.threads.iter().map(|thread| thread.tid));
    threads.chain(request.tree.nodes.iter().map(|node| node.id))
}

fn here(request: &Request<'_>) -> Result<Place, String> {
    let ids: Vec<i32> = ids(request).collect();
    // A pid namespace of before has given higher ones than there are here: its limit is its own (Linux 6.14).
    let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
    let limit: i32 = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(i32::MAX);
    if let Some(id) = ids.iter().find(|&&id| id >= limit) {
        return Err(format!("{id} is higher than any here (sysctl kernel.pid_max)"));
    }
    let until = Instant::now() + REAPING;
    // A zombie has its id still, and is seen here.
    while let Some(taken) = ids.iter().find(|id| Path::new(&format!("/proc/{id}")).exists()) {
        let ends = matches!(process::state(*taken as u32), None | Some('Z' | 'X'));
        if !ends || Instant::now() >= until {
            return Err(format!("{taken} is in use"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    if credentials::own().effective & (CAP_CHECKPOINT_RESTORE | CAP_SYS_ADMIN) == 0 {
        return Err("you may not choose ids (CAP_CHECKPOINT_RESTORE)".into());
    }
    Ok(Place::Here)
}

fn namespace(request: &Request<'_>) -> Result<Place, String> {
    not_init(request)?;
    if credentials::own().effective & CAP_SYS_ADMIN == 0 {
        return Err("you may not make a pid namespace (CAP_SYS_ADMIN)".into());
    }
    Ok(Place::Namespace { user: None })
}

fn user_namespace(request: &Request<'_>) -> Result<Place, String> {
    not_init(request)?;
    let own = credentials::own();
    let one = |ids: [u32; 4]| ids.iter().all(|id| *id == ids[0]);
    for had in request.computation.processes.iter().map(|saved| &saved.image.credentials) {
        if had.permitted != 0 {
            return Err("its capabilities would be worth nothing in a user namespace".into());
        }
        if !one(own.uid) || !one(own.gid) || own.uid != had.uid || own.gid != had.gid {
            return Err("a user namespace has one user and group only".into());
        }
    }
    Ok(Place::Namespace { user: Some((own.uid[0], own.gid[0])) })
}

/// The id 1 is that of the process which makes the others in their namespace.
fn not_init(request: &Request<'_>) -> Result<(), String> {
    if ids(request).any(|id| id == 1) {
        return Err("1 is in use in every pid namespace".into());
    }
    Ok(())
}
