//! A disk that gives little a second, for tests of what waits for it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::requirement::skip;

/// From now on this process and those that it starts read slowly from a disk (the control group controller blkio,
/// admin-guide/cgroup-v1/blkio-controller.rst); dropped, they are as before.
pub struct SlowDisk {
    group: PathBuf,
}

const CONTROLLER: &str = "/sys/fs/cgroup/blkio";

impl SlowDisk {
    /// The one that a directory is on, at so many bytes a second; without the controller the test is skipped by name.
    pub fn below(directory: &Path, bytes_a_second: u64) -> Option<Self> {
        let group = Path::new(CONTROLLER).join(format!("stasis-test-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&group) {
            skip(&format!("no control group for a slow disk: {}: {error}", group.display()));
            return None;
        }
        let disk = Self { group };
        let limit = format!("{} {bytes_a_second}", whole_disk(directory)?);
        if let Err(error) = fs::write(disk.group.join("blkio.throttle.read_bps_device"), limit) {
            skip(&format!("{} is not on a disk that can be made slow: {error}", directory.display()));
            return None;
        }
        fs::write(disk.group.join("cgroup.procs"), std::process::id().to_string())
            .expect("a group of its own");
        Some(disk)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Who is in the group goes back, those that this process has started too.
        let members = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines() {
            let _ = fs::write(Path::new(CONTROLLER).join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.group);
    }
}

/// The numbers of the device that a directory is on; of a partition, those of its disk: limits are a disk's.
fn whole_disk(directory: &Path) -> Option<String> {
    let device = fs::metadata(directory).expect("the directory is there").dev();
    let numbers = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let device = Path::new("/sys/dev/block").join(&numbers);
    if !device.exists() {
        skip(&format!("{} is not on a disk", directory.display()));
        return None;
    }
    let disk = match device.join("partition").exists() {
        true => fs::read_to_string(device.join("../dev")).ok()?.trim().to_owned(),
        false => numbers,
    };
    Some(disk)
}

/// Has the kernel forget what it keeps of the files in a directory; they must have been synced.
pub fn evict(directory: &Path) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let file = fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("posix_fadvise");
        }
    }
}
