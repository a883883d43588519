//! The address space, as /proc/self/maps shows it.

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::ffi::CStr;

use stasis_protocol::{
    coordinator::Refusal,
    image::{Backing, FileIdentity, Mapping, ObjectKind, flag},
};
use stasis_sys::{file, process};

use super::{
    Objects, Snapshot, Source,
    advice::{self, Advice},
    names,
    objects::{Opening, SHARED_MEMORY},
};
use crate::{
    aio,
    checkpoint::{self, Own},
    procfs,
};

/// How a mapping's pages get into the dump.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Every page that is populated.
    Populated,
    /// Pages that were written since they were read from the file.
    Modified,
    /// Every page that can be read: the file is not there any more.
    All,
    /// None: it is a file's, an object's, the kernel's or ours.
    None,
}

pub struct Found {
    pub mapping: Mapping,
    pub content: Content,
}

/// Fills in the flags of mappings, which only smaps tells. That takes long, so this comes when threads run again (unless they
/// are held).
///
/// # Errors
/// Refusals that name the mapping, as [`capture`]'s.
pub fn advise(snapshot: &mut Snapshot, read: &mut advice::Read, exact: bool) -> Result<(), Vec<Refusal>> {
    let advised = read.look(exact, snapshot.image.mappings.iter());
    for (found, mapping) in snapshot.mappings.iter_mut().zip(&mut snapshot.image.mappings) {
        let Some(Advice { flags, protection_key }) = advice::of(&advised, mapping) else {
            // What was unmapped in these few milliseconds. It may be larger than memory is: that is what it then had.
            if mapping.backing == Backing::Anonymous && !mapping.shared {
                mapping.flags |= flag::NORESERVE;
                found.mapping.flags |= flag::NORESERVE;
            }
            continue;
        };
        if flags & flag::HUGETLB != 0 {
            return Err(vec![hugetlb(mapping.start, mapping.end, "")]);
        }
        (mapping.flags, mapping.protection_key) = (flags, protection_key);
        (found.mapping.flags, found.mapping.protection_key) = (flags, protection_key);
    }
    Ok(())
}

/// The address range that a line of maps or smaps begins with.
pub(super) fn range(line: &[u8]) -> Option<(u64, u64)> {
    let word = procfs::words(line).next()?;
    let dash = word.iter().position(|&byte| byte == b'-')?;
    Some((procfs::hex(&word[..dash])?, procfs::hex(&word[dash + 1..])?))
}

/// One line of maps.
#[derive(Clone, Copy)]
struct Line<'a> {
    start: u64,
    end: u64,
    protection: u32,
    shared: bool,
    offset: u64,
    inode: u64,
    path: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let (start, end) = range(line)?;
    let mut words = procfs::words(line).skip(1);
    let permissions = words.next()?;
    let offset = procfs::hex(words.next()?)?;
    words.next()?;
    let inode_word = words.next()?;
    let inode = procfs::decimal(inode_word)?;
    // The path may hold spaces: all that follows the inode.
    let after = inode_word.as_ptr() as usize + inode_word.len() - line.as_ptr() as usize;
    let path = line[after..].trim_ascii_start();
    let bit = |index: usize, letter, value: i32| {
        if permissions.get(index) == Some(&letter) { value as u32 } else { 0 }
    };
    let protection =
        bit(0, b'r', libc::PROT_READ) | bit(1, b'w', libc::PROT_WRITE) | bit(2, b'x', libc::PROT_EXEC);
    Some(Line { start, end, protection, shared: permissions.get(3) == Some(&b's'), offset, inode, path })
}

/// Reads the address space and says of each mapping how it comes back; its flags are for [`advise`].
pub fn capture(objects: &mut Objects) -> Result<Vec<Found>, Vec<Refusal>> {
    let content = procfs::read(c"/proc/thread-self/maps").map_err(|error| {
        vec![Refusal {
            what: format!("pid {}", process::getpid()),
            reason: format!("/proc/self/maps cannot be read: {error}"),
            remedy: "mount /proc".into(),
        }]
    })?;
    let mut refusals = Vec::new();
    let mut all = Vec::new();
    let mut files = FileCache::default();
    for line in procfs::lines(&content).filter_map(parse) {
        for (piece, own) in split(line) {
            match describe(&piece, own, objects, &mut files) {
                Ok(Some(found)) => all.push(found),
                Ok(None) => {}
                Err(refusal) => refusals.push(refusal),
            }
        }
    }
    if refusals.is_empty() { Ok(all) } else { Err(refusals) }
}

