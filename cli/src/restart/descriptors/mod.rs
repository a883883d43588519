//! Descriptors: checked before anything is made, then made again at their numbers.
//!
//! The work is done in the child that becomes the program, while it still is `stasis restart`. Open file
//! descriptions are made at numbers that the image does not use ([`numbers`]), moved to theirs, and only
//! then given what refers to numbers (interest lists) or would be lost by closing others (POSIX
//! locks). What must wait until the restored process exists with its threads and its memory is returned as
//! calls to be made last.
//!
//! Rules for files:
//! - a file open for writing is cut back to the size that it had: output written after the checkpoint is
//!   written again by the restarted program. One that is shorter now, or another file of that name, is refused;
//! - a file open for reading only must have the size and time of modification that it had;
//! - `--on-changed-file=accept` takes files as they are; `--on-missing-file` says what stands in for one that is
//!   gone.

mod anonymous;
mod check;
mod files;
mod kernel;
mod locks;
mod numbers;
mod objects;
mod pipes;
mod sockets;
mod terminals;
#[cfg(test)]
mod tests;
mod unread;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, ProcessImage},
    plan::Call,
};

use self::{kernel::done, numbers::Numbers};
use super::plan::{attempt, call, pointing};
use crate::args::{ChangedFile, MissingFile};

pub use self::numbers::close_others;
pub use self::{
    check::check,
    numbers::Places,
    objects::{create_objects, seal_objects},
};

/// What is done about files that are not as they were.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub missing: MissingFile,
    pub changed: ChangedFile,
}

/// What remains to be done once the descriptors are in place.
#[derive(Default)]
pub struct Installed {
    /// Made by the restored process, in this order, when its memory is whole and its threads exist.
    pub late: Vec<Call>,
    /// What the calls point to: arguments that `relocate` names are offsets in here.
    pub data: Vec<u8>,
    /// What is not quite as it was. The user is told before standard error becomes the program's.
    warnings: Vec<String>,
}

impl Installed {
    /// Keeps bytes for a call to point to; their offset.
    fn keep(&mut self, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        offset
    }
}

/// How a description is named in messages: `pid 12, fd 3 (/tmp/x)`.
fn name(image: &ProcessImage, index: usize) -> String {
    let fd = numbers_of(image, index).next();
    let what = match image.descriptions.get(index).map(|description| &description.kind) {
        Some(
            DescriptionKind::Regular { file, .. }
            | DescriptionKind::Directory { file }
            | DescriptionKind::Path { file },
        ) => file.path.clone(),
        Some(DescriptionKind::CharacterDevice { path, .. } | DescriptionKind::Terminal { path, .. }) => {
            path.clone()
        }
        Some(DescriptionKind::Pipe { fifo, .. }) => fifo.clone().unwrap_or_else(|| "pipe".into()),
        Some(DescriptionKind::Inherited { what, .. }) => what.clone(),
        Some(DescriptionKind::Event { .. }) => "eventfd".into(),
        Some(DescriptionKind::Timer { .. }) => "timerfd".into(),
        Some(DescriptionKind::Signal { .. }) => "signalfd".into(),
        Some(DescriptionKind::Epoll { .. }) => "epoll".into(),
        Some(DescriptionKind::Inotify { .. }) => "inotify".into(),
        Some(DescriptionKind::Object { object, .. }) => objects::name(image, *object),
        Some(DescriptionKind::SocketPair { .. }) => "socket pair".into(),
        Some(DescriptionKind::Socket { local, .. }) => sockets::display(local),
        None => "?".into(),
    };
    match fd {
        Some(fd) => format!("pid {}, fd {fd} ({what})", image.ids.pid),
        None => format!("pid {}, {what}", image.ids.pid),
    }
}

/// The descriptors of a description.
fn numbers_of(image: &ProcessImage, index: usize) -> impl Iterator<Item = RawFd> {
    image
        .descriptors
        .iter()
        .filter(move |descriptor| descriptor.description as usize == index)
        .map(|descriptor| descriptor.fd)
}

/// A refusal about one description.
fn refuse(image: &ProcessImage, index: usize, reason: impl Into<String>, remedy: &str) -> Refusal {
    super::refusal(name(image, index), reason, remedy)
}

