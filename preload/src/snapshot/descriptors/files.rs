//! Files and directories, deleted ones and memfds, and the locks on them.

use alloc::{format, vec::Vec};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, ObjectKind},
};
use stasis_sys::{Errno, file, process};

use super::{CLOSE_IT, Open, Table, identity};
use crate::{
    procfs,
    snapshot::{
        Objects, Opening,
        names::{self, DELETED},
    },
};

/// Whether the path that /proc shows leads to the file. A program that has given up root may not see its own log's;
/// then the kernel's word counts, and `stasis restart` looks.
pub fn is_at_its_path(open: &Open) -> bool {
    match procfs::stat(open.link.as_bytes()) {
        Ok(stat) => stat.st_ino == open.stat.st_ino && stat.st_dev == open.stat.st_dev,
        Err(Errno(libc::EACCES)) => !open.link.ends_with(DELETED),
        Err(_) => false,
    }
}

/// A regular file: by its path, or with its content where it has none any more.
pub fn regular(table: &Table<'_>, open: &Open, objects: &mut Objects) -> Result<DescriptionKind, Refusal> {
    if open.link.starts_with("/secretmem") {
        return open.refuse("secret memory cannot be read by anybody else", CLOSE_IT);
    }
    let locks = locks(open)?.process;
    if open.stat.st_nlink == 0 || open.link.starts_with("/memfd:") {
        let (object, memfd) = object(table, open, objects)?;
        return Ok(DescriptionKind::Object { object, memfd, locks });
    }
    if let Some((kind, _)) = open.link.split_once(":[").filter(|_| !open.link.starts_with('/')) {
        return namespace(open, kind);
    }
    // Files of /proc answer for the process that asks, and have no content to verify.
    let path = if open.link.starts_with("/proc/") || is_at_its_path(open) {
        Some(open.link.clone())
    } else {
        names::other(&open.link, open.stat.st_ino, Some(open.stat.st_dev))
    };
    let Some(path) = path else {
        return open.refuse(
            "its path does not lead to it: it was deleted under this name and has another in another directory, or lies \
             in a mount that cannot be reached",
            "keep the name that it was opened by, or one beside it",
        );
    };
    Ok(DescriptionKind::Regular { file: identity(path, &open.stat), locks })
}

/// A namespace (namespaces(7)): that of the process itself is where it is.
fn namespace(open: &Open, kind: &str) -> Result<DescriptionKind, Refusal> {
    let own = file::stat(path!("/proc/self/ns/{kind}").as_c_str());
    if own.is_ok_and(|own| own.st_ino == open.stat.st_ino && own.st_dev == open.stat.st_dev) {
        let path = format!("/proc/{}/ns/{kind}", process::getpid());
        return Ok(DescriptionKind::Regular { file: identity(path, &open.stat), locks: Vec::new() });
    }
    open.refuse("it is a namespace that the program is not in", CLOSE_IT)
}

pub fn directory(open: &Open) -> Result<DescriptionKind, Refusal> {
    if open.stat.st_nlink == 0 || !open.link.starts_with("/proc/") && !is_at_its_path(open) {
        return open.refuse("the directory was removed", CLOSE_IT);
    }
    Ok(DescriptionKind::Directory { file: identity(open.link.clone(), &open.stat) })
}

/// A descriptor that only stands for a place (O_PATH), whatever is there. For a symbolic link itself, stat(2) of
/// its path would follow it: `stasis restart` opens it with O_NOFOLLOW.
pub fn location(open: &Open) -> Result<DescriptionKind, Refusal> {
    if !open.link.starts_with('/') || open.stat.st_nlink == 0 {
        return open.refuse("it stands for something that has no path (O_PATH)", CLOSE_IT);
    }
    let is_link = open.stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
    if !is_link && !open.link.starts_with("/proc/") && !is_at_its_path(open) {
        return open.refuse("its path does not lead to it (O_PATH)", CLOSE_IT);
    }
    Ok(DescriptionKind::Path { file: identity(open.link.clone(), &open.stat) })
}

