//! Pseudo-terminals whose master side the computation has: each is made once, with what waited in it, before any process.
//!
//! The number in the name of the other side is asked for: the kernel gives the lowest that is free, so those below are
//! taken meanwhile. Where somebody else has it, the name changes: ptsname(3) and ttyname(3) tell the new one, and who
//! kept the old one is warned of at the restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, ProcessImage, Slave, TerminalQueues},
};
use stasis_sys::{
    Errno,
    terminal::{self, Pair, State, Termios},
};

use super::{
    Maker, failed,
    joint::Place,
    kernel::{self, done, owned},
    raw, refuse,
};

/// What is to be made: where it is described, and its number.
struct Wanted {
    place: Place,
    index: u32,
}

struct Pty {
    /// `None`: it was closed, and whoever has the other side finds it hung up.
    master: Option<OwnedFd>,
    /// Kept open for as long as sides are being opened; `None` where it was never open.
    slave: Option<OwnedFd>,
    index: u32,
    wanted: Wanted,
}

/// The pseudo-terminals of a computation, by what names them.
#[derive(Default)]
pub struct Ptys(BTreeMap<u64, Pty>);

fn error(Errno(number): Errno) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// The pseudo-terminals whose master sides a computation has.
pub fn keys(images: &[&ProcessImage]) -> BTreeSet<u64> {
    let kinds = images.iter().flat_map(|image| &image.descriptions).map(|description| &description.kind);
    kinds
        .filter_map(|kind| match kind {
            DescriptionKind::Pseudoterminal { pty, .. } => Some(*pty),
            _ => None,
        })
        .collect()
}

/// What is to be made, of each the place that tells most.
fn wanted(images: &[&ProcessImage]) -> BTreeMap<u64, Wanted> {
    let mut all: BTreeMap<u64, (u8, Wanted)> = BTreeMap::new();
    for (process, image) in images.iter().enumerate() {
        for (at, description) in image.descriptions.iter().enumerate() {
            let (pty, index, knows) = match &description.kind {
                DescriptionKind::Pseudoterminal { pty, index, queues, .. } => {
                    (*pty, *index, 1 + u8::from(queues.is_some()))
                }
                DescriptionKind::Terminal { pty: pty @ 1.., hung_up: true, path, .. } => {
                    let number = path.strip_suffix(" (deleted)").and_then(|path| path.rsplit('/').next());
                    (*pty, number.and_then(|number| number.parse().ok()).unwrap_or(0), 0)
                }
                _ => continue,
            };
            let found = (knows, Wanted { place: (process, at), index });
            match all.get(&pty) {
                Some((known, _)) if *known >= knows => {}
                _ => drop(all.insert(pty, found)),
            }
        }
    }
    all.into_iter().map(|(pty, (_, wanted))| (pty, wanted)).collect()
}

impl Ptys {
    /// Makes them, with modes, sizes and what waited in them.
    ///
    /// # Errors
    /// A refusal that names a process and its descriptor.
    pub fn create(images: &[&ProcessImage]) -> Result<Self, Refusal> {
        let wanted = wanted(images);
        let mut masters = allocate(&wanted).map_err(|(pty, error)| {
            let (process, index) = wanted[&pty].place;
            failed(images[process], index, "a pseudo-terminal cannot be made", &error)
        })?;
        let mut ptys = Self::default();
        for (key, wanted) in wanted {
            let Some((index, master)) = masters.remove(&key) else { continue };
            let (process, at) = wanted.place;
            let image = images[process];
            if index != wanted.index {
                eprintln!(
                    "stasis: {}: /dev/pts/{} is somebody else's now; it is /dev/pts/{index}",
                    super::name(image, at),
                    wanted.index
                );
            }
            let kind = &image.descriptions[at].kind;
            let made = set_up(master, index, kind, wanted)
                .map_err(|error| failed(image, at, "it cannot be made as it was", &error))?;
            ptys.0.insert(key, made);
        }
        Ok(ptys)
    }

