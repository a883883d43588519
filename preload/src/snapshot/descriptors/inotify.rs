//! inotify: the kernel tells inodes, the program's own calls told the paths. Events that wait are taken and kept for the program
//! ([`unread_events`]).

use alloc::{format, vec::Vec};

use super::{Open, Table, refusal};
use stasis_sys::file;

use crate::{
    procfs,
    unread_events::{self, Unkept},
    watches,
};
use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, InotifyWatch},
};

pub fn capture(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let events_wait = table.stopped() && keep_events(table, open)?;
    let mut watches = Vec::new();
    for line in procfs::lines(&open.info) {
        let Some(watch) = Line::parse(line) else { continue };
        match watches::path_of(watch.inode, watch.device) {
            Some(path) => watches.push(InotifyWatch { wd: watch.wd, path, mask: watch.mask }),
            None => {
                return Err(refusal(
                    open.fd,
                    &open.link,
                    format!("the path of watch {} (inode {}) is not known", watch.wd, watch.inode),
                    "let the program remove the watch, or add it by inotify_add_watch(3) and a path, in UTF-8, that it still has",
                ));
            }
        }
    }
    // fdinfo shows the newest first.
    watches.sort_unstable_by_key(|watch: &InotifyWatch| watch.wd);
    Ok(DescriptionKind::Inotify { watches, events_wait })
}

/// Whether events wait to be read, which are kept where the process is the only one: several may read one queue.
fn keep_events(table: &Table<'_>, open: &Open) -> Result<bool, Refusal> {
    const READ: &str = "take the checkpoint when the program has read them";
    let duplicate = table.duplicate(open)?;
    if table.share.told.is_some() {
        let waiting =
            file::unread(duplicate.0).map_err(|error| open.failed("its queue cannot be asked", error))?;
        return if waiting == 0 {
            Ok(false)
        } else {
            open.refuse("events wait in it to be read, and other processes may have it, too", READ)
        };
    }
    match unread_events::keep(open.at(), duplicate.0) {
        Ok(waits) => Ok(waits),
        Err(Unkept::Busy) => open.refuse("events of it are being read", READ),
        Err(Unkept::TooMany) => {
            open.refuse("events wait in it to be read, and in more others than can be kept", READ)
        }
        Err(Unkept::Failed(error)) => {
            open.refuse(&format!("events wait in it to be read, and cannot be kept: {error}"), READ)
        }
    }
}

/// `inotify wd:HEX ino:HEX sdev:HEX mask:HEX ...` (proc(5)).
struct Line {
    wd: i32,
    inode: u64,
    device: u64,
    mask: u32,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        let rest = line.strip_prefix(b"inotify ")?;
        let value = |key: &str| {
            procfs::words(rest).find_map(|word| word.strip_prefix(key.as_bytes())).and_then(procfs::hex)
        };
        let device = value("sdev:")?;
        Some(Self {
            wd: value("wd:")? as i32,
            inode: value("ino:")?,
            // The kernel's own dev_t: 20 bits of minor number (include/linux/kdev_t.h).
            device: libc::makedev((device >> 20) as u32, (device & 0xf_ffff) as u32),
            mask: value("mask:")? as u32,
        })
    }
}
