//! Files with names whose content is in the checkpoint: shared memory that happens to have a name (/dev/shm), and files
//! that the program wrote to by a shared mapping.
//!
//! - One that is gone is made again.
//! - One that is there, and that nobody has open for writing, is rolled back: memory of the same moment goes with it. On a
//!   disk only where it is the same file, or has not been written to since; else another one has taken its name.
//! - One in memory that somebody uses, as the original does when it runs on, is left alone: the restarted
//!   computation gets a copy without a name. One on a disk is taken as it is.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    time::{Duration, SystemTime},
};

use stasis_protocol::image::FileIdentity;

use super::kernel::{self, done, owned};
use crate::args::ChangedFile;

const ACCEPT_IT: &str = "put the old one back, or restart with --on-changed-file=accept";

/// What the content of a checkpoint goes into.
pub struct Place {
    pub fd: OwnedFd,
    /// It is to be left as it is.
    pub keep: bool,
    /// What the user is to be told.
    pub warning: Option<String>,
}

/// Why a file cannot be put back, and what can be done; nothing is changed.
pub fn check(file: &FileIdentity, memory: bool, changed: ChangedFile) -> Result<(), (String, &'static str)> {
    let found = match fs::symlink_metadata(&file.path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err((format!("it cannot be looked at: {error}"), "restart as a user that may"));
        }
    };
    if !found.is_file() {
        return Err(("something of another type has its name now".into(), "move it away"));
    }
    let mtime_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    let is_same = found.ino() == file.inode || found.size() == file.size && mtime_ns == file.mtime_ns;
    if memory || is_same || changed == ChangedFile::Accept {
        return Ok(());
    }
    Err(("another file has its name now, which would be written over".into(), ACCEPT_IT))
}

/// Opens the file, or makes it, of its size and empty.
///
/// # Errors
/// open(2)'s, ftruncate(2)'s.
pub fn open(file: &FileIdentity, memory: bool, size: i64, mode: u32) -> io::Result<Place> {
    if is_written_to(&file.path)? {
        let what = &file.path;
        if !memory {
            let fd = kernel::open(&file.path, libc::O_RDWR | libc::O_NOFOLLOW)?;
            let warning =
                Some(format!("{what}: somebody else has it open for writing; it is taken as it is"));
            return Ok(Place { fd, keep: true, warning });
        }
        let fd = super::objects::nameless(what)?;
        empty(&fd, size)?;
        let warning = Some(format!("{what}: it is in use; this computation goes on with a copy of its own"));
        return Ok(Place { fd, keep: false, warning });
    }
    let fd = match kernel::open(&file.path, libc::O_RDWR | libc::O_NOFOLLOW) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(&file.path, mode)?,
        opened => opened?,
    };
    empty(&fd, 0)?;
    empty(&fd, size)?;
    Ok(Place { fd, keep: false, warning: None })
}

/// Gives a file that was put back the time that it had: who maps it privately looks at that.
pub fn date(fd: &OwnedFd, file: &FileIdentity) {
    let Ok(nanoseconds) = u64::try_from(file.mtime_ns) else { return };
    let Ok(file) = fd.try_clone().map(File::from) else { return };
    let _ = file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds));
}

fn make(path: &str, mode: u32) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: reads a string.
    let fd = owned(unsafe { libc::open(path.as_ptr(), flags, 0o600) })?;
    // SAFETY: no memory is touched.
    done(unsafe { libc::fchmod(fd.as_raw_fd(), mode & 0o7777) })?;
    Ok(fd)
}

fn empty(fd: &OwnedFd, size: i64) -> io::Result<()> {
    // SAFETY: no memory is touched.
    done(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }).map(drop)
}

/// Whether anybody has a file open for writing, a mapping included: then the kernel gives no lease for reading
/// (fcntl(2), F_SETLEASE). Where no lease can be had for another reason nobody is taken to have.
fn is_written_to(path: &str) -> io::Result<bool> {
    let fd = match kernel::open(path, libc::O_RDONLY | libc::O_NOFOLLOW) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    match kernel::fcntl(&fd, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(_) => kernel::fcntl(&fd, libc::F_SETLEASE, libc::F_UNLCK).map(|_| false),
        Err(error) => Ok(error.raw_os_error() == Some(libc::EAGAIN)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::{super::tests::identity, *};

    #[test]
    fn what_is_gone_is_made_and_what_is_there_is_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        fs::write(&path, "12345").unwrap();
        let file = identity(&path);
        let place = open(&file, true, 3, 0o640).unwrap();
        assert!(!place.keep && place.warning.is_none());
        assert_eq!(fs::read(&path).unwrap(), [0; 3]);
        fs::remove_file(&path).unwrap();
        drop(place);
        let place = open(&file, true, 4, 0o640).unwrap();
        date(&place.fd, &file);
        assert_eq!(fs::read(&path).unwrap(), [0; 4]);
        let found = path.metadata().unwrap();
        assert_eq!(found.mode() & 0o7777, 0o640);
        assert_eq!(identity(&path).mtime_ns, file.mtime_ns);
    }

    #[test]
    fn what_somebody_writes_to_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"in use").unwrap();
        let file = identity(&path);
        let copy = open(&file, true, 6, 0o600).unwrap();
        assert!(!copy.keep && copy.warning.is_some());
        assert_ne!(kernel::stat(&copy.fd).unwrap().st_ino, file.inode);
        let same = open(&file, false, 6, 0o600).unwrap();
        assert!(same.keep);
        assert_eq!(fs::read(&path).unwrap(), b"in use");
        writer.rewind().unwrap();
    }

    #[test]
    fn on_a_disk_another_file_is_not_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        fs::write(&path, "12345").unwrap();
        let file = identity(&path);
        assert_eq!(check(&file, false, ChangedFile::Refuse), Ok(()));
        let other = FileIdentity { inode: file.inode + 1, size: 9, ..file.clone() };
        assert!(check(&other, false, ChangedFile::Refuse).is_err());
        assert_eq!(check(&other, false, ChangedFile::Accept), Ok(()));
        assert_eq!(check(&other, true, ChangedFile::Refuse), Ok(()));
        fs::remove_file(&path).unwrap();
        assert_eq!(check(&file, false, ChangedFile::Refuse), Ok(()));
        fs::create_dir(&path).unwrap();
        assert!(check(&file, true, ChangedFile::Refuse).is_err());
    }
}
