//! What a socket of a pair has not read yet, and how full that makes the send buffer of the other end.
//!
//! The kernel charges a sender for the memory that its unread messages take, not for their bytes (SIOCOUTQ tells). A
//! sender waits while that is SO_SNDBUF or more (net/core/sock.c, `sock_alloc_send_pskb`), and POLLOUT stands for a
//! quarter or less (net/unix/af_unix.c, `unix_writable`). How much memory bytes take depends on the pieces that they
//! were sent in, of which a stream keeps no trace: so pieces of one size are looked for that take as much.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use stasis_protocol::image::{Sender, SocketOption};

use super::{
    kernel::done,
    peers::{denied, with_id},
    raw,
    sockets::{End, connected, set_options},
};

/// What one end sent and the other has not read.
pub struct Unread<'a> {
    pub socket_type: i32,
    /// One entry per datagram or packet; for streams one in all, or one for each sender.
    pub messages: &'a [Vec<u8>],
    /// Who sent each of them, where that was asked for.
    pub senders: &'a [Option<Sender>],
    /// The descriptors that come with each of them.
    pub rights: &'a [Vec<RawFd>],
    /// What the sender was charged for it; 0 where that does not matter any more.
    pub charged: usize,
    /// The sender's options, of which it has none yet.
    pub options: &'a [SocketOption],
}

impl Unread<'_> {
    /// Sends it again, without waiting: with a send buffer large enough for all.
    ///
    /// # Errors
    /// send(2)'s, and EAGAIN where the buffer may not become large enough.
    pub fn send(&self, sender: &OwnedFd) -> io::Result<()> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let is_size = |option: &&SocketOption| (option.level, option.name) == SEND_BUFFER;
        if let Some(size) = self.options.iter().find(is_size) {
            set_options(sender, std::slice::from_ref(size))?;
        }
        let before = send_buffer(sender)?;
        // The kernel counts its own bookkeeping of each message, up to a page, as part of what is queued.
        let needed: usize = self.messages.iter().map(|message| message.len() * 2 + 4096).sum();
        let enlarged = needed.max(self.charged) * 2;
        if enlarged > before {
            set_send_buffer(sender, enlarged)?;
        }
        let all: usize = self.messages.iter().map(Vec::len).sum();
        for (number, message) in self.messages.iter().enumerate() {
            let of = self.senders.get(number).copied().flatten();
            let mut rights = self.rights.get(number).map_or(&[][..], Vec::as_slice);
            // What descriptors come with was sent at once, and is not to be received without them.
            let is_divided = rights.is_empty() && self.socket_type == libc::SOCK_STREAM;
            let pieces = if is_divided && self.charged != 0 {
                let share = self.charged as u128 * message.len() as u128 / all.max(1) as u128;
                pieces(message.len(), share as usize, before, send_buffer(sender)?)?
            } else {
                1
            };
            let mut rest = &message[..];
            for length in lengths(message.len(), pieces) {
                let (piece, behind) = rest.split_at(length);
                send_all(sender, piece, of, std::mem::take(&mut rights))?;
                rest = behind;
            }
        }
        if enlarged > before { set_send_buffer(sender, before) } else { Ok(()) }
    }
}

/// The lengths of as many pieces, which differ by one byte at most.
fn lengths(len: usize, pieces: usize) -> impl Iterator<Item = usize> {
    let (length, longer) = (len / pieces, len % pieces);
    (0..pieces).map(move |piece| length + usize::from(piece < longer))
}

/// How many pieces of `len` bytes are charged as near to `charged` as can be, on the same side of what decides
/// whether there is room: in a buffer of `size` bytes, which is `capacity` bytes while they are sent.
fn pieces(len: usize, charged: usize, size: usize, capacity: usize) -> io::Result<usize> {
    let room = |charged: usize| (charged >= size, charged.saturating_mul(4) <= size);
    let mut scale = Scale::new(capacity)?;
    // One piece fits into half of the buffer in any case; the number is bounded: an image is hostile input.
    let least = len / (capacity / 2).max(1) + 1;
    let most = len.min(charged / scale.weigh(1)?.max(1) + 1).min(1 << 16);
    let mut best = (true, usize::MAX, least);
    for pieces in least..=most {
        let (length, longer) = (len / pieces, len % pieces);
        let last = scale.weigh(length)?;
        let all = last * (pieces - longer) + if longer == 0 { 0 } else { scale.weigh(length + 1)? * longer };
        let fits = all - last < capacity;
        let found = (room(all) != room(charged), all.abs_diff(charged), pieces);
        if fits && found < best {
            best = found;
        }
        if best.1 == 0 {
            break;
        }
    }
    Ok(best.2)
}

