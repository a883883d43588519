//! Who has the other ends of connections that lead out of a computation. Its own processes know no more of them than an
//! address, and of unix sockets not that; the tracer is told by the kernel.

use stasis_protocol::{
    coordinator::Refusal,
    tracer::{Connection, OtherEnd},
};

use super::{client::Tracer, number};
use crate::{address::Address, failure::Failure, process};

/// Names them in a refusal of the computation at `address`, where a tracer runs.
pub fn named(error: anyhow::Error, address: &Address) -> anyhow::Error {
    match error.downcast::<Failure>() {
        Ok(Failure::Refused(mut refusals)) => {
            name(&mut refusals, address);
            Failure::Refused(refusals).into()
        }
        Ok(failure) => failure.into(),
        Err(error) => error,
    }
}

fn name(refusals: &mut [Refusal], address: &Address) {
    if refusals.iter().all(|refusal| inode(refusal).is_none()) {
        return;
    }
    let Ok(Some(mut tracer)) = Tracer::connect() else { return };
    let Ok(connections) = tracer.connections(number(address)) else { return };
    for refusal in refusals {
        let Some(inode) = inode(refusal) else { continue };
        let connection = connections.iter().find(|connection| connection.inode == inode);
        if let Some(who) = connection.and_then(|connection| who(connection, &mut tracer)) {
            refusal.reason = format!("{}, in {who}", refusal.reason);
        }
    }
}

/// Of the socket that a refusal is about: it is named as in /proc/PID/fd, `socket:[INODE]`.
fn inode(refusal: &Refusal) -> Option<u64> {
    refusal.what.rsplit_once("socket:[")?.1.split_once(']')?.0.parse().ok()
}

fn who(connection: &Connection, tracer: &mut Tracer) -> Option<String> {
    Some(match &connection.other {
        // It has been closed, or accepted, meanwhile.
        OtherEnd::None | OtherEnd::Inside { .. } => return None,
        OtherEnd::Host { pid: Some(pid) } => match process::name(*pid) {
            Some(name) => format!("pid {pid} ({name}), which belongs to no computation"),
            None => format!("pid {pid}, which belongs to no computation"),
        },
        OtherEnd::Host { pid: None } => "another user's process of this machine".into(),
        OtherEnd::Computation { computation: Some(computation) } => {
            let tasks = tracer.tasks(Some(*computation)).map(|(tasks, _)| tasks).unwrap_or_default();
            match tasks.first() {
                Some(task) => format!("the computation at {}", task.label),
                None => "another computation".into(),
            }
        }
        OtherEnd::Computation { computation: None } => "another user's computation".into(),
        OtherEnd::Elsewhere if connection.remote.is_empty() => return None,
        OtherEnd::Elsewhere => format!("no process of this machine ({})", connection.remote),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_s_socket_is_found_by_its_inode() {
        let inode =
            |what: &str| inode(&Refusal { what: what.into(), reason: String::new(), remedy: String::new() });
        assert_eq!(inode("pid 17, fd 4 (socket:[12345])"), Some(12345));
        assert_eq!(inode("pid 17, fd 4 (pipe:[12345])"), None);
        assert_eq!(inode("pid 17, fd 4 (/tmp/socket:[x])"), None);
    }
}
