//! Calls that ended with a short count because of the stop signal: the rest is done.
//!
//! A blocking write to a pipe, a socket or a terminal tells how much it wrote when a handler runs in the
//! middle, SA_RESTART or not (write(2)). Programs take a short count for an error, or for the end.

use stasis_sys::{file, socket, terminal::Termios};

use super::{arrays, call::Call};
use crate::wrappers::table::{Part, SYS_IO_PGETEVENTS};

/// Stands for all that was asked for.
const ALL: u64 = u64::MAX;

/// How much a call that gave `done`, less than asked for, was to give in all, if it was cut short by a signal: where it would
/// have slept for more.
pub fn goal(nr: i64, arguments: &[u64; 6], done: u64) -> Option<u64> {
    let fd = arguments[0] as i32;
    let kind = || file::fstat(fd).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    let sleeps = || matches!(kind(), libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR) && blocks(fd);
    // Those that are given an offset fail on what sleeps, and else do all.
    let at_position = || arguments[3] as i64 == -1 && arguments[5] as i32 & libc::RWF_NOWAIT == 0;
    match nr {
        libc::SYS_write | libc::SYS_writev => sleeps().then_some(ALL),
        libc::SYS_pwritev2 => (at_position() && sleeps()).then_some(ALL),
        // To a pipe it never waits for more than one pipeful (fs/splice.c).
        libc::SYS_sendfile => (kind() == libc::S_IFSOCK && blocks(fd)).then_some(ALL),
        libc::SYS_sendto => (arguments[3] as i32 & libc::MSG_DONTWAIT == 0 && blocks(fd)).then_some(ALL),
        libc::SYS_sendmsg => (arguments[2] as i32 & libc::MSG_DONTWAIT == 0 && blocks(fd)).then_some(ALL),
        libc::SYS_sendmmsg => {
            let waits = arguments[3] as i32 & libc::MSG_DONTWAIT == 0 && blocks(fd);
            (waits && done < arguments[2] && last_is_whole(arguments, done)).then_some(ALL)
        }
        libc::SYS_recvfrom => received(fd, arguments[3] as i32),
        libc::SYS_recvmsg => received(fd, arguments[2] as i32).filter(|_| !brought_descriptors(arguments)),
        libc::SYS_read | libc::SYS_readv => read(fd),
        libc::SYS_preadv2 if at_position() => read(fd),
        libc::SYS_getrandom => Some(ALL),
        libc::SYS_io_getevents | SYS_IO_PGETEVENTS => Some(arguments[1]),
        _ => None,
    }
}

/// How much a call that receives waits for.
fn received(fd: i32, flags: i32) -> Option<u64> {
    let is_stream = || socket::number_option(fd, libc::SOL_SOCKET, libc::SO_TYPE) == Ok(libc::SOCK_STREAM);
    if flags & (libc::MSG_DONTWAIT | libc::MSG_PEEK) != 0 || !blocks(fd) || !is_stream() {
        return None;
    }
    if flags & libc::MSG_WAITALL != 0 {
        return Some(ALL);
    }
    socket::number_option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT).ok().map(|least| least as u64)
}

fn read(fd: i32) -> Option<u64> {
    let stat = file::fstat(fd).ok()?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFSOCK => received(fd, 0),
        // What never ends but takes its time: zero, random, urandom (drivers/char/mem.c, random.c).
        libc::S_IFCHR if libc::major(stat.st_rdev) == 1 => {
            matches!(libc::minor(stat.st_rdev), 5 | 8 | 9).then_some(ALL)
        }
        libc::S_IFCHR => terminal_minimum(fd),
        _ => None,
    }
}

/// VMIN, where a terminal waits for so much: not for lines, nor for a time between two characters.
fn terminal_minimum(fd: i32) -> Option<u64> {
    let modes = Termios::get(fd).ok()?;
    let waits = modes.local & libc::ICANON == 0 && modes.characters[libc::VTIME] == 0 && blocks(fd);
    waits.then(|| modes.characters[libc::VMIN].into())
}

