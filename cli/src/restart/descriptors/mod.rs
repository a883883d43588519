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
//! - shared memory that has a name is put back with its content ([`put_back`]);
//! - `--on-changed-file=accept` takes files as they are; `--on-missing-file` says what stands in for one that is
//!   gone.

mod anonymous;
mod check;
mod datagrams;
mod files;
mod joint;
mod kernel;
mod locks;
pub mod message_queues;
mod numbers;
mod objects;
mod peers;
mod pidfds;
mod pipes;
mod ptys;
mod put_back;
mod socket_files;
mod sockets;
mod tcp;
mod terminals;
#[cfg(test)]
mod tests;
mod udp;
mod unread;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, ProcessImage},
    plan::Call,
};

use self::{joint::Place, kernel::done, numbers::Numbers};
use super::plan::{attempt, call, pointing};
use crate::args::{ChangedFile, MissingFile};

pub use self::numbers::close_others;
pub use self::{
    check::{Files, check, path_now},
    joint::{Common, Passed},
    numbers::{Places, raise_limit},
    objects::Objects,
    peers::with_id,
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
    /// The same, when nothing is closed any more: the third argument points.
    pub locks: Vec<Call>,
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
        Some(DescriptionKind::Pseudoterminal { index, .. }) => format!("master side of /dev/pts/{index}"),
        Some(DescriptionKind::Pipe { fifo, .. }) => fifo.as_ref().map_or("pipe", |fifo| &fifo.path).into(),
        Some(DescriptionKind::Inherited { what, .. }) => what.clone(),
        Some(DescriptionKind::Event { .. }) => "eventfd".into(),
        Some(DescriptionKind::Timer { .. }) => "timerfd".into(),
        Some(DescriptionKind::Signal { .. }) => "signalfd".into(),
        Some(DescriptionKind::Epoll { .. }) => "epoll".into(),
        Some(DescriptionKind::Inotify { .. }) => "inotify".into(),
        Some(DescriptionKind::Process { id, .. }) => format!("pidfd of {id}"),
        Some(DescriptionKind::Object { object, .. }) => objects::name(image, *object),
        Some(DescriptionKind::SocketPair { domain, local, peer, .. }) if *domain != libc::AF_UNIX => {
            format!("{} connected to {}", sockets::display(local), sockets::display(peer))
        }
        Some(DescriptionKind::SocketPair { .. }) => "socket pair".into(),
        Some(DescriptionKind::Socket { local, .. }) => sockets::display(local),
        Some(DescriptionKind::MessageQueue { name, .. }) => format!("message queue {name}"),
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
    common: &'a Common<'a>,
    /// The process for which one is made, by its place in the checkpoint, and its image.
    process: usize,
    image: &'a ProcessImage,
    numbers: Numbers,
    pipes: BTreeMap<u64, pipes::Ends>,
    pairs: BTreeMap<u64, Option<OwnedFd>>,
    /// Sockets of UDP that have something to read and no address yet.
    filled: BTreeMap<Place, OwnedFd>,
    /// What leads to unix sockets that have a path, or had.
    reaches: BTreeMap<Place, OwnedFd>,
    /// Connections through which descriptors are sent again, when all are made.
    unfilled: Vec<sockets::Unfilled>,
    installed: Installed,
}

/// The numbers of the pseudo-terminals whose master sides a computation has.
pub fn pty_numbers(images: &[&ProcessImage]) -> BTreeSet<u32> {
    let kinds = images.iter().flat_map(|image| &image.descriptions).map(|description| &description.kind);
    kinds
        .filter_map(|kind| match kind {
            DescriptionKind::Pseudoterminal { index, .. } => Some(*index),
            _ => None,
        })
        .collect()
}

