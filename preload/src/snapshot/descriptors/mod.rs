//! The program's descriptors: seen through /proc and, where the open file description itself must be
//! asked, through a duplicate (pidfd_getfd(2)).
//!
//! The checkpoint thread has a descriptor table of its own. Closing a duplicate there releases no
//! POSIX lock of the program: those belong to the table that took them (fcntl(2); `fl_owner` in
//! fs/locks.c). Nothing is read from a queue that could not be read again: pipes are copied by tee(2),
//! sockets by MSG_PEEK, POSIX messages are put back at once. Events of inotify are taken and kept for the program; what waits
//! in a pseudo-terminal is taken and put back.

mod address;
mod anonymous;
mod datagrams;
mod ends;
mod epoll;
mod files;
mod groups;
mod in_flight;
mod inet_diag;
mod inotify;
mod message_queues;
mod netlink;
mod options;
mod peers;
mod pidfds;
mod pipes;
mod plain;
mod pty;
mod sharing;
mod sock_diag;
mod socket_files;
mod sockets;
mod tcp;
mod terminals;
mod unread;

use alloc::{format, string::String, vec::Vec};
use core::cell::RefCell;

use stasis_protocol::{
    coordinator::{End, Refusal, Sharable},
    image::{Description, DescriptionKind, Descriptor, FileIdentity, IN_FLIGHT},
};
use stasis_sys::{
    Errno, Result as SysResult,
    file::{self, Fd},
    process,
};

use self::in_flight::InFlight;
pub use self::{in_flight::Rights, pidfds::of as end_of, tcp::Room};
use super::{Objects, subject};
use crate::{procfs, unread_events};

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

/// Whether the program runs while it is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Only refusals are wanted; nothing that the program could notice is done, and descriptors come and go.
    Running,
    Stopped,
}

/// One descriptor of the program, as /proc shows it.
pub(super) struct Open {
    /// From [`IN_FLIGHT`] on: on its way to the program.
    fd: i32,
    /// The thread in whose table it is: the program's, or the checkpoint thread.
    tid: i32,
    link: String,
    /// /proc/PID/fdinfo/FD.
    info: Vec<u8>,
    stat: libc::stat,
    /// O_* without O_CLOEXEC.
    flags: u32,
    close_on_exec: bool,
    offset: u64,
}

impl Open {
    fn refuse<T>(&self, reason: &str, remedy: &str) -> Result<T, Refusal> {
        Err(refusal(self.fd, &self.link, reason.into(), remedy))
    }

    /// A refusal because the kernel did not answer.
    fn failed(&self, what: &str, error: Errno) -> Refusal {
        refusal(self.fd, &self.link, format!("{what}: {error}"), "try again; see `stasis doctor`")
    }

    /// The rest of the line of fdinfo that starts with `key`.
    fn field(&self, key: &str) -> Option<&[u8]> {
        procfs::field(&self.info, key)
    }

    fn access(&self) -> i32 {
        self.flags as i32 & libc::O_ACCMODE
    }

    fn is_socket(&self) -> bool {
        self.stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
    }

    fn is_in_flight(&self) -> bool {
        self.fd >= IN_FLIGHT
    }

    /// Where it is: a thread, and the number in its table.
    fn at(&self) -> (i32, Fd) {
        (self.tid, if self.is_in_flight() { self.fd - IN_FLIGHT } else { self.fd })
    }
}

fn refusal(fd: i32, link: &str, reason: String, remedy: &str) -> Refusal {
    let pid = process::getpid();
    let what = match fd {
        IN_FLIGHT.. => format!("pid {pid}, a descriptor on its way to it ({link})"),
        _ => format!("pid {pid}, fd {fd} ({link})"),
    };
    Refusal { what, reason, remedy: remedy.into() }
}

const CLOSE_IT: &str = "let the program close it before the checkpoint";

/// The table that is asked, and all that is open in it.
struct Table<'a> {
    tid: i32,
    pidfd: Fd,
    moment: Moment,
    opens: &'a [Open],
    /// Receive buffers that were made larger.
    rooms: RefCell<Vec<Room>>,
    share: Share<'a>,
    in_flight: &'a InFlight,
}