/// Whether descriptors came with what recvmsg(2) gave, behind which it reads no further (unix(7), SCM_RIGHTS).
fn brought_descriptors(arguments: &[u64; 6]) -> bool {
    // SAFETY: the header that the kernel has just read and written.
    let header = unsafe { (arguments[1] as *const libc::msghdr).read_unaligned() };
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return true;
    }
    // SAFETY: as above; the kernel has filled in so much of the buffer.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header).as_ref() };
    while let Some(message) = next {
        if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            return true;
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, message).as_ref() };
    }
    false
}

/// Whether the last of `done` messages was sent or received to its end.
fn last_is_whole(arguments: &[u64; 6], done: u64) -> bool {
    let Some(index) = done.checked_sub(1) else { return true };
    // SAFETY: one of the messages that the kernel has just filled in, and its array.
    let (len, given) = unsafe {
        let last = (arguments[1] as *const libc::mmsghdr).add(index as usize).read_unaligned();
        (last.msg_len, array(last.msg_hdr.msg_iov as u64, last.msg_hdr.msg_iovlen as u64))
    };
    given.iter().fold(0u64, |sum, [_, len]| sum.saturating_add(*len)) == u64::from(len)
}

fn blocks(fd: i32) -> bool {
    file::fcntl(fd, libc::F_GETFL, 0).is_ok_and(|flags| flags as i32 & libc::O_NONBLOCK == 0)
}

/// Whether a signal ended recvmmsg(2) after `done` messages.
///
/// What does is told to the next call on the socket (net/socket.c, `do_recvmmsg`): ours would be an error that no
/// program knows, or EINTR where there is SO_RCVTIMEO. It is taken away here, and so before anybody looks into the
/// socket for the checkpoint.
pub fn ended_between_messages(arguments: &[u64; 6], done: u64) -> bool {
    const ERESTARTSYS: i32 = 512;
    let fd = arguments[0] as i32;
    let flags = arguments[3] as i32;
    let is_dropped = || {
        socket::number_option(fd, libc::SOL_SOCKET, libc::SO_ERROR)
            .is_ok_and(|error| matches!(error, ERESTARTSYS | libc::EINTR))
    };
    flags & (libc::MSG_DONTWAIT | libc::MSG_WAITFORONE) == 0
        && done < arguments[2]
        && blocks(fd)
        && is_dropped()
        && (flags & libc::MSG_WAITALL == 0 || last_is_whole(arguments, done))
}

/// An array of iovec of the program's.
///
/// # Safety
/// The kernel has just read it.
unsafe fn array<'a>(address: u64, count: u64) -> &'a [[u64; 2]] {
    let count = (count as usize).min(arrays::LONGEST);
    if address == 0 || count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise; at most UIO_MAXIOV entries are read.
    unsafe { core::slice::from_raw_parts(address as *const [u64; 2], count) }
}

/// The rest of a call.
pub struct Rest<'a> {
    arguments: [u64; 6],
    vectors: Option<Vectors<'a>>,
}

/// What is left of an array of iovec.
struct Vectors<'a> {
    left: &'a [[u64; 2]],
    /// How much of the first one is done, and how much of all is to be done.
    skip: u64,
    len: u64,
    at: At,
    /// Where there is more than a record holds.
    room: Option<arrays::Room>,
}

/// Who points to the array.
enum At {
    Argument(usize),
    /// A struct msghdr, to which an argument points.
    Header(usize, libc::msghdr),
}

