//! Files by path, and objects whose content is in the checkpoint.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, FileIdentity, ProcessImage},
};

use super::{
    Installed, Maker, check, failed,
    kernel::{self, O_LARGEFILE, done},
    refuse,
};
use crate::{
    args::MissingFile,
    restart::plan::{attempt, call, pointing},
};

/// Flags of open(2) that say how a description is made, not what it is: O_TMPFILE is all of __O_TMPFILE and
/// O_DIRECTORY.
const MAKING: i32 =
    libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_ASYNC;

/// Opens a file, directory or device by its path; `None` where it is gone and the policy is to go without.
pub fn open(
    maker: &mut Maker<'_>,
    index: usize,
    description: &Description,
) -> Result<Option<OwnedFd>, Refusal> {
    let image = maker.image;
    let flags = description.flags as i32 & !MAKING;
    let (file, path) = match &description.kind {
        DescriptionKind::Regular { file, .. }
        | DescriptionKind::Directory { file }
        | DescriptionKind::Path { file } => (Some(file), check::path_now(image, &file.path)),
        DescriptionKind::CharacterDevice { path, .. } => (None, path.clone()),
        _ => return Ok(None),
    };
    // A copy may have taken the place of one that somebody else uses.
    if let (DescriptionKind::Regular { .. }, Some(content)) =
        (&description.kind, maker.common.objects.at(&path))
    {
        let fd = kernel::reopen(content, flags)
            .map_err(|error| failed(image, index, "it cannot be opened", &error))?;
        kernel::seek(&fd, description.offset)
            .map_err(|error| failed(image, index, "its offset cannot be set", &error))?;
        return Ok(Some(fd));
    }
    let is_link = file.is_some_and(|file| file.mode & libc::S_IFMT == libc::S_IFLNK);
    if file.is_some_and(|file| file.path != path) {
        // The right one is opened when the process is what it was ([`late`]).
        return kernel::open("/dev/null", libc::O_RDWR)
            .map(Some)
            .map_err(|error| failed(image, index, "/dev/null cannot be opened", &error));
    }
    let opened = kernel::open(&path, if is_link { flags | libc::O_NOFOLLOW } else { flags } | libc::O_NOCTTY);
    let fd = match opened {
        Ok(fd) => fd,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return match maker.common.policy.missing {
                MissingFile::Refuse => Err(refuse(image, index, "it is gone", check::PUT_IT_BACK)),
                MissingFile::Skip => Ok(None),
                MissingFile::Null => kernel::open("/dev/null", libc::O_RDWR)
                    .map(Some)
                    .map_err(|error| failed(image, index, "/dev/null cannot be opened", &error)),
            };
        }
        Err(error) => return Err(failed(image, index, "it cannot be opened", &error)),
    };
    if let Some(file) = file {
        verify(maker, index, description, file, &fd)?;
    }
    if matches!(description.kind, DescriptionKind::Regular { .. } | DescriptionKind::Directory { .. })
        && description.offset != 0
    {
        kernel::seek(&fd, description.offset)
            .map_err(|error| failed(image, index, "its offset cannot be set", &error))?;
    }
    Ok(Some(fd))
}

/// Looks once more at what was opened, and cuts back what is written to.
fn verify(
    maker: &Maker<'_>,
    index: usize,
    description: &Description,
    file: &FileIdentity,
    fd: &OwnedFd,
) -> Result<(), Refusal> {
    let image = maker.image;
    let stat = kernel::stat(fd).map_err(|error| failed(image, index, "it cannot be looked at", &error))?;
    if stat.st_mode & libc::S_IFMT != file.mode & libc::S_IFMT {
        return Err(refuse(image, index, "something of another type has its name now", check::PUT_IT_BACK));
    }
    let writes = description.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
    let is_regular = matches!(description.kind, DescriptionKind::Regular { .. });
    // What is appended may be followed by what others appended (a log): that is not ours to cut. Nor is another file.
    let appends = description.flags as i32 & libc::O_APPEND != 0;
    let cuts = is_regular && writes && !appends && check::is_verified(&file.path);
    if cuts && stat.st_ino == file.inode && stat.st_size as u64 > file.size {
        // SAFETY: no memory is touched.
        done(unsafe { libc::ftruncate(fd.as_raw_fd(), file.size as i64) })
            .map_err(|error| failed(image, index, "it cannot be cut back to its size", &error))?;
    }
    Ok(())
}

/// Opens what a process sees of itself in /proc: by itself, when its memory and its threads are there, since such a file
/// belongs to the memory that the process had when it was opened (fs/proc/base.c, `proc_mem_open`).
pub fn late(image: &ProcessImage, description: &Description, fds: &[RawFd], installed: &mut Installed) {
    let (DescriptionKind::Regular { file, .. }
    | DescriptionKind::Directory { file }
    | DescriptionKind::Path { file }) = &description.kind
    else {
        return;
    };
    let path = check::path_now(image, &file.path);
    let Some((&first, others)) = fds.split_first().filter(|_| path != file.path) else { return };
    let mut name = path.into_bytes();
    name.push(0);
    let name = installed.keep(&name);
    let flags = (description.flags as i32 & !MAKING | libc::O_NOCTTY) as u64;
    let mut open = pointing(call(libc::SYS_openat, &[libc::AT_FDCWD as u64, 0, flags]), 1, name);
    open.onto = first as u32 + 1;
    installed.late.push(open);
    if description.offset != 0 {
        let arguments = [first as u64, description.offset, libc::SEEK_SET as u64];
        installed.late.push(attempt(libc::SYS_lseek, &arguments));
    }
    installed.late.extend(others.iter().map(|&fd| call(libc::SYS_dup2, &[first as u64, fd as u64])));
}

/// Whether it is the description that a file without a name was made by (open(2), O_TMPFILE): the program may give it one.
pub fn is_made_nameless(description: &Description) -> bool {
    description.flags as i32 & libc::O_TMPFILE == libc::O_TMPFILE
}

/// A description of an object.
pub fn open_object(
    maker: &Maker<'_>,
    index: usize,
    description: &Description,
    object: u32,
) -> Result<OwnedFd, Refusal> {
    let image = maker.image;
    let Some(content) = maker.common.objects.get(maker.process, object) else {
        return Err(refuse(image, index, "the checkpoint does not hold its content", "run `stasis verify`"));
    };
    let flags = description.flags as i32 & !(MAKING | libc::O_TMPFILE);
    let fd = if is_made_nameless(description) && flags & !kernel::SETTABLE == libc::O_RDWR | O_LARGEFILE {
        // The description that the file is made by: no other has that flag.
        let own = content.try_clone().and_then(|fd| kernel::set_status_flags(&fd, flags).map(|()| fd));
        own.map_err(|error| failed(image, index, "its flags cannot be set", &error))?
    } else {
        kernel::reopen(content, flags).map_err(|error| failed(image, index, "it cannot be opened", &error))?
    };
    kernel::seek(&fd, description.offset)
        .map_err(|error| failed(image, index, "its offset cannot be set", &error))?;
    Ok(fd)
}
