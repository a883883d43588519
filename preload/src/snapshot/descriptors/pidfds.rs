//! pidfds: fdinfo tells the id of the process that one stands for (pidfd_open(2)). It is made again where that process is.

use alloc::format;

use stasis_protocol::{
    coordinator::{End, Refusal},
    image::DescriptionKind,
};
use stasis_sys::process;

use super::{CLOSE_IT, Open, ends, refusal};
use crate::procfs;

/// PIDFD_THREAD.
const THREAD: u32 = libc::O_EXCL as u32;

pub fn capture(open: &Open) -> Result<DescriptionKind, Refusal> {
    let Some(id) = open.field("Pid:").and_then(procfs::signed) else {
        return open.refuse("fdinfo does not tell its process on this kernel", CLOSE_IT);
    };
    let id = id as i32;
    if id == 0 {
        return open.refuse("the process that it stands for is in another pid namespace", CLOSE_IT);
    }
    let thread = open.flags & THREAD != 0;
    if thread && id > 0 && procfs::link(path!("/proc/self/task/{id}/exe").as_c_str()).is_err() {
        return Err(refusal(
            open.fd,
            &open.link,
            format!("it stands for thread {id} (PIDFD_THREAD), which is another process' or has ended"),
            CLOSE_IT,
        ));
    }
    Ok(DescriptionKind::Process { id, thread })
}

/// What a pidfd wants: that its process is of the computation. `None` where this process knows that it is.
pub fn wants(open: &Open, id: i32, thread: bool) -> Option<End> {
    // Who has ended and been waited for has no id; an ended child comes back as one.
    if id < 0 || thread || id == process::getpid() || process::ended_child(id).is_ok_and(|end| end.is_some())
    {
        return None;
    }
    Some(End {
        has: ends::named(key(id), false),
        wants: ends::named(key(id), true),
        refusal: Some(refusal(
            open.fd,
            &open.link,
            format!("it stands for process {id}, which is not part of the checkpoint"),
            "launch that process in the same computation, or let the program close the pidfd",
        )),
        socket: false,
        terminal: None,
    })
}

/// The end that every process is for pidfds that others have of it, and every child that has ended.
pub fn of(pid: i32) -> End {
    let has = ends::named(key(pid), true);
    End { has, wants: has, refusal: None, socket: false, terminal: None }
}

/// Names a process among ends of connections.
fn key(id: i32) -> u64 {
    const PROCESS: u64 = 0x5044_4946_4444_4950;
    u64::from(id as u32).rotate_left(32) ^ PROCESS
}
