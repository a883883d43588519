//! Where the ids of a computation can be had: all of them in one place.
//!
//! Here, when they are free and may be asked for, of the kernel or of the tracer: then nothing differs from before.
//! Otherwise in a pid namespace of its own; for those who may not make one, inside a user namespace.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use stasis_protocol::image::checksum;

use super::{
    credentials, ids,
    namespace::{self, After},
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
        let asked_tracer = ids::are_the_tracer_s();
        ids::forget_tracer();
        if asked_tracer
            && request.shows_progress
            && let Err(Unspawned::Ids(reason)) = &spawned
        {
            eprintln!(
                "stasis: the tracer gives ids, but not all of these, so a pid namespace is tried: {reason}"
            );
        }
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

/// After which ids those come that the kernel chooses: what it had given last when the checkpoint was taken.
pub fn after(request: &Request<'_>) -> After {
    let images = request.computation.images();
    let last = images.iter().map(|image| image.ids.last).max().unwrap_or(0);
    // Those of who is outside may be remembered as well ($PPID).
    let outside = images.iter().flat_map(|image| [image.ids.ppid, image.ids.pgid, image.ids.sid]);
    // The restorer's threads need some.
    let room = 64 + 16 * images.len() as i32;
    let after = past(last, ids(request).collect(), outside.max().unwrap_or(0), room);
    After { limit: namespace::pid_limit(), ..after }
}

/// Goes on past such ids that must be had as are near, and past those of who is outside.
fn past(mut last: i32, mut ids: Vec<i32>, outside: i32, room: i32) -> After {
    ids.sort_unstable();
    let is_unknown = last == 0;
    for &id in &ids {
        if is_unknown || id > last && id - last <= room {
            last = id;
        }
    }
    let remembered_from = ids.into_iter().find(|&id| id > last);
    let id = if remembered_from.is_none() { last.max(outside) } else { last };
    After { id, remembered_from, limit: None }
}

/// The same outside of a namespace: where another boot counts ids now, they go on from there as well. Not where that would give
/// others sooner the ids that they remember.
pub fn go_on_here(request: &Request<'_>) {
    let images = request.computation.images();
    let here = counts_ids();
    let is_elsewhere = images.iter().any(|image| Some(image.machine.counts_ids) != here);
    if is_elsewhere && (!is_first_namespace() || have_not_begun_anew()) {
        let after = after(request);
        match ids::are_the_tracer_s() {
            // All users' processes are there: it only goes forward.
            true => ids::go_on_after(after.id),
            false => namespace::go_on_after(after),
        }
    }
}

/// Whether this is the machine's own pid namespace (linux/nsfs.h, PID_NS_INIT_INO).
fn is_first_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

/// Whether all ids above the last one are new since the machine was started: it has made no more processes and threads.
fn have_not_begun_anew() -> bool {
    let made = fs::read_to_string("/proc/stat").unwrap_or_default();
    let made = made.lines().find_map(|line| line.strip_prefix("processes ")?.parse::<u64>().ok());
    made.zip(namespace::last_id()).is_some_and(|(made, last)| made <= last as u64)
}

/// What counts the ids here: see [`stasis_protocol::image::Machine::counts_ids`].
fn counts_ids() -> Option<u64> {
    let mut bytes = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    bytes.extend(fs::read_link("/proc/self/ns/pid").ok()?.as_os_str().as_bytes());
    Some(checksum(&bytes))
}

fn here(request: &Request<'_>) -> Result<Place, String> {
    let ids: Vec<i32> = ids(request).collect();
    // A pid namespace of before has given higher ones than there are here: its limit is its own (Linux 6.14).
    let limit = namespace::pid_limit().unwrap_or(i32::MAX);
    if let Some(id) = ids.iter().find(|&&id| id >= limit) {
        return Err(format!("{id} is higher than any here (sysctl kernel.pid_max)"));
    }
    let may_choose = credentials::own().effective & (CAP_CHECKPOINT_RESTORE | CAP_SYS_ADMIN) != 0;
    if !may_choose && let Err(why_not) = ids::ask_tracer(request.address) {
        return Err(format!("you may not choose ids (CAP_CHECKPOINT_RESTORE), and {why_not}"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_on_after_the_last_one_that_was_given_and_past_such_as_must_be_had() {
        let after = |last, ids: &[i32]| {
            let After { id, remembered_from, .. } = past(last, ids.to_vec(), 850, 80);
            (id, remembered_from)
        };
        assert_eq!(after(900, &[500, 510]), (900, None));
        // They had begun anew: what is remembered lies above.
        assert_eq!(after(900, &[32000, 500]), (900, Some(32000)));
        assert_eq!(after(900, &[970, 1040, 500, 32000]), (1040, Some(32000)));
        assert_eq!(after(800, &[500]), (850, None));
        // A kernel that does not tell.
        assert_eq!(after(0, &[5010, 500]), (5010, None));
    }
}
