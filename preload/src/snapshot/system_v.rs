//! System V objects: segments are objects like other memory, semaphores and messages are in the record itself. One
//! process copies each, of those that may read it.

use alloc::{format, string::String, vec, vec::Vec};

use stasis_protocol::{
    births::Kind,
    coordinator::Refusal,
    image::{Object, ObjectKind, SystemV, SystemVContent},
};
use stasis_sys::{Errno, Result as SysResult, process, system_v};

use super::Objects;
use crate::system_v as noted;

/// Names an object among all that processes may have together.
pub fn key(kind: Kind, id: i32) -> u64 {
    const SYSTEM_V: u64 = 0x5356_4950_4353_5956;
    (SYSTEM_V ^ kind as u64).rotate_left(32) ^ u64::from(id as u32)
}

fn describe(id: i32, perm: &libc::ipc_perm, changed: i64) -> SystemV {
    SystemV {
        id,
        key: perm.__key,
        uid: perm.uid,
        gid: perm.gid,
        creator_uid: perm.cuid,
        creator_gid: perm.cgid,
        mode: u32::from(perm.mode),
        changed,
    }
}

/// The record of a segment.
pub fn segment(id: i32) -> SysResult<Object> {
    const SHM_DEST: u32 = 0o1000;
    let stat = system_v::shm_stat(id)?;
    let of = describe(id, &stat.shm_perm, stat.shm_ctime);
    let (mode, removed) = (of.mode & 0o777, of.mode & SHM_DEST != 0);
    let kind = ObjectKind::Segment { of, removed, creator: stat.shm_cpid };
    Ok(Object { id: 0, kind, size: stat.shm_segsz as u64, mode, key: key(Kind::Segment, id) })
}

/// Segments that were noted are objects of this process, and the keys of what else was. Who may not read one leaves it to
/// others: at least to who has made it.
///
/// # Errors
/// More are in use than could be noted.
pub fn look(objects: &mut Objects) -> Result<Vec<u64>, Refusal> {
    if noted::has_overflowed() {
        return Err(refusal(
            "System V objects",
            "the computation uses more of them, or more adjustments by SEM_UNDO, than can be kept in mind (1023)".into(),
            "remove those that are not needed any more, or use POSIX shared memory and semaphores",
        ));
    }
    let mut keys = Vec::new();
    for (kind, id) in noted::noted() {
        let readable = match kind {
            Kind::Segment => {
                objects.segment(id, None);
                continue;
            }
            Kind::Semaphores => system_v::sem_stat(id).is_ok(),
            Kind::Messages => system_v::msg_stat(id).is_ok(),
        };
        if readable {
            keys.push(key(kind, id));
        }
    }
    Ok(keys)
}

/// Copies semaphores and messages that no other process copies.
pub fn capture(elsewhere: &[u64]) -> Result<Vec<SystemVContent>, Refusal> {
    let mut contents = Vec::new();
    for (kind, id) in noted::noted() {
        if elsewhere.binary_search(&key(kind, id)).is_ok() {
            continue;
        }
        let (what, content) = match kind {
            Kind::Segment => continue,
            Kind::Semaphores => ("semaphores", semaphores(id)),
            Kind::Messages => ("message queue", messages(id)),
        };
        match content {
            Ok(content) => contents.push(content),
            Err(Errno(libc::EACCES | libc::EINVAL | libc::EIDRM)) => {}
            Err(error) => {
                return Err(refusal(
                    &format!("System V {what} {id}"),
                    format!("it cannot be read: {error}"),
                    "see `stasis doctor`; a kernel with CONFIG_CHECKPOINT_RESTORE shows messages",
                ));
            }
        }
    }
    Ok(contents)
}

fn semaphores(id: i32) -> SysResult<SystemVContent> {
    let stat = system_v::sem_stat(id)?;
    let mut values = vec![0; stat.sem_nsems as usize];
    system_v::sem_values(id, &mut values)?;
    let users = (0..values.len()).map(|number| system_v::sem_user(id, number)).collect::<SysResult<_>>()?;
    Ok(SystemVContent::Semaphores { of: describe(id, &stat.sem_perm, stat.sem_ctime), values, users })
}

fn messages(id: i32) -> SysResult<SystemVContent> {
    const TYPE: usize = size_of::<i64>();
    let stat = system_v::msg_stat(id)?;
    // No message is longer than all of them together.
    let mut buffer = vec![0; TYPE + stat.__msg_cbytes as usize];
    let mut messages = Vec::new();
    for place in 0..stat.msg_qnum as usize {
        let len = match system_v::msg_copy(id, place, &mut buffer) {
            Err(Errno(libc::ENOMSG)) => break,
            len => len?,
        };
        let kind = i64::from_ne_bytes(buffer[..TYPE].try_into().unwrap_or_default());
        messages.push((kind, buffer[TYPE..TYPE + len].into()));
    }
    Ok(SystemVContent::Messages {
        of: describe(id, &stat.msg_perm, stat.msg_ctime),
        most: stat.msg_qbytes,
        messages,
        sender: stat.msg_lspid,
        receiver: stat.msg_lrpid,
    })
}

fn refusal(what: &str, reason: String, remedy: &str) -> Refusal {
    Refusal { what: format!("pid {}, {what}", process::getpid()), reason, remedy: remedy.into() }
}
