//! POSIX message queues (mq_overview(7)).

use core::ffi::CStr;

use crate::{Result, call::call, file::Fd};

/// What a queue was made for.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// How many messages may wait.
    pub most: u64,
    /// How long each may be, in bytes.
    pub size: u64,
}

/// Whether a path leads to a queue (statfs(2)).
pub fn is_one(path: &CStr) -> Result<bool> {
    const MQUEUE_MAGIC: u64 = 0x1980_0202;
    // SAFETY: struct statfs is plain data.
    let mut statfs: libc::statfs = unsafe { core::mem::zeroed() };
    // SAFETY: reads a string and writes one struct statfs.
    unsafe { call(libc::SYS_statfs, [path.as_ptr() as usize, &raw mut statfs as usize, 0, 0, 0, 0]) }?;
    Ok(statfs.f_type as u64 == MQUEUE_MAGIC)
}

/// mq_getattr(3).
pub fn attributes(queue: Fd) -> Result<Attributes> {
    // struct mq_attr: flags, mq_maxmsg, mq_msgsize, mq_curmsgs, and room for four more.
    let mut words = [0u64; 8];
    // SAFETY: writes one struct mq_attr.
    unsafe { call(libc::SYS_mq_getsetattr, [queue as usize, 0, words.as_mut_ptr() as usize, 0, 0, 0]) }?;
    Ok(Attributes { most: words[1], size: words[2] })
}

/// mq_receive(3): the message's length and priority.
pub fn receive(queue: Fd, text: &mut [u8]) -> Result<(usize, u32)> {
    let mut priority = 0u32;
    let arguments =
        [queue as usize, text.as_mut_ptr() as usize, text.len(), &raw mut priority as usize, 0, 0];
    // SAFETY: writes at most the slice's length and one word.
    let len = unsafe { call(libc::SYS_mq_timedreceive, arguments) }?;
    Ok((len, priority))
}

/// mq_send(3).
pub fn send(queue: Fd, text: &[u8], priority: u32) -> Result<()> {
    let arguments = [queue as usize, text.as_ptr() as usize, text.len(), priority as usize, 0, 0];
    // SAFETY: reads the slice.
    unsafe { call(libc::SYS_mq_timedsend, arguments) }.map(drop)
}
