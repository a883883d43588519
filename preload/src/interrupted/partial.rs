//! Calls that ended with a short count because of the stop signal: the rest is done.
//!
//! A blocking write to a pipe, a socket or a terminal tells how much it wrote when a handler runs in the
//! middle, SA_RESTART or not (write(2)). Programs take a short count for an error, or for the end.

use stasis_sys::{file, socket};

use super::call::Call;
use crate::wrappers::table::Part;

/// Whether the call, having given less than asked for, was cut short by a signal: where it would have
/// slept for the rest.
pub fn was_cut_short(nr: i64, arguments: &[u64; 6]) -> bool {
    let fd = arguments[0] as i32;
    let kind = || file::fstat(fd).map_or((0, 0), |stat| (stat.st_mode & libc::S_IFMT, stat.st_rdev));
    let blocks = || blocks(fd);
    let sleeps = || matches!(kind().0, libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR) && blocks();
    let flags = arguments[3] as i32;
    match nr {
        libc::SYS_write | libc::SYS_writev => sleeps(),
        // To a pipe it never waits for more than one pipeful (fs/splice.c).
        libc::SYS_sendfile => kind().0 == libc::S_IFSOCK && blocks(),
        libc::SYS_sendto => flags & libc::MSG_DONTWAIT == 0 && blocks(),
        libc::SYS_recvfrom => {
            flags & (libc::MSG_DONTWAIT | libc::MSG_PEEK | libc::MSG_WAITALL) == libc::MSG_WAITALL && blocks()
        }
        libc::SYS_getrandom => true,
        // What never ends but takes its time: zero, random, urandom (drivers/char/mem.c, random.c).
        libc::SYS_read => {
            let (kind, device) = kind();
            kind == libc::S_IFCHR && libc::major(device) == 1 && matches!(libc::minor(device), 5 | 8 | 9)
        }
        _ => false,
    }
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
    let never = libc::MSG_DONTWAIT | libc::MSG_WAITFORONE | libc::MSG_WAITALL;
    arguments[3] as i32 & never == 0
        && done < arguments[2]
        && blocks(fd)
        && socket::number_option(fd, libc::SOL_SOCKET, libc::SO_ERROR)
            .is_ok_and(|error| matches!(error, ERESTARTSYS | libc::EINTR))
}

/// The rest of a call: its arguments, and its array of iovec if it has one.
pub struct Rest {
    arguments: [u64; 6],
    vectors: [[u64; 2]; Call::VECTORS],
    /// The argument that is to point to `vectors`.
    at: Option<usize>,
}

impl Rest {
    /// The arguments, once all that they point to is in `call`.
    pub fn place(mut self, call: &mut Call) -> [u64; 6] {
        if let Some(at) = self.at {
            self.arguments[at] = call.vectors.write(self.vectors).as_ptr() as u64;
        }
        self.arguments
    }
}

/// The rest of a call that has done `done` of what `arguments` ask for; `None` when it has done all, or
/// the rest is an array too long for [`Call::VECTORS`].
pub fn rest(part: Part, arguments: &[u64; 6], done: u64) -> Option<Rest> {
    let mut rest = Rest { arguments: *arguments, vectors: [[0; 2]; Call::VECTORS], at: None };
    let less = |len: u64| len.checked_sub(done).filter(|&left| left != 0);
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
        Part::Count { len } => rest.arguments[len] = less(arguments[len])?,
        Part::Vectors { vectors, count } => {
            // SAFETY: the array that the kernel has just read (at most UIO_MAXIOV, 1024, entries).
            let given = unsafe {
                core::slice::from_raw_parts(arguments[vectors] as *const [u64; 2], arguments[count] as usize)
            };
            let (mut skip, mut left) = (done, given);
            while let [[_, len], behind @ ..] = left
                && *len <= skip
            {
                skip -= len;
                left = behind;
            }
            if left.is_empty() {
                return None;
            }
            rest.vectors.get_mut(..left.len())?.copy_from_slice(left);
            let [address, len] = &mut rest.vectors[0];
            (*address, *len) = (*address + skip, *len - skip);
            rest.arguments[count] = left.len() as u64;
            rest.at = Some(vectors);
        }
    }
    Some(rest)
}