/// Which part of what several processes have this one copies. All lists are in ascending order.
#[derive(Clone, Copy, Default)]
pub struct Share<'a> {
    /// What another process copies.
    pub elsewhere: &'a [u64],
    /// What this one has told of; `None`: there is no other process.
    pub told: Option<&'a [u64]>,
    /// Other ends of its connections that somebody has.
    pub present: &'a [u64],
}

impl Share<'_> {
    /// Whether what waits in a socket is this process' to copy.
    fn copies_queue(&self, open: &Open) -> bool {
        self.elsewhere.binary_search(&queue_key(open)).is_err()
    }
}

/// A duplicate in the checkpoint thread's own table.
pub struct Duplicate(Fd);

impl Drop for Duplicate {
    fn drop(&mut self) {
        let _ = file::close(self.0);
    }
}

impl Duplicate {
    /// The descriptor, which is the caller's to close from now on.
    fn keep(self) -> Fd {
        let fd = self.0;
        core::mem::forget(self);
        fd
    }
}

impl Table<'_> {
    fn duplicate(&self, open: &Open) -> Result<Duplicate, Refusal> {
        duplicate(self.pidfd, open)
    }

    fn stopped(&self) -> bool {
        self.moment == Moment::Stopped
    }

    /// Whether this process is to copy what waits in a socket. Two that do it at once would disturb each other: the offset
    /// to peek at (SO_PEEK_OFF) is the socket's.
    fn copies_queue(&self, open: &Open) -> bool {
        self.stopped() && self.share.copies_queue(open)
    }

    /// The same for a pseudo-terminal. What nobody has told of is left alone: two might do it at once.
    fn copies(&self, pty: u64) -> bool {
        self.stopped()
            && self.share.elsewhere.binary_search(&pty).is_err()
            && self.share.told.is_none_or(|told| told.binary_search(&pty).is_ok())
    }
}

/// Makes a duplicate for the checkpoint thread; `pidfd`: see [`open_pidfd`].
fn duplicate(pidfd: Fd, open: &Open) -> Result<Duplicate, Refusal> {
    let made =
        if open.is_in_flight() { file::duplicate(open.at().1) } else { process::pidfd_getfd(pidfd, open.fd) };
    made.map(Duplicate).map_err(|error| open.failed("it cannot be duplicated", error))
}

/// What was found of the program's descriptors.
pub struct Captured {
    pub descriptions: Vec<Description>,
    pub descriptors: Vec<Descriptor>,
    /// Those that are on their way to it.
    pub in_flight: Vec<Descriptor>,
    /// Which are held open until this is dropped.
    pub held: Rights,
    /// Whether there are descriptors on their way, which nobody has looked at while the program runs.
    pub receives: bool,
    /// Whether a file is open to be read directly (open(2), O_DIRECT).
    pub reads_directly: bool,
    /// Ends of connections whose other ends other processes have.
    pub ends: Vec<End>,
    /// One of each description, as it may be found in other processes.
    pub sharable: Vec<Sharable>,
    /// To be dropped when the program has run for a while.
    pub rooms: Vec<Room>,
    /// The keys of sockets and pseudo-terminals whose queues are to be copied once for all processes.
    pub queues: Vec<u64>,
    /// Of them, those that nobody copies as far as is known.
    pub uncopied: Vec<u64>,
    /// Of sockets on their way to this process: their keys, and whether it is the one that copies.
    pub received: Vec<(u64, bool)>,
}

/// How the slave side of a pseudo-terminal is named among ends of connections.
pub fn slave_end(pty: u64) -> u64 {
    ends::named(pty, false)
}

/// Names the queue of a socket, or of POSIX messages, among what processes of a computation have together.
fn queue_key(open: &Open) -> u64 {
    const QUEUE: u64 = 0x5158_5555_4555_4551;
    open.stat.st_ino.rotate_left(32) ^ QUEUE
}

