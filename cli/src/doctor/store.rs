//! The directory of the store, and the file system that it lies on.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::{fs::MetadataExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::Finding;
use crate::{context::Context, output};

/// Below this there is little room for even one checkpoint, in bytes.
const LITTLE_ROOM: u64 = 1 << 30;

/// O_DIRECT's alignment on every disk we know of (open(2): the logical block size, at most this).
const ALIGNMENT: usize = 4096;

#[repr(align(4096))]
struct Block([u8; ALIGNMENT]);

pub fn directory(context: &Context) -> Finding {
    let remedy = "name another directory with --store";
    let (directory, place) = match place(context) {
        Ok(found) => found,
        Err(error) => return Finding::missing(format!("{error:#}"), remedy),
    };
    let missing = |why: String| Finding::missing(format!("{}: {why}", place.display()), remedy);
    if let Err(error) = Scratch::create(&place, 0) {
        return missing(format!("cannot be written to: {error}"));
    }
    if place == directory {
        match fs::metadata(&directory) {
            Ok(meta) if meta.mode() & 0o077 != 0 => {
                return missing(format!(
                    "others may enter it (mode {:o}); chmod 700 it",
                    meta.mode() & 0o7777
                ));
            }
            Ok(_) => {}
            Err(error) => return missing(error.to_string()),
        }
    }
    let room = match nix::sys::statvfs::statvfs(&place) {
        Ok(status) => status.blocks_available().saturating_mul(status.fragment_size()),
        Err(error) => return missing(format!("its file system does not tell its room: {error}")),
    };
    let there = if place == directory { "" } else { " (not made yet)" };
    let text = format!("{}{there}, {} free", directory.display(), output::bytes(room));
    if room < LITTLE_ROOM {
        Finding::falls(text, "make room, or name another directory with --store")
    } else {
        Finding::Works(text)
    }
}

/// Writes a block past the page cache.
pub fn direct_writes(context: &Context) -> Finding {
    let Ok((_, place)) = place(context) else {
        return Finding::missing("there is no directory to try it in", "name one with --store");
    };
    let written = Scratch::create(&place, libc::O_DIRECT).and_then(|mut scratch| {
        scratch.file.write_all(&Block([0; ALIGNMENT]).0)?;
        scratch.file.sync_all()
    });
    match written {
        Ok(()) => Finding::Works("O_DIRECT".into()),
        Err(error) => Finding::falls(
            format!("O_DIRECT in {}: {error}; writes go through the page cache", place.display()),
            "for speed, a store on a disk's file system (ext4, xfs, btrfs): --store",
        ),
    }
}

/// The store's directory, and the one that tells about it: itself, or the nearest one above that is there.
fn place(context: &Context) -> anyhow::Result<(PathBuf, PathBuf)> {
    let directory = context.store()?;
    let place =
        directory.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/")).to_path_buf();
    Ok((directory, place))
}

/// A file that is removed at the end.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn create(directory: &Path, flags: i32) -> io::Result<Self> {
        let path = directory.join(format!(".stasis-doctor-{}", std::process::id()));
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(&path);
        // A file system without O_DIRECT makes the file and then fails (open(2), EINVAL).
        if file.is_err() {
            let _ = fs::remove_file(&path);
        }
        Ok(Self { file: file?, path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