/// Cuts a mapping where ours begin and end: the kernel merges neighbours that are alike.
fn split(line: Line<'_>) -> Vec<(Line<'_>, Own)> {
    let mut cuts: Vec<u64> = checkpoint::own_ranges()
        .flat_map(|(start, end, _)| [start, end])
        .filter(|&cut| line.start < cut && cut < line.end)
        .collect();
    cuts.extend([line.start, line.end]);
    cuts.sort_unstable();
    // Where one of ours ends and the next begins.
    cuts.dedup();
    cuts.windows(2)
        .map(|piece| {
            let (start, end) = (piece[0], piece[1]);
            let own = checkpoint::own_ranges()
                .find(|range| range.0 <= start && end <= range.1)
                .map_or(Own::Program, |range| range.2);
            (Line { start, end, offset: line.offset + (start - line.start), ..line }, own)
        })
        .collect()
}

fn describe(
    line: &Line<'_>,
    own: Own,
    objects: &mut Objects,
    files: &mut FileCache,
) -> Result<Option<Found>, Refusal> {
    let path = String::from_utf8_lossy(line.path).into_owned();
    let path = remaining_name(line, &path).unwrap_or(path);
    let mapping = |backing, name| Mapping {
        start: line.start,
        end: line.end,
        protection: line.protection,
        shared: line.shared,
        offset: line.offset,
        backing,
        flags: 0,
        guards: Vec::new(),
        name,
        protection_key: 0,
    };
    let found = |mapping, content| Ok(Some(Found { mapping, content }));
    match own {
        Own::Program => {}
        Own::Transient => return Ok(None),
        Own::Scratch => return found(mapping(Backing::Anonymous, None), Content::None),
    }
    let refuse = |reason: &str, remedy: &str| {
        Err(Refusal {
            what: format!("pid {}, mapping {:x}-{:x} ({path})", process::getpid(), line.start, line.end),
            reason: reason.into(),
            remedy: remedy.into(),
        })
    };
    match path.as_str() {
        "[vsyscall]" | "[uprobes]" => return Ok(None),
        "[vdso]" | "[vvar]" | "[vvar_vclock]" => {
            let content = if path == "[vdso]" { Content::All } else { Content::None };
            return found(mapping(Backing::Kernel(path.clone()), None), content);
        }
        _ => {}
    }
    if path.strip_suffix(" (deleted)") == Some(aio::NAME) {
        // Something that keeps the place; what else is shared is an object or a file.
        return found(mapping(Backing::Anonymous, None), Content::None);
    }
    if path.starts_with("/secretmem") {
        return refuse(
            "secret memory (memfd_secret(2)) cannot be read by the kernel for anybody",
            "let the program unmap it before the checkpoint",
        );
    }
    if path.starts_with("/anon_hugepage") {
        return Err(hugetlb(line.start, line.end, &path));
    }
    if path.starts_with("/SYSV") {
        // A segment's inode is its id (ipc/shm.c, newseg): that of a namespace's first one is 0.
        let mapped = (line.offset == 0).then_some((line.start, line.end - line.start));
        return match objects.segment(line.inode as i32, mapped) {
            Some(id) => found(mapping(Backing::Object(id), None), Content::None),
            None => refuse(
                "it is System V shared memory that the program may not read, or of another IPC namespace",
                "let the program detach it, or give its user the permission to read (shmctl(2), IPC_SET)",
            ),
        };
    }
    if line.inode == 0 || (!line.shared && path.starts_with("/dev/zero")) {
        let name =
            path.strip_prefix("[anon:").and_then(|name| name.strip_suffix(']')).map(ToString::to_string);
        if path.starts_with("anon_inode:") || path.starts_with("socket:") {
            return refuse(
                "it belongs to a kernel object that cannot be saved",
                "let the program unmap it before the checkpoint",
            );
        }
        return found(mapping(Backing::Anonymous, name), Content::Populated);
    }
    if path.starts_with("/dev/zero")
        || path.starts_with("/memfd:")
        || path.starts_with(SHARED_MEMORY) && path.ends_with(" (deleted)")
    {
        if !line.shared {
            // A private view of an object: its own pages, and the object's for the rest.
            return found(mapping(Backing::Anonymous, None), Content::All);
        }
        let source = Source::Mapped { address: line.start, len: line.end - line.start, offset: line.offset };
        let id = objects.id(&path, line.inode, source, || {
            let kind = match path.strip_prefix("/memfd:") {
                Some(name) => ObjectKind::Memfd {
                    name: name.trim_end_matches(" (deleted)").into(),
                    seals: 0,
                    hugetlb: false,
                },
                None => ObjectKind::SharedMemory,
            };
            (kind, 0, 0o777)
        });
        objects.at_least(id, line.offset + line.end - line.start);
        return found(mapping(Backing::Object(id), None), Content::None);
    }
    match files.identity(&path, line.inode) {
        Some(identity) => {
            let kind = identity.mode & libc::S_IFMT;
            if kind != libc::S_IFREG {
                return refuse("a device is mapped", "let the program unmap it before the checkpoint");
            }
            if line.shared
                && let Some(id) = memory_file(line, &path, &identity, objects)
            {
                return found(mapping(Backing::Object(id), None), Content::None);
            }
            let content = if line.shared { Content::None } else { Content::Modified };
            found(mapping(Backing::File(identity), None), content)
        }
        None if !line.shared => found(mapping(Backing::Anonymous, None), Content::All),
        None if procfs::stat(path.as_bytes()).is_err_and(|error| error.0 == libc::EACCES) => refuse(
            "the file is mapped shared, and the program's user cannot reach it by its path",
            "let that user search the directories above it",
        ),
        None => {
            let source =
                Source::Mapped { address: line.start, len: line.end - line.start, offset: line.offset };
            let id = objects.id(&path, line.inode, source, || {
                (ObjectKind::DeletedFile { path: path.trim_end_matches(" (deleted)").into() }, 0, 0o600)
            });
            objects.at_least(id, line.offset + line.end - line.start);
            found(mapping(Backing::Object(id), None), Content::None)
        }
    }
}

