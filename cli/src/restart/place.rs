//! Where the program's ids can be had.
//!
//! Here, when they are free and may be asked for: then nothing differs from before. Otherwise in a pid namespace of
//! the program's own; for those who may not make one, inside a user namespace.

use std::path::Path;

use anyhow::bail;
use stasis_protocol::image::ProcessImage;

use super::{
    credentials,
    spawn::{self, Child, Request, Unspawned},
};
use crate::failure::Failure;

/// A place to try.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Here,
    /// A pid namespace; with a user namespace of the given user and group.
    Namespace {
        user: Option<(u32, u32)>,
    },
}

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

/// Makes the program go on, in the first place where that is possible.
///
/// # Errors
/// Why it is in none, or what else could not be restored. Nothing is left then.
pub fn spawn(request: &Request<'_>) -> anyhow::Result<Child> {
    let image = &request.saved.image;
    let mut reasons = Vec::new();
    for place in [here, namespace, user_namespace] {
        let spawned = match place(image) {
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
        format!("pid {}", image.ids.pid),
        format!("the program must have the ids that it knows itself by: {}", reasons.join("; ")),
        "restart when they are free (`stasis kill` ends a computation), as root, or where user namespaces are allowed \
         (sysctl user.max_user_namespaces); see `stasis doctor`"
    ))
}

fn here(image: &ProcessImage) -> Result<Place, String> {
    let tids = image.threads.iter().map(|thread| thread.tid);
    // A zombie has its id still, and is seen here.
    if let Some(taken) = tids.into_iter().find(|tid| Path::new(&format!("/proc/{tid}")).exists()) {
        return Err(format!("{taken} is in use"));
    }
    if credentials::own().effective & (CAP_CHECKPOINT_RESTORE | CAP_SYS_ADMIN) == 0 {
        return Err("you may not choose ids (CAP_CHECKPOINT_RESTORE)".into());
    }
    Ok(Place::Here)
}

fn namespace(image: &ProcessImage) -> Result<Place, String> {
    not_init(image)?;
    if credentials::own().effective & CAP_SYS_ADMIN == 0 {
        return Err("you may not make a pid namespace (CAP_SYS_ADMIN)".into());
    }
    Ok(Place::Namespace { user: None })
}

fn user_namespace(image: &ProcessImage) -> Result<Place, String> {
    not_init(image)?;
    if image.credentials.permitted != 0 {
        return Err("its capabilities would be worth nothing in a user namespace".into());
    }
    let own = credentials::own();
    let one = |ids: [u32; 4]| ids.iter().all(|id| *id == ids[0]);
    if !one(own.uid) || !one(own.gid) || own.uid != image.credentials.uid || own.gid != image.credentials.gid
    {
        return Err("a user namespace has one user and group only".into());
    }
    Ok(Place::Namespace { user: Some((own.uid[0], own.gid[0])) })
}

/// The id 1 is that of the process which makes the program in its namespace.
fn not_init(image: &ProcessImage) -> Result<(), String> {
    if image.threads.iter().any(|thread| thread.tid == 1) {
        return Err("1 is in use in every pid namespace".into());
    }
    Ok(())
}