/// Gives this process the descriptors of an image, and no others but `reserved`: numbers that the image does not
/// use. All are open across exec; what the program had close-on-exec is made so by a late call.
///
/// To be called in a process with one thread that goes on to exec or to end: afterwards none of the descriptors
/// that it had before is what it was, those of `common` included, so that nothing that owns one may be
/// dropped.
///
/// # Errors
/// A refusal that names the descriptor. The process is of no use then.
pub fn install(common: &Common<'_>, process: usize, reserved: &[RawFd]) -> Result<Installed, Refusal> {
    let image = common.images[process];
    let mut maker = Maker::new(common, process, Numbers::new(image));
    let mut made = Vec::with_capacity(image.descriptions.len());
    let mut instead: BTreeMap<RawFd, RawFd> = BTreeMap::new();
    for (index, description) in image.descriptions.iter().enumerate() {
        let fd = maker.have(index, description)?;
        if let (DescriptionKind::Terminal { .. }, Some(fd)) = (&description.kind, &fd)
            && !common.relations.is_within(&description.kind)
        {
            instead.extend(terminals::stand_ins(&mut maker, index, fd));
        }
        made.push(fd.map(IntoRawFd::into_raw_fd));
    }
    let mut installed = maker.finish();
    for (index, description) in image.descriptions.iter().enumerate() {
        let DescriptionKind::Epoll { targets } = &description.kind else { continue };
        // Said once of those that several have.
        if common.ready((process, index)).is_some_and(|(_, is_first)| !is_first) {
            continue;
        }
        installed.warnings.extend(anonymous::unknown(&common.images, targets).into_iter().map(|number| {
            let what = name(image, index);
            format!("{what} does not watch what was fd {number} any more: it was closed, and another process kept it")
        }));
    }
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
        locks::take_records(image, index, description, fd, &mut installed)?;
        if !common.relations.is_within(&description.kind) {
            terminals::tell_size(image, description, fd, &mut installed);
        }
        if let DescriptionKind::Epoll { targets } = &description.kind {
            let shared = common.ready((process, index)).map(|(_, is_first)| anonymous::First(is_first));
            anonymous::watch(image, index, fd, targets, shared, &mut installed)?;
        }
        // What belongs to a description that several processes share is given to it once.
        if common.ready((process, index)).is_some_and(|(_, is_first)| !is_first) {
            continue;
        }
        locks::take(image, index, description, fd)?;
        let fds: Vec<RawFd> = numbers_of(image, index).collect();
        pidfds::late(&description.kind, description.flags as i32, &fds, &mut installed);
        files::late(image, description, &fds, &mut installed);
        late(&common.images, description, fd, &mut installed);
    }
    for descriptor in
        image.descriptors.iter().filter(|descriptor| descriptor.close_on_exec && placed(descriptor.fd))
    {
        let arguments = [descriptor.fd as u64, libc::F_SETFD as u64, libc::FD_CLOEXEC as u64];
        installed.late.push(call(libc::SYS_fcntl, &arguments));
    }
    Ok(installed)
}

/// Whether who is signalled belongs to the computation: what had the id of another one then may be anybody now.
fn is_inside(images: &[&ProcessImage], (kind, id): (i32, i32)) -> bool {
    const F_OWNER_PGRP: i32 = 2;
    let leads =
        |image: &&ProcessImage| image.ids.pid == id || image.zombies.iter().any(|zombie| zombie.pid == id);
    let is_led = images.iter().any(leads);
    if kind == F_OWNER_PGRP {
        // Where nobody of it leads the first one's group, that is whoever's started it.
        let outer = images.first().is_some_and(|first| first.ids.pgid == id && !is_led);
        return !outer && images.iter().any(|image| image.ids.pgid == id);
    }
    is_led || images.iter().any(|image| image.threads.iter().any(|thread| thread.tid == id))
}