/// The name that a shared file has although the one is gone by which it was mapped: sem_open(3), for one, makes a semaphore
/// under another name and links it to its own, by which only those have mapped it who have opened it since.
fn remaining_name(line: &Line<'_>, path: &str) -> Option<String> {
    if !line.shared || !path.starts_with('/') || NAMELESS.iter().any(|prefix| path.starts_with(prefix)) {
        return None;
    }
    names::other(path, line.inode, None)
}

/// How names begin in maps that are none of the file system's.
const NAMELESS: [&str; 4] = ["/memfd:", "/SYSV", "/dev/zero", "/["];

/// Files on a disk are copied up to this size, in bytes: all threads stand still meanwhile.
const LARGEST_ON_DISK: u64 = 64 << 20;

/// The object of a file with a name that is mapped shared, where it is memory that only happens to have a name: it lies
/// in memory, or the program writes to it by the mapping. `None`: it is a file like others.
fn memory_file(line: &Line<'_>, path: &str, identity: &FileIdentity, objects: &mut Objects) -> Option<u32> {
    let name = procfs::c_path(identity.path.as_bytes());
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    // Of no effect on the file: nothing is read before all stand still.
    let fd =
        file::open(name, libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NOCTTY, 0).ok()?;
    let memory = file::is_in_memory(fd).unwrap_or(false);
    let writes = line.protection & libc::PROT_WRITE as u32 != 0;
    if !memory && (!writes || identity.size > LARGEST_ON_DISK) {
        let _ = file::close(fd);
        return None;
    }
    Some(objects.open(path, line.inode, fd, Opening::Named, || {
        (ObjectKind::File { file: identity.clone(), memory }, identity.size, identity.mode & 0o7777)
    }))
}

fn hugetlb(start: u64, end: u64, path: &str) -> Refusal {
    Refusal {
        what: format!("pid {}, mapping {start:x}-{end:x} ({path})", process::getpid()),
        reason: "it is made of hugetlb pages, which are not supported yet".into(),
        remedy: "use transparent huge pages (madvise)".into(),
    }
}

/// Files that were looked at: libraries are mapped in four pieces each.
#[derive(Default)]
struct FileCache(Vec<(u64, FileIdentity)>);

impl FileCache {
    /// The file at `path`, if it is the one that is mapped. Devices are not compared: those in maps
    /// and in stat(2) differ on btrfs and overlayfs.
    fn identity(&mut self, path: &str, inode: u64) -> Option<FileIdentity> {
        if let Some((_, identity)) =
            self.0.iter().find(|(known, found)| *known == inode && found.path == path)
        {
            return Some(identity.clone());
        }
        // maps writes a newline in a name as \012 (proc(5)).
        let real = path.replace("\\012", "\n");
        let stat = procfs::stat(real.as_bytes()).ok()?;
        (stat.st_ino == inode).then(|| {
            let identity = super::descriptors::identity(real, &stat);
            self.0.push((inode, identity.clone()));
            identity
        })
    }
}
