//! Memory that the kernel writes to without a fault: it holds on to the pages of a direct read (open(2), O_DIRECT) from its beginning,
//! and what arrives later lifts no protection. So a round looks, after it has protected pages and before it copies them, which
//! such reads are under way, and their buffers are taken again when all stand still: then none is.
//!
//! Not here: requests of kernel AIO, whose buffers the kernel does not tell ([`crate::aio::may_write`]).

use alloc::vec::Vec;

use stasis_protocol::PAGE_SIZE;
use stasis_sys::{file, process};

use super::PAGE;
use crate::procfs;

/// The most parts that a call has (UIO_MAXIOV).
const PARTS: u64 = 1024;

/// Adds the buffers of direct reads that are under way.
pub fn look(buffers: &mut Vec<(u64, u64)>) {
    let _ = procfs::numbered_entries(c"/proc/self/task", |tid| {
        let mut content = [0u8; 256];
        let Ok(fd) = procfs::open(path!("/proc/self/task/{tid}/syscall").as_c_str()) else { return };
        let len = file::read(fd, &mut content).unwrap_or(0);
        let _ = file::close(fd);
        let mut words = procfs::words(content[..len].trim_ascii());
        let nr = words.next().and_then(procfs::decimal);
        let mut argument = || words.next().and_then(procfs::hex);
        let (Some(nr), Some(fd), Some(address), Some(len)) = (nr, argument(), argument(), argument()) else {
            return;
        };
        match nr as i64 {
            libc::SYS_read | libc::SYS_pread64 if is_direct(tid, fd) => add(buffers, address, len),
            libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 if is_direct(tid, fd) => {
                for index in 0..len.min(PARTS) {
                    let mut part = [0u8; 16];
                    let at = address + index * 16;
                    if process::read_memory(at as usize, &mut part) == Ok(part.len()) {
                        let word = |at: usize| {
                            part[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
                        };
                        add(buffers, word(0), word(8));
                    }
                }
            }
            _ => {}
        }
    });
}

fn is_direct(tid: i32, fd: u64) -> bool {
    let info = procfs::read(path!("/proc/self/task/{tid}/fdinfo/{fd}").as_c_str()).unwrap_or_default();
    let flags = procfs::field(&info, "flags:").and_then(procfs::octal).unwrap_or(0);
    flags & libc::O_DIRECT as u64 != 0
}

fn add(buffers: &mut Vec<(u64, u64)>, address: u64, len: u64) {
    /// MAX_RW_COUNT (linux/fs.h).
    const MOST: u64 = i32::MAX as u64 & !(PAGE - 1);
    let pages =
        (address & !(PAGE - 1), address.saturating_add(len.min(MOST)).next_multiple_of(PAGE_SIZE as u64));
    if len > 0 && !buffers.contains(&pages) {
        buffers.push(pages);
    }
}