    /// When all sides are open: what would have kept them from being opened.
    pub fn finish(&mut self, images: &[&ProcessImage]) {
        for pty in self.0.values_mut() {
            let (process, at) = pty.wanted.place;
            match &images[process].descriptions[at].kind {
                DescriptionKind::Pseudoterminal { locked, queues, .. } => {
                    if let (Some(slave), Some(TerminalQueues { exclusive: true, .. })) = (&pty.slave, queues)
                    {
                        let _ = terminal::control(raw(slave), libc::TIOCEXCL, 0);
                    }
                    if let Some(master) = pty.master.as_ref().filter(|_| *locked) {
                        let _ = terminal::set_locked(raw(master), true);
                    }
                }
                _ => drop(pty.master.take()),
            }
        }
    }

    /// The pseudo-terminal whose number was `index`: its other side.
    pub fn numbered(&self, index: u32) -> Option<&OwnedFd> {
        self.0
            .values()
            .find(|pty| pty.wanted.index == index && pty.master.is_some())
            .and_then(|pty| pty.slave.as_ref())
    }
}

/// A master for each, with its number.
type Masters = BTreeMap<u64, (u32, OwnedFd)>;

fn allocate(wanted: &BTreeMap<u64, Wanted>) -> Result<Masters, (u64, io::Error)> {
    /// An image is hostile input.
    const MOST: u32 = 4096;
    let mut free: BTreeMap<u32, OwnedFd> = BTreeMap::new();
    let mut made = Masters::new();
    let mut sorted: Vec<(&u64, &Wanted)> = wanted.iter().collect();
    sorted.sort_by_key(|(_, wanted)| wanted.index);
    for (key, wanted) in &sorted {
        let reached =
            |free: &BTreeMap<u32, OwnedFd>| free.keys().next_back().is_some_and(|last| *last >= wanted.index);
        while wanted.index < MOST && !reached(&free) {
            let (index, master) = open_master().map_err(|error| (**key, error))?;
            free.insert(index, master);
        }
        if let Some(master) = free.remove(&wanted.index) {
            made.insert(**key, (wanted.index, master));
        }
    }
    for (key, _) in sorted {
        if !made.contains_key(key) {
            let (index, master) = match free.pop_first() {
                Some(found) => found,
                None => open_master().map_err(|error| (*key, error))?,
            };
            made.insert(*key, (index, master));
        }
    }
    Ok(made)
}

fn open_master() -> io::Result<(u32, OwnedFd)> {
    let master = kernel::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)?;
    let mut index = 0u32;
    // SAFETY: TIOCGPTN writes an unsigned int.
    done(unsafe { libc::ioctl(raw(&master), libc::TIOCGPTN, &raw mut index) })?;
    terminal::set_locked(raw(&master), false).map_err(error)?;
    Ok((index, master))
}

fn set_up(master: OwnedFd, index: u32, kind: &DescriptionKind, wanted: Wanted) -> io::Result<Pty> {
    let number = raw(&master);
    let DescriptionKind::Pseudoterminal { termios, winsize, packet, owner, slave, queues, .. } = kind else {
        let slave = Pair::open(number).map_err(error)?.slave;
        return Ok(Pty { master: Some(master), slave: Some(owned(slave)?), index, wanted });
    };
    let (user, group, mode) = *owner;
    if user != u32::MAX {
        // Only the privileged give files away; who makes a terminal has it otherwise.
        let path = format!("/dev/pts/{index}");
        let _ = std::os::unix::fs::chown(&path, Some(user), Some(group));
        let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
    }
    if winsize.len() == size_of::<libc::winsize>() {
        // SAFETY: TIOCSWINSZ reads struct winsize, whose length was checked.
        done(unsafe { libc::ioctl(number, libc::TIOCSWINSZ, winsize.as_ptr()) })?;
    }
    let modes = Termios::from_bytes(termios).ok_or(io::ErrorKind::InvalidData)?;
    modes.set(number).map_err(error)?;
    if *slave == Slave::Unopened {
        terminal::set_packet(number, *packet).map_err(error)?;
        return Ok(Pty { master: Some(master), slave: None, index, wanted });
    }
    let pair = Pair::open(number).map_err(error)?;
    let kept = owned(pair.slave)?;
    let empty = TerminalQueues::default();
    let waiting = queues.as_ref().unwrap_or(&empty);
    let state = State { modes, packet: *packet, status: waiting.status, stopped: waiting.stopped };
    let lines = waiting.lines.iter().map(Vec::as_slice);
    pair.put_back(&state, lines, &waiting.rest, &waiting.output).map_err(error)?;
    Ok(Pty { master: Some(master), slave: Some(kept), index, wanted })
}

