//! Controlling terminals: which session has which, and the one that `stasis restart` itself is on.
//!
//! A session whose terminal is a pseudo-terminal of the computation gets that, by its leader. The terminal that the computation
//! was started on is another one now:
//! - most often the program shares the session of who started it, and so it does with `stasis restart`;
//! - where it led the session (the first program of a terminal's window), and `stasis restart` leads its own, that one lets
//!   go of the terminal, and the program's leader takes it;
//! - where it led the session, and `stasis restart` was typed in a shell, it joins that shell's, as a job: a terminal has
//!   one session.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    ptr,
};

use nix::unistd::{getpgid, getpgrp, getpid, getppid, getsid, tcgetpgrp, tcsetpgrp};
use stasis_protocol::image::ProcessImage;

use super::{
    descriptors::{Common, pty_numbers},
    tree::{Node, Tree},
};

/// The terminal of a session that is made again.
#[derive(Clone, Copy, Debug)]
pub struct Controlling {
    pub terminal: RawFd,
    /// The process group in the foreground.
    pub group: i32,
}

impl Controlling {
    /// Makes it the terminal of the session that the calling process leads.
    pub fn take(self) -> nix::Result<()> {
        // SAFETY: TIOCSCTTY takes a number.
        nix::errno::Errno::result(unsafe { libc::ioctl(self.terminal, libc::TIOCSCTTY, 0) }).map(drop)
    }

    /// Puts the group there, if it is there at all. All signals are blocked: it may be done from the background.
    pub fn set_foreground(self) {
        // SAFETY: TIOCSPGRP reads an int.
        unsafe { libc::ioctl(self.terminal, libc::TIOCSPGRP, &raw const self.group) };
    }

    /// Lets go of it, by a process that does not lead its session.
    pub fn leave(self) {
        // SAFETY: TIOCNOTTY takes nothing.
        unsafe { libc::ioctl(self.terminal, libc::TIOCNOTTY) };
    }
}

/// The leaders of sessions whose terminal was outside the computation.
fn leaders<'a>(images: &'a [&'a ProcessImage]) -> impl Iterator<Item = &'a ProcessImage> {
    let own = pty_numbers(images);
    let leads = |image: &&ProcessImage| image.ids.sid == image.ids.pid && image.settings.terminal != 0;
    let outside = move |image: &&ProcessImage| own_number(image).is_none_or(|number| !own.contains(&number));
    images.iter().copied().filter(leads).filter(outside)
}

/// The number of the pseudo-terminal that controls a process.
fn own_number(image: &ProcessImage) -> Option<u32> {
    const SLAVES: u32 = 136;
    let device = image.settings.terminal;
    (libc::major(device) == SLAVES).then(|| libc::minor(device))
}

fn open() -> Option<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/tty").ok()
}

fn leads_session() -> bool {
    getsid(None).is_ok_and(|session| session == getpid())
}

/// The sessions that are to be that of `stasis restart`.
pub fn joined(images: &[&ProcessImage], detach: bool) -> BTreeSet<i32> {
    if detach || leads_session() || open().is_none() {
        return BTreeSet::new();
    }
    leaders(images).take(1).map(|image| image.ids.pid).collect()
}

/// The first process, by its place, whose group had the terminal that is outside, where `stasis restart` shares that with it;
/// or would have it, were it not a job that stood stopped. Where nobody had it (a job in the background, or what was launched without
/// a terminal), and `stasis restart` has one, the first one: who types there means the program.
pub fn foreground(images: &[&ProcessImage], tree: &Tree, detach: bool) -> Option<usize> {
    let shares = |node: &Node| node.session.is_none() && node.group.is_some();
    let had = |(image, node): (&&ProcessImage, &Node)| image.settings.foreground && shares(node);
    let waits = |(image, node): (&&ProcessImage, &Node)| {
        image.settings.stopped && image.settings.terminal != 0 && shares(node)
    };
    let processes = || images.iter().zip(&tree.nodes);
    let first = || processes().position(|(_, node)| shares(node)).filter(|_| is_in_foreground());
    processes().position(had).or_else(|| processes().position(waits)).or_else(first).filter(|_| !detach)
}

fn is_in_foreground() -> bool {
    open().is_some_and(|terminal| tcgetpgrp(&terminal) == Ok(getpgrp()))
}

/// Whether who started `stasis restart` sees it stop, and continues it: a shell with job control.
pub fn is_job() -> bool {
    let parent = Some(getppid());
    open().is_some() && getsid(parent) == getsid(None) && getpgid(parent) != getpgid(None)
}

/// Puts the calling process' group into the foreground, with all signals blocked.
pub fn come_forward() {
    if let Some(terminal) = open() {
        let _ = tcsetpgrp(&terminal, getpgrp());
    }
}

/// A terminal that was let go of; taken again when this is dropped.
pub struct HandedOver {
    terminal: Option<File>,
    leader: i32,
    group: i32,
}

impl HandedOver {
    /// Lets go of the terminal, for the one that led its session. To be called before any process is made, with all signals
    /// blocked.
    pub fn new(images: &[&ProcessImage], detach: bool) -> Self {
        let none = Self { terminal: None, leader: 0, group: 0 };
        let Some(leader) = leaders(images).next().filter(|_| !detach && leads_session()) else { return none };
        let Some(terminal) = open() else { return none };
        // SAFETY: TIOCNOTTY takes nothing; both sets are plain data, initialized by sigemptyset(3); the time-out is a constant.
        unsafe {
            if libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) < 0 {
                return none;
            }
            // Of this the kernel tells the foreground group, which is this process (drivers/tty/tty_jobctrl.c).
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGHUP);
            libc::sigaddset(&raw mut set, libc::SIGCONT);
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            while libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const now) > 0 {}
        }
        let group = leader.settings.foreground_group;
        Self { terminal: Some(terminal), leader: leader.ids.pid, group }
    }

    /// It is the program's now.
    pub fn keep(mut self) {
        self.terminal = None;
    }
}

impl Drop for HandedOver {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            let _ = Controlling { terminal: terminal.as_raw_fd(), group: 0 }.take();
        }
    }
}

/// The terminals of sessions that are made again, by their leaders.
pub fn controlling(common: &Common<'_>, handed: &HandedOver) -> BTreeMap<i32, Controlling> {
    let mut all = BTreeMap::new();
    for image in common.images.iter().filter(|image| image.ids.sid == image.ids.pid) {
        let slave = own_number(image).and_then(|number| common.ptys.numbered(number));
        if let Some(slave) = slave.filter(|_| image.settings.terminal != 0) {
            let group = image.settings.foreground_group;
            all.insert(image.ids.pid, Controlling { terminal: slave.as_raw_fd(), group });
        }
    }
    if let Some(terminal) = &handed.terminal {
        all.insert(handed.leader, Controlling { terminal: terminal.as_raw_fd(), group: handed.group });
    }
    all
}