/// All descriptors and the descriptions that they share. Objects are added for memfds and deleted files.
///
/// # Errors
/// A refusal for each descriptor that cannot be saved.
pub fn capture(objects: &mut Objects, moment: Moment, share: Share<'_>) -> Result<Captured, Vec<Refusal>> {
    let tid = subject();
    let (mut opens, mut refusals) = look_at_all(tid, moment);
    let pidfd = match open_pidfd(tid) {
        Ok(pidfd) => Duplicate(pidfd),
        Err(error) => {
            refusals.push(refusal(-1, "all", format!("pidfd_open fails: {error}"), "see `stasis doctor`"));
            return Err(refusals);
        }
    };
    let (own, mut in_flight) = (opens.len(), InFlight::default());
    if moment == Moment::Stopped {
        match InFlight::look(&opens, share, |open| duplicate(pidfd.0, open)) {
            Ok(found) => in_flight = found,
            Err(refusal) => refusals.push(refusal),
        }
        match in_flight.opens() {
            Ok(more) => opens.extend(more),
            Err(refusal) => {
                refusals.push(refusal);
                return Err(refusals);
            }
        }
    }
    let receives = opens.iter().any(in_flight::is_receiver);
    let representatives = sharing::representatives(&opens);
    let rooms = RefCell::default();
    let table = Table { tid, pidfd: pidfd.0, moment, opens: &opens, share, rooms, in_flight: &in_flight };
    if table.stopped() {
        tcp::push_all(&table);
    }
    let (mut descriptions, mut descriptors) = (Vec::new(), Vec::with_capacity(opens.len()));
    // For each of `opens`, its description: representatives come before those that share with them.
    let mut numbers: Vec<u32> = Vec::with_capacity(opens.len());
    for (index, open) in opens.iter().enumerate() {
        let representative = representatives[index];
        let number = if representative == index {
            let described = describe(&table, open, objects).and_then(|description| {
                if open.is_in_flight() {
                    in_flight::check(open, &description)?;
                }
                Ok(description)
            });
            match described {
                Ok(description) => descriptions.push(description),
                Err(_) if moment == Moment::Running && is_gone(tid, open) => descriptions.push(nothing()),
                Err(refusal) => {
                    refusals.push(refusal);
                    descriptions.push(nothing());
                }
            }
            descriptions.len() as u32 - 1
        } else {
            numbers[representative]
        };
        numbers.push(number);
        descriptors.push(Descriptor {
            fd: open.fd,
            description: number,
            close_on_exec: !open.is_in_flight() && terminals::closes_on_exec(&table, open),
        });
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    if table.stopped() && share.told.is_none() {
        unread_events::forget_closed();
    }
    epoll::number(&mut descriptions, &numbers);
    in_flight::number(&mut descriptions, &numbers);
    pipes::keep_first_content(&mut descriptions);
    let ends = ends::find(&opens, &descriptions, &descriptors);
    let alone = opens.iter().zip(&representatives).enumerate();
    let sharable = alone
        .filter(|(index, (_, representative))| index == *representative)
        .map(|(_, (open, _))| Sharable { fd: open.fd, key: sharing::key(open) })
        .collect();
    let sockets = || opens.iter().filter(|open| open.is_socket());
    let mut queues: Vec<u64> = sockets().map(queue_key).collect();
    let received = sockets().filter(|open| open.is_in_flight());
    let received = received.map(|open| (queue_key(open), share.copies_queue(open))).collect();
    let mut uncopied = Vec::new();
    for description in &descriptions {
        match &description.kind {
            DescriptionKind::MessageQueue { queue, .. } => queues.push(*queue),
            DescriptionKind::Pseudoterminal { pty, queues: copied, .. } => {
                queues.push(*pty);
                if copied.is_none() && share.elsewhere.binary_search(pty).is_err() {
                    uncopied.push(*pty);
                }
            }
            _ => {}
        }
    }
    queues.sort_unstable();
    queues.dedup();
    let rooms = table.rooms.take();
    let is_direct = |open: &Open| {
        open.flags as i32 & libc::O_DIRECT != 0 && open.stat.st_mode & libc::S_IFMT != libc::S_IFIFO
    };
    let reads_directly = opens.iter().any(is_direct);
    let in_flight_descriptors = descriptors.split_off(own);
    Ok(Captured {
        descriptions,
        descriptors,
        in_flight: in_flight_descriptors,
        held: in_flight.into_held(),
        receives,
        reads_directly,
        ends,
        sharable,
        queues,
        uncopied,
        received,
        rooms,
    })
}

/// Lets the end of this process reset its TCP connections instead of ending them: whoever is at the other end learns at
/// once that this one does not answer any more, and no port stays taken (TIME_WAIT).
pub fn reset_at_end() {
    let tid = subject();
    let Ok(pidfd) = open_pidfd(tid).map(Duplicate) else { return };
    let (mut opens, _) = look_at_all(tid, Moment::Stopped);
    let share = Share::default();
    let in_flight = InFlight::look(&opens, share, |open| duplicate(pidfd.0, open)).unwrap_or_default();
    opens.extend(in_flight.opens().unwrap_or_default());
    tcp::reset_at_end(&Table {
        tid,
        pidfd: pidfd.0,
        moment: Moment::Stopped,
        opens: &opens,
        share,
        rooms: RefCell::default(),
        in_flight: &in_flight,
    });
}

/// A place in the list for a description that is refused, so that the others keep their numbers; it never
/// gets into an image.
fn nothing() -> Description {
    Description {
        flags: 0,
        offset: 0,
        owner: None,
        signal: 0,
        flock: None,
        ofd_locks: Vec::new(),
        lease: None,
        kind: DescriptionKind::Event { count: 0, semaphore: false },
    }
}

/// Whether a running program has closed a descriptor (or opened another in its place) while it was looked at.
fn is_gone(tid: i32, open: &Open) -> bool {
    let now = Directories::open(tid).and_then(|directories| directories.look_at(open.fd));
    now.map_or(true, |now| now.stat.st_ino != open.stat.st_ino || now.link != open.link)
}

/// A pidfd through which the program's table can be reached: the leader's, or where it has ended
/// (pthread_exit(3)) that of another thread (PIDFD_THREAD, Linux 6.9).
pub fn open_pidfd(tid: i32) -> SysResult<Fd> {
    process::pidfd_open(tid, if tid == process::getpid() { 0 } else { process::PIDFD_THREAD })
}

fn look_at_all(tid: i32, moment: Moment) -> (Vec<Open>, Vec<Refusal>) {
    let (mut opens, mut refusals, mut fds) = (Vec::new(), Vec::new(), Vec::new());
    let directories = Directories::open(tid)
        .and_then(|directories| directories.links.numbers(|fd| fds.push(fd)).map(|()| directories));
    let directories = match directories {
        Ok(directories) => directories,
        Err(error) => {
            let reason = format!("/proc/self/task/{tid}/fd cannot be read: {error}");
            refusals.push(refusal(-1, "all", reason, "mount /proc"));
            return (opens, refusals);
        }
    };
    fds.sort_unstable();
    for fd in fds {
        match directories.look_at(fd) {
            Ok(open) => opens.push(open),
            Err(Errno(libc::ENOENT)) if moment == Moment::Running => {}
            Err(Errno(libc::EILSEQ)) => refusals.push(refusal(
                fd,
                "?",
                "its path is not UTF-8, which is not supported".into(),
                "rename the file, or close it before the checkpoint",
            )),
            Err(error) => {
                refusals.push(refusal(fd, "?", format!("/proc does not describe it: {error}"), CLOSE_IT));
            }
        }
    }
    (opens, refusals)
}

/// What /proc shows of a thread's descriptors.
struct Directories {
    tid: i32,
    links: procfs::Directory,
    infos: procfs::Directory,
}

impl Directories {
    fn open(tid: i32) -> SysResult<Self> {
        Ok(Self {
            tid,
            links: procfs::Directory::open(path!("/proc/self/task/{tid}/fd").as_c_str())?,
            infos: procfs::Directory::open(path!("/proc/self/task/{tid}/fdinfo").as_c_str())?,
        })
    }

    /// # Errors
    /// EILSEQ for a path that is not UTF-8.
    fn look_at(&self, fd: i32) -> SysResult<Open> {
        let name = path!("{fd}");
        let mut link = [0u8; 4096];
        let len = self.links.link(name.as_c_str(), &mut link)?;
        let link = core::str::from_utf8(&link[..len]).map_err(|_| Errno(libc::EILSEQ))?;
        let info = self.infos.read(name.as_c_str())?;
        let all = procfs::field(&info, "flags:").and_then(procfs::octal).ok_or(Errno(libc::EINVAL))?;
        let offset = procfs::field(&info, "pos:").and_then(procfs::decimal).unwrap_or(0);
        let cloexec = libc::O_CLOEXEC as u64;
        Ok(Open {
            fd,
            tid: self.tid,
            link: link.into(),
            stat: self.links.stat(name.as_c_str())?,
            flags: (all & !cloexec) as u32,
            close_on_exec: all & cloexec != 0,
            offset,
            info,
        })
    }
}

fn describe(table: &Table<'_>, open: &Open, objects: &mut Objects) -> Result<Description, Refusal> {
    let kind = kind(table, open, objects)?;
    let locks = files::locks(open)?;
    let (owner, signal) = owner(table, open, locks.lease.is_some())?;
    let flags = match open.access() {
        // The access mode 3 exists for ioctl(2) only (open(2)).
        3 if open.flags as i32 & libc::O_PATH == 0 => {
            return open.refuse("it was opened with access mode 3, for ioctl only", CLOSE_IT);
        }
        _ => open.flags,
    };
    Ok(Description {
        flags,
        offset: open.offset,
        owner,
        signal,
        flock: locks.flock,
        ofd_locks: locks.description,
        lease: locks.lease,
        kind,
    })
}

fn kind(table: &Table<'_>, open: &Open, objects: &mut Objects) -> Result<DescriptionKind, Refusal> {
    if open.flags as i32 & libc::O_PATH != 0 {
        return files::location(open);
    }
    // By name first: some kernels say S_IFREG of anonymous inodes.
    if let Some(name) = open.link.strip_prefix("anon_inode:") {
        return match name {
            "[eventfd]" => anonymous::event(open),
            "[timerfd]" => anonymous::timer(table, open),
            "[signalfd]" => anonymous::signal(open),
            "[eventpoll]" => epoll::capture(table, open),
            "inotify" => inotify::capture(table, open),
            "[pidfd]" => pidfds::capture(open),
            other => {
                let (reason, remedy) = anonymous::unsupported(other);
                open.refuse(reason, remedy)
            }
        };
    }
    if open.link.starts_with("pidfd:") {
        return pidfds::capture(open);
    }
    match open.stat.st_mode & libc::S_IFMT {
        libc::S_IFREG if message_queues::is_one(open) => message_queues::capture(table, open),
        libc::S_IFREG => files::regular(table, open, objects),
        libc::S_IFDIR => files::directory(open),
        libc::S_IFCHR => terminals::character_device(table, open),
        libc::S_IFIFO => pipes::capture(table, open),
        libc::S_IFSOCK => sockets::capture(table, open),
        libc::S_IFBLK => open.refuse("it is a block device", CLOSE_IT),
        _ => {
            let (reason, remedy) = anonymous::unsupported(&open.link);
            open.refuse(reason, remedy)
        }
    }
}

/// What stays outside, and is inherited on a standard descriptor; `None` for any other number. Pipes are inherited
/// on any: shells and other starters leave them open by the dozen, and a pipe without a name whose other end is
/// outside can have come from nobody else.
fn inherited(open: &Open) -> Option<DescriptionKind> {
    // The representative of a description is its lowest number.
    (open.fd <= 2 || open.link.starts_with("pipe:"))
        .then(|| DescriptionKind::Inherited { fd: open.fd, what: open.link.clone() })
}

/// F_GETOWN_EX and F_GETSIG. Files and directories send signals for O_ASYNC, leases and dnotify only: they are
/// not duplicated just for this, since closing calls the file system (FUSE, NFS: flush).
fn owner(table: &Table<'_>, open: &Open, leased: bool) -> Result<(Option<(i32, i32)>, i32), Refusal> {
    let is_file = matches!(open.stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR);
    let anonymous = open.link.starts_with("anon_inode:");
    let flags = open.flags as i32;
    let tells_nobody = (is_file || anonymous) && flags & libc::O_ASYNC == 0 && !leased;
    if !table.stopped() || flags & libc::O_PATH != 0 || tells_nobody {
        return Ok((None, 0));
    }
    let duplicate = table.duplicate(open)?;
    const F_GETOWN_EX: i32 = 16;
    const F_GETSIG: i32 = 11;
    let mut owner = [0i32; 2];
    // SAFETY: F_GETOWN_EX fills in struct f_owner_ex, two ints.
    unsafe { file::fcntl_with(duplicate.0, F_GETOWN_EX, &mut owner) }
        .map_err(|error| open.failed("its owner cannot be asked", error))?;
    let signal = file::fcntl(duplicate.0, F_GETSIG, 0).unwrap_or(0) as i32;
    Ok(((owner[1] != 0).then_some((owner[0], owner[1])), signal))
}

/// Bytes of a kernel structure, of a length that the kernel told.
fn bytes(structure: &[u8], len: usize) -> Vec<u8> {
    Vec::from(&structure[..len.min(structure.len())])
}