pub fn open_master_side(maker: &mut Maker<'_>, index: usize, pty: u64) -> Result<OwnedFd, Refusal> {
    let made = maker.common.ptys.0.get(&pty).and_then(|pty| pty.master.as_ref());
    let Some(master) = made else { return Err(refuse(maker.image, index, "the image is damaged", DAMAGED)) };
    master.try_clone().map_err(|error| failed(maker.image, index, "it cannot be duplicated", &error))
}

const DAMAGED: &str = "run `stasis verify`, and restart from another checkpoint";

/// A description of its own of the other side.
pub fn open_slave_side(
    maker: &mut Maker<'_>,
    index: usize,
    description: &Description,
    pty: u64,
    path: &str,
) -> Result<OwnedFd, Refusal> {
    let Some(pty) = maker.common.ptys.0.get(&pty) else {
        return Err(refuse(maker.image, index, "the image is damaged", DAMAGED));
    };
    let flags = description.flags as i32 & (libc::O_ACCMODE | kernel::SETTABLE) | libc::O_NOCTTY;
    let opened = match (&pty.master, &pty.slave) {
        (Some(_), Some(slave)) if path == "/dev/tty" => as_controlling(slave, flags),
        (Some(master), _) => terminal::peer(raw(master), flags).map_err(error).and_then(owned),
        (None, _) => Err(io::ErrorKind::NotFound.into()),
    };
    opened.map_err(|error| {
        failed(maker.image, index, &format!("/dev/pts/{} cannot be opened", pty.index), &error)
    })
}

/// Opens /dev/tty by a process whose controlling terminal it is, and which shares this one's descriptors.
fn as_controlling(terminal: &OwnedFd, flags: i32) -> io::Result<OwnedFd> {
    let (out, into) = io::pipe()?;
    let (terminal, into) = (terminal.as_raw_fd(), into.as_raw_fd());
    let flags_of_clone = (libc::CLONE_FILES | libc::SIGCHLD) as u64;
    let child = super::super::namespace::clone_with(flags_of_clone)?;
    if child == 0 {
        // SAFETY: system calls with numbers, a string and a value of this frame; the child has its own memory.
        unsafe {
            libc::setsid();
            let has = libc::ioctl(terminal, libc::TIOCSCTTY, 0);
            let opened: RawFd = if has < 0 { -1 } else { libc::open(c"/dev/tty".as_ptr(), flags) };
            let told = if opened < 0 { -*libc::__errno_location() } else { opened };
            libc::write(into, (&raw const told).cast(), size_of::<RawFd>());
        }
        super::super::namespace::exit();
    }
    let mut told: RawFd = -libc::EIO;
    // SAFETY: reads into one int; waits for the child that was just made.
    unsafe {
        libc::read(out.as_raw_fd(), (&raw mut told).cast(), size_of::<RawFd>());
        while libc::waitpid(child, std::ptr::null_mut(), 0) < 0 && *libc::__errno_location() == libc::EINTR {}
    }
    if told < 0 {
        return Err(io::Error::from_raw_os_error(-told));
    }
    // SAFETY: the child opened it for us.
    let opened = unsafe { OwnedFd::from_raw_fd(told) };
    kernel::fcntl(&opened, libc::F_SETFD, libc::FD_CLOEXEC)?;
    Ok(opened)
}
