//! inotify: the kernel tells inodes, the program's own calls told the paths.

use alloc::{format, vec::Vec};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, InotifyWatch},
};
use stasis_sys::file;

use super::{Open, Table, refusal};
use crate::{procfs, watches};

const FIONREAD: u64 = 0x541b;

/// Events that wait to be read are refused: reading is the only way to see them, and there is none to put them
/// back.
pub fn capture(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let duplicate = table.duplicate(open)?;
    let mut queued = 0i32;
    // SAFETY: FIONREAD writes an int.
    unsafe { file::ioctl(duplicate.0, FIONREAD, &mut queued) }
        .map_err(|error| open.failed("its queue cannot be asked", error))?;
    if queued > 0 {
        return Err(refusal(
            open.fd,
            &open.link,
            format!("{queued} bytes of events wait in it, which cannot be copied without consuming them"),
            "take the checkpoint when the program has read them",
        ));
    }
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
    Ok(DescriptionKind::Inotify { watches, queued: Vec::new() })
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
