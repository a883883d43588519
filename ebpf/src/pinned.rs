//! Where programs and maps stay while the service does not run: files of a bpf file system, in a directory whose name
//! tells their layout and exactly which programs they are.
//!
//! A service that finds its own directory takes over what is there, and nothing is loaded: what happened meanwhile is
//! in the maps and in the ring buffer. One that finds another version's loads its own, carries tracked processes over
//! where it can read them, and removes the other.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use stasis_events::LAYOUT;

/// Where bpf file systems are by custom; systemd mounts one there.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Where one version of the programs is pinned.
pub struct Pinned {
    /// What all versions are below.
    root: PathBuf,
    name: String,
}

/// The prefix of directories that this version can read the maps of.
fn layout() -> String {
    format!("layout-{LAYOUT}-")
}

impl Pinned {
    /// # Errors
    /// When there is no bpf file system, and none can be mounted.
    pub fn new(root: &Path, object: &[u8], offsets: &[u8]) -> anyhow::Result<Self> {
        if root.starts_with(MOUNT_POINT) {
            mount_if_missing()?;
        }
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(root).with_context(|| format!("cannot make {}", root.display()))?;
        // A directory that was there may be anybody's to enter, not ours to trust.
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("{} is not ours", root.display()))?;
        if statfs(root).with_context(|| root.display().to_string())?.filesystem_type() != BPF_FS_MAGIC {
            bail!(
                "{} is not in a bpf file system; mount one: mount -t bpf bpf {MOUNT_POINT}",
                root.display()
            );
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(object).update(offsets);
        let hash = hasher.finalize().to_hex();
        Ok(Self { root: root.to_owned(), name: format!("{}{}", layout(), &hash[..16]) })
    }

    pub fn directory(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// Where they are put together: what has its final name is complete.
    pub fn unfinished(&self) -> PathBuf {
        self.root.join(format!("new-{}", self.name))
    }

    pub fn is_there(&self) -> bool {
        self.directory().is_dir()
    }

    /// Makes an empty directory to put things together in.
    pub fn begin(&self) -> io::Result<PathBuf> {
        let directory = self.unfinished();
        remove(&directory)?;
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(directory)
    }

    pub fn finish(&self) -> io::Result<()> {
        fs::rename(self.unfinished(), self.directory())
    }

    /// Those of other versions: whether their maps can be read here, and where they are.
    pub fn others(&self) -> Vec<(bool, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| *name != self.name)
            .map(|name| (name.starts_with(&layout()), self.root.join(name)))
            .collect()
    }

    /// Removes all of it: the kernel then lets go of programs and maps.
    pub fn remove_all(&self) -> io::Result<()> {
        remove_all(&self.root)
    }
}

/// Removes what any version has pinned below `root`.
pub fn remove_all(root: &Path) -> io::Result<()> {
    match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(entries) => {
            for entry in entries.flatten() {
                remove(&entry.path())?;
            }
        }
    }
    fs::remove_dir(root)
}

/// Removes one directory of pinned things. They have no directories in theirs.
pub fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        fs::remove_file(entry.path())?;
    }
    fs::remove_dir(directory)
}

fn mount_if_missing() -> anyhow::Result<()> {
    let there = statfs(MOUNT_POINT).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if there {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), MOUNT_POINT, Some("bpf"), flags, Some("mode=0700"))
        .with_context(|| format!("no bpf file system at {MOUNT_POINT}, and none could be mounted"))
}
