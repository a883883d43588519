//! Small file systems, for tests of full disks.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::requirement::{is_root, skip};

/// A tmpfs, unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `megabytes` MiB on a new directory; without the privilege the test is skipped by name.
    pub fn mount(path: &Path, megabytes: u64) -> Option<Self> {
        if !is_root() {
            skip("mounting a small file system needs root");
            return None;
        }
        std::fs::create_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let options = format!("size={megabytes}m");
        match mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NODEV, Some(options.as_str())) {
            Ok(()) => Some(Self { path: path.to_owned() }),
            Err(errno) => {
                skip(&format!("a small file system cannot be mounted here: {errno}"));
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached: the store server may still be ending.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