/// A refusal because a system call failed.
fn failed(image: &ProcessImage, index: usize, what: &str, error: &io::Error) -> Refusal {
    refuse(image, index, format!("{what}: {error}"), "see `stasis doctor`")
}

/// What descriptions are made from.
struct Maker<'a> {
    image: &'a ProcessImage,
    objects: &'a BTreeMap<u32, OwnedFd>,
    policy: &'a Policy,
    numbers: Numbers,
    /// The descriptors 0, 1 and 2 of `stasis restart`, where they are open.
    standard: [Option<OwnedFd>; 3],
    pipes: BTreeMap<u64, pipes::Ends>,
    pairs: BTreeMap<u64, Option<OwnedFd>>,
    /// What takes the place of a description at some of its numbers.
    instead: BTreeMap<RawFd, OwnedFd>,
    installed: Installed,
}

/// Gives this process the descriptors of an image, and no others but `reserved`: numbers that the image does not
/// use. All are open across exec; what the program had close-on-exec is made so by a late call.
///
/// To be called in a process with one thread that goes on to exec or to end: afterwards none of the descriptors
/// that it had before is what it was, those of `objects` included, so that nothing that owns one may be
/// dropped.
///
/// # Errors
/// A refusal that names the descriptor. The process is of no use then.
pub fn install(
    image: &ProcessImage,
    objects: &BTreeMap<u32, OwnedFd>,
    reserved: &[RawFd],
    policy: &Policy,
) -> Result<Installed, Refusal> {
    let mut numbers = Numbers::new(image);
    let standard = [0, 1, 2].map(|fd| numbers.copy(fd).ok());
    let mut maker = Maker {
        image,
        objects,
        policy,
        numbers,
        standard,
        pipes: BTreeMap::new(),
        pairs: BTreeMap::new(),
        instead: BTreeMap::new(),
        installed: Installed::default(),
    };
    let mut made = Vec::with_capacity(image.descriptions.len());
    for (index, description) in image.descriptions.iter().enumerate() {
        made.push(maker.make(index, description)?.map(IntoRawFd::into_raw_fd));
    }
    let (mut installed, instead) = maker.finish();
    for warning in installed.warnings.drain(..) {
        eprintln!("stasis: {warning}");
    }

    for descriptor in &image.descriptors {
        let Some(&Some(from)) = made.get(descriptor.description as usize) else { continue };
        let from = instead.get(&descriptor.fd).copied().unwrap_or(from);
        // SAFETY: dup2(2) onto a number of the image, which nothing of ours uses from now on.
        done(unsafe { libc::dup2(from, descriptor.fd) }).map_err(|error| {
            failed(image, descriptor.description as usize, "it cannot be put at its number", &error)
        })?;
    }
    let placed =
        |fd: RawFd| {
            image.descriptors.iter().find(|descriptor| descriptor.fd == fd).is_some_and(|descriptor| {
                made.get(descriptor.description as usize).is_some_and(Option::is_some)
            })
        };
    let kept = image.descriptors.iter().map(|descriptor| descriptor.fd).filter(|&fd| placed(fd));
    numbers::close_others(kept.chain(reserved.iter().copied()).collect());

    for (index, description) in image.descriptions.iter().enumerate() {
        if made[index].is_none() {
            continue;
        }
        let Some(fd) = numbers_of(image, index).next() else { continue };
        locks::take(image, index, description, fd)?;
        if let DescriptionKind::Epoll { targets } = &description.kind {
            anonymous::watch(image, index, fd, targets, &mut installed)?;
        }
        late(description, fd, &mut installed);
    }
    for descriptor in
        image.descriptors.iter().filter(|descriptor| descriptor.close_on_exec && placed(descriptor.fd))
    {
        let arguments = [descriptor.fd as u64, libc::F_SETFD as u64, libc::FD_CLOEXEC as u64];
        installed.late.push(call(libc::SYS_fcntl, &arguments));
    }
    Ok(installed)
}