/// The object of a memfd or a deleted file.
fn object(table: &Table<'_>, open: &Open, objects: &mut Objects) -> Result<(u32, bool), Refusal> {
    let name = open.link.strip_suffix(DELETED).unwrap_or(&open.link);
    // st_blksize of hugetlbfs is the huge page (fs/hugetlbfs/inode.c).
    let memfd = name.strip_prefix("/memfd:");
    if memfd.is_some() && open.stat.st_blksize > 4096 {
        return open
            .refuse("it is made of hugetlb pages, which are not supported yet", "use MFD_HUGETLB no more");
    }
    let size = open.stat.st_size as u64;
    if !table.stopped() {
        return Ok((0, memfd.is_some()));
    }
    let duplicate = table.duplicate(open)?;
    let kind = match memfd {
        Some(name) => {
            let seals = file::fcntl(duplicate.0, libc::F_GET_SEALS, 0)
                .map_err(|error| open.failed("its seals cannot be asked", error))?;
            ObjectKind::Memfd { name: name.into(), seals: seals as u32, hugetlb: false }
        }
        None => ObjectKind::DeletedFile { path: name.into() },
    };
    let reads = open.access() != libc::O_WRONLY;
    let readable = match reads {
        false => {
            // A description that can be read, of the same file: through /proc, the permissions of the file decide.
            let path = path!("/proc/self/task/{}/fd/{}", open.at().0, open.at().1);
            file::open(path.as_c_str(), libc::O_RDONLY | libc::O_CLOEXEC, 0)
                .map_err(|error| open.failed("it was deleted and cannot be read", error))?
        }
        true => duplicate.keep(),
    };
    let (tid, fd) = open.at();
    let opening = Opening::Of { tid, fd, reads };
    let id = objects
        .open(&open.link, open.stat.st_ino, readable, opening, || (kind, size, open.stat.st_mode & 0o7777));
    Ok((id, memfd.is_some()))
}

/// The locks that were taken through one description.
#[derive(Default)]
pub struct Locks {
    /// POSIX record locks: type, start, length (0: to the end).
    pub process: Vec<(i32, u64, u64)>,
    /// Open file description locks.
    pub description: Vec<(i32, u64, u64)>,
    /// LOCK_SH or LOCK_EX.
    pub flock: Option<i32>,
    /// F_RDLCK or F_WRLCK.
    pub lease: Option<i32>,
}

/// `lock: 1: POSIX  ADVISORY  WRITE 1234 fe:00:5678 0 EOF` (proc(5); fs/locks.c, `lock_get_status`).
pub fn locks(open: &Open) -> Result<Locks, Refusal> {
    let mut locks = Locks::default();
    for line in procfs::lines(&open.info) {
        let Some(line) = line.strip_prefix(b"lock:\t") else { continue };
        let words: Vec<&[u8]> = procfs::words(line).collect();
        let [_, class, how, mode, _, _, start, end] = words[..] else {
            return unknown(open);
        };
        let exclusive = match mode {
            b"READ" => false,
            b"WRITE" => true,
            // A lease that somebody waits for has the mode that it is to become.
            b"UNLCK" if class == b"LEASE" => false,
            _ => return unknown(open),
        };
        let record = |start, end| {
            let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
            let start = procfs::decimal(start).unwrap_or(0);
            let len = procfs::decimal(end).map_or(0, |end| end - start + 1);
            (kind, start, len)
        };
        match class {
            b"POSIX" => locks.process.push(record(start, end)),
            b"OFDLCK" => locks.description.push(record(start, end)),
            b"FLOCK" => locks.flock = Some(if exclusive { libc::LOCK_EX } else { libc::LOCK_SH }),
            // Somebody waits for its end: who has it was told already, and has lease-break-time to give it up.
            b"LEASE" if how != b"ACTIVE" => {
                return open.refuse(
                    "it holds a lease (F_SETLEASE) that is being broken",
                    "take the checkpoint when the program has given it up",
                );
            }
            b"LEASE" => locks.lease = Some(if exclusive { libc::F_WRLCK } else { libc::F_RDLCK }),
            _ => return unknown(open),
        }
    }
    Ok(locks)
}

fn unknown<T>(open: &Open) -> Result<T, Refusal> {
    open.refuse("it holds a lock of a kind that is not known", "let the program release it")
}
