//! POSIX message queues (mq_overview(7)). Their messages can only be taken out: they are, and put back at once, in the same
//! order, while no process of the computation runs.

use alloc::{vec, vec::Vec};

use stasis_protocol::{coordinator::Refusal, image::DescriptionKind};
use stasis_sys::{Errno, Result as SysResult, file, file::Fd, queue};

use super::{Duplicate, Open, Table, queue_key};
use crate::{procfs, wrappers::notify};

/// What the file of a queue is long, whatever is in it (ipc/mqueue.c, FILENT_SIZE).
const LENGTH: i64 = 80;

/// Whether a regular file is a queue.
pub fn is_one(open: &Open) -> bool {
    let path = || path!("/proc/self/task/{}/fd/{}", open.at().0, open.at().1);
    open.stat.st_size == LENGTH && queue::is_one(path().as_c_str()).unwrap_or(false)
}

pub fn capture(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    if notify::has_asked(open.stat.st_ino) {
        return notified(open);
    }
    let unlinked = open.stat.st_nlink == 0;
    let link = if unlinked { open.link.strip_suffix(" (deleted)").unwrap_or(&open.link) } else { &open.link };
    let at = link.rfind('/').unwrap_or(0);
    let duplicate = table.duplicate(open)?;
    let attributes = queue::attributes(duplicate.0)
        .map_err(|error| open.failed("its attributes cannot be asked", error))?;
    // The permissions of the queue decide, not those of the description.
    let path = path!("/proc/self/task/{}/fd/{}", open.at().0, open.at().1);
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let opened = file::open(path.as_c_str(), flags, 0).map(Duplicate);
    let opened = opened.map_err(|error| open.failed("its messages cannot be looked at", error))?;
    if is_notified(opened.0).map_err(|error| open.failed("its state cannot be read", error))? {
        return notified(open);
    }
    let messages = if table.copies_queue(open) {
        messages(opened.0, attributes.size)
            .map_err(|error| open.failed("its messages cannot be put back", error))?
    } else {
        Vec::new()
    };
    Ok(DescriptionKind::MessageQueue {
        queue: queue_key(open),
        name: link[at..].into(),
        unlinked,
        mode: open.stat.st_mode & 0o7777,
        most: attributes.most,
        size: attributes.size,
        messages,
    })
}

fn notified<T>(open: &Open) -> Result<T, Refusal> {
    open.refuse(
        "somebody has asked to be notified of messages in it (mq_notify(3)), and the kernel does not tell how",
        "let the program withdraw that (mq_notify with NULL) before the checkpoint",
    )
}

/// `QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0`
fn is_notified(queue: Fd) -> SysResult<bool> {
    let mut text = [0; LENGTH as usize + 1];
    let len = file::pread(queue, &mut text, 0)?;
    let pid = procfs::words(text[..len].trim_ascii_end()).find_map(|word| word.strip_prefix(b"NOTIFY_PID:"));
    Ok(pid.is_some_and(|pid| pid != b"0"))
}

/// Takes out all messages, and puts them back; the first to be received first. Where it holds any, priority comes before age:
/// sent in this order they are received in this order.
fn messages(queue: Fd, size: u64) -> SysResult<Vec<(u32, Vec<u8>)>> {
    let mut messages = Vec::new();
    let mut text = vec![0; size as usize];
    let received = loop {
        match queue::receive(queue, &mut text) {
            Ok((len, priority)) => messages.push((priority, Vec::from(&text[..len]))),
            Err(Errno(libc::EAGAIN)) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    for (priority, text) in &messages {
        queue::send(queue, text, *priority)?;
    }
    received.map(|()| messages)
}