/// What a description needs when the program's ids are known: whom to signal, and from when on.
fn late(images: &[&ProcessImage], description: &Description, fd: RawFd, installed: &mut Installed) {
    let number = fd as u64;
    if let Some((kind, id)) = description.owner.filter(|&owner| is_inside(images, owner)) {
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
    if let Some(lease) = description.lease {
        // After its owner, which else would be who takes it.
        installed.late.push(call(libc::SYS_fcntl, &[number, libc::F_SETLEASE as u64, lease as u64]));
    }
    if description.flags as i32 & libc::O_ASYNC != 0 {
        let flags = u64::from(description.flags);
        installed.late.push(call(libc::SYS_fcntl, &[number, libc::F_SETFL as u64, flags]));
    }
    if let DescriptionKind::Timer { .. } = description.kind {
        anonymous::arm(&description.kind, fd, installed);
    }
    tcp::late(&description.kind, fd, installed);
}

impl<'a> Maker<'a> {
    fn new(common: &'a Common<'a>, process: usize, numbers: Numbers) -> Self {
        Self {
            common,
            process,
            image: common.images[process],
            numbers,
            pipes: BTreeMap::new(),
            pairs: BTreeMap::new(),
            filled: BTreeMap::new(),
            reaches: BTreeMap::new(),
            unfilled: Vec::new(),
            installed: Installed::default(),
        }
    }

    /// A description at a number that is out of the way: the one that was made for several processes, or a new one.
    fn have(&mut self, index: usize, description: &'a Description) -> Result<Option<OwnedFd>, Refusal> {
        let Some((ready, _)) = self.common.ready((self.process, index)) else {
            return self.make(index, description);
        };
        let Some(ready) = ready else { return Ok(None) };
        let home = self.home(index, description);
        self.numbers
            .copy_or_home(raw(ready), home)
            .map(Some)
            .map_err(|error| failed(self.image, index, "no descriptor number is free", &error))
    }

    /// Makes a description, at a number that is out of the way; `None` where the policy is to go without it.
    fn make(&mut self, index: usize, description: &'a Description) -> Result<Option<OwnedFd>, Refusal> {
        let fd = match &description.kind {
            kind if self.common.relations.leads_outside(kind) && self.is_inherited(index, kind) => {
                let number = self.lowest_number(index);
                self.inherit(index, number)?
            }
            DescriptionKind::Regular { .. }
            | DescriptionKind::Directory { .. }
            | DescriptionKind::Path { .. }
            | DescriptionKind::CharacterDevice { .. } => match files::open(self, index, description)? {
                Some(fd) => fd,
                None => return Ok(None),
            },
            DescriptionKind::Object { object, .. } => files::open_object(self, index, description, *object)?,
            DescriptionKind::Terminal { pty, path, .. }
                if self.common.relations.is_within(&description.kind) =>
            {
                ptys::open_slave_side(self, index, description, *pty, path)?
            }
            DescriptionKind::Terminal { .. } => terminals::open(self, index, description)?,
            DescriptionKind::Pseudoterminal { pty, .. } => ptys::open_master_side(self, index, *pty)?,
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
            DescriptionKind::Process { id, thread } => pidfds::make(*id, *thread)
                .map_err(|error| failed(self.image, index, "it cannot be made again", &error))?,
            DescriptionKind::Inotify { watches, events_wait } => {
                let missing = self.common.policy.missing;
                let queue = anonymous::make_inotify(self.image, index, watches, missing)?;
                if *events_wait {
                    anonymous::stand_in(&queue).map_err(|error| {
                        failed(self.image, index, "the events that wait in it cannot be put back", &error)
                    })?;
                }
                queue
            }
            DescriptionKind::MessageQueue { .. } => match self.common.open_queue(self.image, index)? {
                Some(fd) => fd,
                None => return Ok(None),
            },
            DescriptionKind::SocketPair { .. } => sockets::open_pair(self, index)?,
            DescriptionKind::Socket { .. } => sockets::open(self, index)?,
        };
        kernel::set_status_flags(&fd, description.flags as i32)
            .map_err(|error| failed(self.image, index, "its flags cannot be set", &error))?;
        let home = self.home(index, description);
        self.numbers
            .out_of_the_way(fd, home)
            .map(Some)
            .map_err(|error| failed(self.image, index, "no descriptor number is free", &error))
    }

    /// A number at which nothing but this description will be, for when no others are left. Of a terminal's, some are given
    /// to what stands in for it ([`terminals::stand_ins`]).
    fn home(&self, index: usize, description: &Description) -> Option<RawFd> {
        let is_terminal = matches!(description.kind, DescriptionKind::Terminal { .. });
        numbers_of(self.image, index).next().filter(|_| !is_terminal)
    }

    /// The descriptor of `stasis restart` of the same number; beyond the standard ones, which mean the same to
    /// everybody, only where it is a pipe as well.
    fn inherit(&mut self, index: usize, fd: i32) -> Result<OwnedFd, Refusal> {
        let own = self.common.passed.copy(fd);
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

    /// Whether what leads outside is taken from this command: standard descriptors, and whatever is no socket.
    fn is_inherited(&self, index: usize, kind: &DescriptionKind) -> bool {
        !matches!(kind, DescriptionKind::SocketPair { .. }) || self.lowest_number(index) <= 2
    }

    /// What leads to a unix socket.
    fn reach(&self, place: Place) -> Option<&OwnedFd> {
        self.reaches.get(&place)
    }

    /// The lowest number at which any process has a description.
    fn lowest_number(&self, index: usize) -> RawFd {
        let places = self.common.relations.places((self.process, index));
        let numbers =
            places.iter().flat_map(|&(process, index)| numbers_of(self.common.images[process], index));
        numbers.min().unwrap_or(-1)
    }

    /// Lets go of what was needed for making.
    fn finish(self) -> Installed {
        self.installed
    }
}

/// The number of an owned descriptor as the kernel's interface wants it.
fn raw(fd: &OwnedFd) -> RawFd {
    fd.as_raw_fd()
}
