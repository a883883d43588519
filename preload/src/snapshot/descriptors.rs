//! The program's descriptors, through /proc and pidfd_getfd(2).

use alloc::{format, string::String, vec, vec::Vec};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, Descriptor, FileIdentity},
};
use stasis_sys::{file, process};

use super::{Objects, subject};
use crate::procfs;

/// What tells a file again.
pub fn identity(path: String, stat: &libc::stat) -> FileIdentity {
    FileIdentity {
        path,
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size as u64,
        mtime_ns: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec,
        mode: stat.st_mode,
    }
}

/// All descriptors and the descriptions that they share.
///
/// # Errors
/// A refusal for each descriptor that cannot be saved.
pub fn capture(objects: &mut Objects) -> Result<(Vec<Description>, Vec<Descriptor>), Vec<Refusal>> {
    let _ = objects;
    let tid = subject();
    let mut fds = Vec::new();
    let _ = procfs::numbered_entries(path!("/proc/self/task/{tid}/fd").as_c_str(), |fd| fds.push(fd));
    fds.sort_unstable();
    let (mut descriptions, mut descriptors, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
    for fd in fds {
        match describe(tid, fd) {
            Ok((description, close_on_exec)) => {
                descriptors.push(Descriptor { fd, description: descriptions.len() as u32, close_on_exec });
                descriptions.push(description);
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    if refusals.is_empty() { Ok((descriptions, descriptors)) } else { Err(refusals) }
}

fn describe(tid: i32, fd: i32) -> Result<(Description, bool), Refusal> {
    let link = procfs::link(path!("/proc/self/task/{tid}/fd/{fd}").as_c_str()).unwrap_or_default();
    let link = String::from_utf8_lossy(&link).into_owned();
    let info = procfs::read(path!("/proc/self/task/{tid}/fdinfo/{fd}").as_c_str()).unwrap_or_default();
    let flags = procfs::field(&info, "flags:").and_then(procfs::octal).unwrap_or(0);
    let offset = procfs::field(&info, "pos:").and_then(procfs::decimal).unwrap_or(0);
    let stat = file::stat(path!("/proc/self/task/{tid}/fd/{fd}").as_c_str());
    let kind = stat.map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    let kind = match (kind, stat) {
        (libc::S_IFREG, Ok(stat)) if stat.st_nlink > 0 => {
            DescriptionKind::Regular { file: identity(link, &stat), locks: vec![] }
        }
        (libc::S_IFDIR, Ok(stat)) => DescriptionKind::Directory { file: identity(link, &stat) },
        (libc::S_IFCHR, Ok(stat)) if !link.starts_with("/dev/pts/") => {
            DescriptionKind::CharacterDevice { path: link, rdev: stat.st_rdev }
        }
        _ if fd <= 2 => DescriptionKind::Inherited { fd, what: link },
        _ => {
            return Err(Refusal {
                what: format!("pid {}, fd {fd} ({link})", process::getpid()),
                reason: "descriptors of this kind are not supported yet".into(),
                remedy: "let the program close it before the checkpoint".into(),
            });
        }
    };
    let close_on_exec = flags & libc::O_CLOEXEC as u64 != 0;
    let flags = (flags & !(libc::O_CLOEXEC as u64)) as u32;
    let description =
        Description { flags, offset, owner: None, signal: 0, flock: None, ofd_locks: vec![], kind };
    Ok((description, close_on_exec))
}