/// What a description needs when the program's ids are known: whom to signal, and from when on.
fn late(description: &Description, fd: RawFd, installed: &mut Installed) {
    let number = fd as u64;
    if let Some((kind, id)) = description.owner {
        const F_SETOWN_EX: u64 = 15;
        let owner = [kind.to_ne_bytes(), id.to_ne_bytes()].concat();
        let offset = installed.keep(&owner);
        // The owner may have ended since.
        installed.late.push(pointing(attempt(libc::SYS_fcntl, &[number, F_SETOWN_EX, 0]), 2, offset));
    }
    if description.signal != 0 {
        const F_SETSIG: u64 = 10;
        installed.late.push(call(libc::SYS_fcntl, &[number, F_SETSIG, description.signal as u64]));
    }
    if description.flags as i32 & libc::O_ASYNC != 0 {
        let flags = u64::from(description.flags);
        installed.late.push(call(libc::SYS_fcntl, &[number, libc::F_SETFL as u64, flags]));
    }
    if let DescriptionKind::Timer { .. } = description.kind {
        anonymous::arm(&description.kind, fd, installed);
    }
}

impl Maker<'_> {
    /// Makes a description, at a number that is out of the way; `None` where the policy is to go without it.
    fn make(&mut self, index: usize, description: &Description) -> Result<Option<OwnedFd>, Refusal> {
        let fd = match &description.kind {
            DescriptionKind::Regular { .. }
            | DescriptionKind::Directory { .. }
            | DescriptionKind::Path { .. }
            | DescriptionKind::CharacterDevice { .. } => match files::open(self, index, description)? {
                Some(fd) => fd,
                None => return Ok(None),
            },
            DescriptionKind::Object { object, .. } => files::open_object(self, index, description, *object)?,
            DescriptionKind::Terminal { .. } => terminals::open(self, index, description)?,
            DescriptionKind::Inherited { fd, .. } => self.inherit(index, *fd)?,
            DescriptionKind::Pipe { .. } => match pipes::open(self, index, description)? {
                Some(fd) => fd,
                None => return Ok(None),
            },
            DescriptionKind::Event { .. }
            | DescriptionKind::Timer { .. }
            | DescriptionKind::Signal { .. }
            | DescriptionKind::Epoll { .. } => anonymous::make(&description.kind)
                .map_err(|error| failed(self.image, index, "it cannot be made again", &error))?,
            DescriptionKind::Inotify { watches, queued } => {
                if !queued.is_empty() {
                    return Err(refuse(
                        self.image,
                        index,
                        "it holds events that were not read, and events cannot be put back",
                        "restart from another checkpoint",
                    ));
                }
                anonymous::make_inotify(self.image, index, watches)?
            }
            DescriptionKind::SocketPair { .. } => sockets::open_pair(self, index)?,
            DescriptionKind::Socket { .. } => sockets::open(self, index)?,
        };
        kernel::set_status_flags(&fd, description.flags as i32)
            .map_err(|error| failed(self.image, index, "its flags cannot be set", &error))?;
        self.numbers
            .out_of_the_way(fd)
            .map(Some)
            .map_err(|error| failed(self.image, index, "no descriptor number is free", &error))
    }

    /// The descriptor of `stasis restart` of the same number; beyond the standard ones, which mean the same to
    /// everybody, only where it is a pipe as well.
    fn inherit(&mut self, index: usize, fd: i32) -> Result<OwnedFd, Refusal> {
        let own = match usize::try_from(fd).ok().and_then(|fd| self.standard.get(fd)) {
            Some(standard) => standard.as_ref().and_then(|own| own.try_clone().ok()),
            None => self.numbers.copy(fd).ok().filter(|own| {
                kernel::stat(own).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO)
            }),
        };
        let copy = match own {
            Some(own) => Ok(own),
            None => {
                self.installed.warnings.push(format!(
                    "{}: this command has no descriptor {fd} to pass on; /dev/null takes its place",
                    name(self.image, index)
                ));
                kernel::open("/dev/null", libc::O_RDWR)
            }
        };
        copy.map_err(|error| failed(self.image, index, "it cannot be passed on", &error))
    }

    /// Lets go of what was needed for making.
    fn finish(self) -> (Installed, BTreeMap<RawFd, RawFd>) {
        let instead = self.instead.into_iter().map(|(fd, own)| (fd, own.into_raw_fd())).collect();
        (self.installed, instead)
    }
}

/// The number of an owned descriptor as the kernel's interface wants it.
fn raw(fd: &OwnedFd) -> RawFd {
    fd.as_raw_fd()
}