/// Finds what this kernel charges for a piece, by sending one.
struct Scale {
    ends: (OwnedFd, OwnedFd),
    known: HashMap<usize, usize>,
    bytes: Vec<u8>,
}

impl Scale {
    fn new(capacity: usize) -> io::Result<Self> {
        let ends = connected(libc::SOCK_STREAM, &End::default(), &End::default(), false)?;
        set_send_buffer(&ends.0, capacity)?;
        Ok(Self { ends, known: HashMap::new(), bytes: Vec::new() })
    }

    fn weigh(&mut self, len: usize) -> io::Result<usize> {
        if let Some(&known) = self.known.get(&len) {
            return Ok(known);
        }
        self.bytes.resize(self.bytes.len().max(len), 0);
        let bytes = &mut self.bytes[..len];
        send_all(&self.ends.0, bytes, None, &[])?;
        let charged = charged(&self.ends.0)?;
        let mut left = len;
        while left > 0 {
            // SAFETY: writes at most the slice.
            let count =
                unsafe { libc::recv(raw(&self.ends.1), bytes.as_mut_ptr().cast(), left, libc::MSG_DONTWAIT) };
            left -= usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        }
        self.known.insert(len, charged);
        Ok(charged)
    }
}

/// How much of its send buffer is taken.
fn charged(sender: &OwnedFd) -> io::Result<usize> {
    let mut bytes = 0i32;
    // SAFETY: SIOCOUTQ, which has the number of TIOCOUTQ (asm-generic/sockios.h), writes an int.
    done(unsafe { libc::ioctl(raw(sender), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Sends one message, or one piece of a stream, without waiting.
fn send_all(sender: &OwnedFd, mut rest: &[u8], of: Option<Sender>, mut rights: &[RawFd]) -> io::Result<()> {
    loop {
        let count = send_message(sender, rest, of, &[], std::mem::take(&mut rights))?;
        rest = &rest[count..];
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// sendmsg(2), without waiting, as somebody else; `target`: empty where the socket is connected.
///
/// # Errors
/// sendmsg(2)'s, and PermissionDenied where this process may not be that user.
pub fn send_message(
    socket: &OwnedFd,
    bytes: &[u8],
    of: Option<Sender>,
    target: &[u8],
    rights: &[RawFd],
) -> io::Result<usize> {
    with_id(of.map_or(0, |of| of.pid), || send_here(socket, bytes, of, target, rights))
}

fn send_here(
    socket: &OwnedFd,
    bytes: &[u8],
    of: Option<Sender>,
    target: &[u8],
    rights: &[RawFd],
) -> io::Result<usize> {
    // SAFETY: msghdr is plain data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    let mut beside: Vec<u64> = Vec::new();
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !target.is_empty() {
        message.msg_name = target.as_ptr().cast_mut().cast();
        message.msg_namelen = target.len() as u32;
    }
    if let Some(Sender { uid, gid, .. }) = of {
        // struct ucred. The pid must be a process', and may be another's for the privileged only (unix(7)).
        add(&mut beside, libc::SCM_CREDENTIALS, &[std::process::id(), uid, gid]);
    }
    if !rights.is_empty() {
        let numbers: Vec<u32> = rights.iter().map(|&fd| fd as u32).collect();
        add(&mut beside, libc::SCM_RIGHTS, &numbers);
    }
    message.msg_control = beside.as_mut_ptr().cast();
    message.msg_controllen = beside.len() * 8;
    // SAFETY: reads the message's parts, which outlive the call.
    let count =
        unsafe { libc::sendmsg(raw(socket), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(count).map_err(|_| {
        let error = io::Error::last_os_error();
        match of {
            Some(of) if error.raw_os_error() == Some(libc::EPERM) => denied(of),
            _ => error,
        }
    })
}

/// Adds a struct cmsghdr, with its values, and what pads both to the length of CMSG_SPACE (cmsg(3)).
fn add(beside: &mut Vec<u64>, kind: i32, values: &[u32]) {
    beside.push((size_of::<libc::cmsghdr>() + size_of_val(values)) as u64);
    beside.push(libc::SOL_SOCKET as u64 | (kind as u64) << 32);
    let two = |pair: &[u32]| u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32;
    beside.extend(values.chunks(2).map(two));
}

const SEND_BUFFER: (i32, i32) = (libc::SOL_SOCKET, libc::SO_SNDBUF);

/// Sets SO_SNDBUF as far as the system's limit allows, to what [`send_buffer`] tells then.
///
/// # Errors
/// setsockopt(2)'s.
pub fn set_send_buffer(socket: &OwnedFd, size: usize) -> io::Result<()> {
    let value = i32::try_from(size).unwrap_or(i32::MAX).to_ne_bytes().to_vec();
    set_options(socket, &[SocketOption { level: SEND_BUFFER.0, name: SEND_BUFFER.1, value }])
}

/// SO_SNDBUF, in bytes.
///
/// # Errors
/// getsockopt(2)'s.
pub fn send_buffer(socket: &OwnedFd) -> io::Result<usize> {
    let (mut size, mut len) = (0i32, size_of::<i32>() as u32);
    // SAFETY: writes an int and its length.
    done(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            SEND_BUFFER.0,
            SEND_BUFFER.1,
            (&raw mut size).cast(),
            &raw mut len,
        )
    })?;
    Ok(size.max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that `sizes` put into a pair until it is full, and what they are charged.
    fn sent(sizes: impl Iterator<Item = usize>) -> (Vec<u8>, usize) {
        let ends = connected(libc::SOCK_STREAM, &End::default(), &End::default(), false).unwrap();
        let mut all = Vec::new();
        for (number, size) in sizes.enumerate() {
            let piece: Vec<u8> = (0..size).map(|at| (number * 31 + at) as u8).collect();
            if send_all(&ends.0, &piece, None, &[]).is_err() {
                break;
            }
            all.extend(piece);
        }
        (all, charged(&ends.0).unwrap())
    }

    fn has_room(sender: &OwnedFd) -> bool {
        // SAFETY: reads one byte.
        unsafe { libc::send(raw(sender), c"x".as_ptr().cast(), 1, libc::MSG_DONTWAIT) == 1 }
    }

    #[track_caller]
    fn comes_back(sizes: impl Iterator<Item = usize>, full: bool) {
        let (bytes, before) = sent(sizes);
        let ends = connected(libc::SOCK_STREAM, &End::default(), &End::default(), false).unwrap();
        let size = send_buffer(&ends.0).unwrap();
        assert_eq!(before >= size, full, "the test's own pair: {before} of {size}");
        let messages = [bytes];
        let socket_type = libc::SOCK_STREAM;
        let unread = Unread {
            socket_type,
            messages: &messages,
            senders: &[],
            rights: &[],
            charged: before,
            options: &[],
        };
        unread.send(&ends.0).unwrap();
        let after = charged(&ends.0).unwrap();
        assert_eq!(send_buffer(&ends.0).unwrap(), size);
        assert!(after.abs_diff(before) <= before / 32, "{before} were charged, {after} are");
        assert_eq!(has_room(&ends.0), !full, "{before} of {size} before, {after} now");
        let mut read = vec![0; messages[0].len()];
        // SAFETY: writes at most the buffer.
        let count = unsafe { libc::recv(raw(&ends.1), read.as_mut_ptr().cast(), read.len(), 0) };
        assert_eq!((count as usize, &read), (read.len(), &messages[0]));
    }

    #[test]
    fn a_full_buffer_is_full_again_whatever_it_was_filled_by() {
        comes_back(std::iter::repeat(4096), true);
        comes_back(std::iter::repeat(1), true);
        comes_back(std::iter::repeat(100_000), true);
        comes_back((0..).map(|number| number * 2711 % 5003 + 1), true);
        comes_back((0..).map(|number| if number % 3 == 0 { 30_000 } else { 10 }), true);
    }

    #[test]
    fn a_buffer_with_room_has_room_again() {
        comes_back(std::iter::repeat_n(4096, 20), false);
        comes_back(std::iter::once(7), false);
        comes_back((0..100).map(|number| number + 1), false);
    }
}