impl Rest<'_> {
    /// The arguments, once all that they point to is in `call`.
    pub fn place(self, call: &mut Call) -> [u64; 6] {
        let mut arguments = self.arguments;
        let Some(Vectors { left, skip, len, at, room }) = self.vectors else { return arguments };
        let fill = |vectors: &mut [[u64; 2]]| {
            let (mut skip, mut len) = (skip, len);
            for (to, [address, part]) in vectors.iter_mut().zip(left) {
                *to = [address + skip, (part - skip).min(len)];
                len -= to[1];
                skip = 0;
            }
        };
        let vectors = match room {
            Some(room) => room.keep_for(call, |array| fill(array)).cast::<[u64; 2]>(),
            None => {
                // What is left may lie in the record itself.
                let mut vectors = [[0; 2]; Call::VECTORS];
                fill(&mut vectors);
                call.vectors.write(vectors).as_mut_ptr()
            }
        };
        match at {
            At::Argument(position) => arguments[position] = vectors as u64,
            At::Header(position, header) => {
                let header = libc::msghdr { msg_iov: vectors.cast(), msg_iovlen: left.len(), ..header };
                arguments[position] = &raw const *call.header.write(header) as u64;
            }
        }
        arguments
    }

    /// Where it cannot be done.
    pub fn give_up(self) {
        if let Some(room) = self.vectors.and_then(|vectors| vectors.room) {
            room.give_back();
        }
    }
}

/// The rest of a call that has done `done` of what `arguments` ask for, up to `goal`; `None` when it has done all, or there
/// is no room for what is left.
pub fn rest<'a>(part: Part, arguments: &[u64; 6], done: u64, goal: u64) -> Option<Rest<'a>> {
    let mut rest = Rest { arguments: *arguments, vectors: None };
    let less = |len: u64| len.min(goal).checked_sub(done).filter(|&left| left != 0);
    match part {
        Part::None => return None,
        Part::Bytes { buffer, len } => {
            rest.arguments[len] = less(arguments[len])?;
            rest.arguments[buffer] += done;
        }
        Part::Messages { messages, count } => {
            rest.arguments[count] = less(arguments[count])?;
            rest.arguments[messages] += done * size_of::<libc::mmsghdr>() as u64;
        }
        Part::Events { least, most, events } => {
            rest.arguments[least] = less(arguments[least])?;
            rest.arguments[most] -= done;
            /// struct io_event (linux/aio_abi.h).
            const EVENT: u64 = 32;
            rest.arguments[events] += done * EVENT;
        }
        Part::Count { len } => rest.arguments[len] = less(arguments[len])?,
        Part::Vectors { vectors, count } => {
            // SAFETY: the call's array.
            let given = unsafe { array(arguments[vectors], arguments[count]) };
            let vectors = self::vectors(given, done, goal, At::Argument(vectors))?;
            rest.arguments[count] = vectors.left.len() as u64;
            rest.vectors = Some(vectors);
        }
        Part::Header { header: position, flags } => {
            // SAFETY: the header that the kernel has just read, and its array.
            let (given, header) = unsafe {
                let header = (arguments[position] as *const libc::msghdr).read_unaligned();
                (array(header.msg_iov as u64, header.msg_iovlen as u64), header)
            };
            // What goes beside the bytes went with the first part; a connection is there.
            let null = core::ptr::null_mut();
            let header = libc::msghdr {
                msg_name: null,
                msg_namelen: 0,
                msg_control: null,
                msg_controllen: 0,
                ..header
            };
            rest.arguments[flags] &= !(libc::MSG_FASTOPEN as u64);
            rest.vectors = Some(self::vectors(given, done, goal, At::Header(position, header))?);
        }
    }
    Some(rest)
}

fn vectors(given: &[[u64; 2]], done: u64, goal: u64, at: At) -> Option<Vectors<'_>> {
    let all = given.iter().fold(0u64, |sum, [_, len]| sum.saturating_add(*len));
    let len = all.min(goal).checked_sub(done).filter(|&left| left != 0)?;
    let (mut skip, mut left) = (done, given);
    while let [[_, len], behind @ ..] = left
        && *len <= skip
    {
        skip -= len;
        left = behind;
    }
    let room = if left.len() > Call::VECTORS { Some(arrays::Room::claim()?) } else { None };
    Some(Vectors { left, skip, len, at, room })
}
