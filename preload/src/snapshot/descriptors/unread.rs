//! What unix sockets have not read yet, and who sent it where they ask for that (SO_PASSCRED).

use alloc::{format, vec, vec::Vec};

use stasis_protocol::{coordinator::Refusal, image::Sender};
use stasis_sys::{
    Errno,
    file::Fd,
    socket::{self, Beside},
    sync,
};

use super::{Duplicate, Open, in_flight::Rights, refusal, sockets::WAIT, tcp};

/// What a socket has not read. All three go together.
#[derive(Default)]
pub struct Unread {
    pub messages: Vec<Vec<u8>>,
    /// Whom they are of; nobody where the socket does not ask.
    pub senders: Vec<Option<Sender>>,
    /// The descriptors that come with each (SCM_RIGHTS).
    pub rights: Vec<Rights>,
}

impl Unread {
    fn push(&mut self, message: Vec<u8>, sender: Option<Sender>, rights: Rights) {
        self.messages.push(message);
        self.senders.push(sender);
        self.rights.push(rights);
    }
}

/// Who sent a message; `None` where the kernel has not noted it, since nobody asked at that time.
pub fn sender(beside: &Beside) -> Option<Sender> {
    let [pid, uid, gid] = beside.credentials?;
    (pid != 0 || uid != NOBODY).then_some(Sender { pid: pid as i32, uid, gid })
}

/// What the kernel says instead of no user (kernel.overflowuid).
const NOBODY: u32 = 65534;

/// What a unix socket has not read yet, by peeking from offset to offset (socket(7), SO_PEEK_OFF). The program's own
/// offset is put back.
pub fn received(open: &Open, kind: i32, socket: Fd) -> Result<Unread, Refusal> {
    let unreadable = |error: Errno| refusal(open.fd, &open.link, format!("{UNREADABLE}: {error}"), WAIT);
    let ready = sync::poll(socket, libc::POLLIN, 0).map_err(unreadable)?;
    let unread = tcp::unread(socket);
    // All but streams tell an error that waits before what was sent, and tell it once: a look would take it away.
    if ready & libc::POLLERR != 0 && kind != libc::SOCK_STREAM {
        let waits = if kind == libc::SOCK_DGRAM { ready & libc::POLLIN != 0 } else { unread > 0 };
        return if waits {
            open.refuse("messages wait in it behind an error", WAIT)
        } else {
            Ok(Unread::default())
        };
    }
    let set = |value| socket::set_number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value);
    let own = socket::number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    set(0).map_err(unreadable)?;
    let all = match kind {
        libc::SOCK_STREAM => peek_stream(socket, unread, set),
        kind => peek_messages(socket, (kind == libc::SOCK_SEQPACKET).then_some(unread), set),
    };
    set(own).map_err(unreadable)?;
    all.map_err(unreadable)
}

const UNREADABLE: &str = "what it has received cannot be read";

/// The largest message that a socket accepts is bounded by its send buffer; twice net.core.wmem_max's default
/// is far below this, in bytes.
pub const LARGEST: usize = 4 << 20;

/// As many bytes as there are: behind them is an error that waits for the program (ECONNRESET), and a look would take it.
/// Where the socket asks whom they are of, what several have sent comes in pieces; and a piece ends with the bytes that
/// descriptors come with (net/unix/af_unix.c, `unix_stream_read_generic`).
fn peek_stream(
    socket: Fd,
    unread: usize,
    set_offset: impl Fn(i32) -> Result<(), Errno>,
) -> Result<Unread, Errno> {
    let mut all = Unread::default();
    let mut buffer = vec![0; unread];
    let (mut done, mut ended) = (0, false);
    while done < unread {
        let mut rights = Rights::new();
        match socket::peek_beside(socket, &mut buffer[done..], 0, |fd| rights.push(Duplicate(fd))) {
            Ok((0, _)) | Err(Errno(libc::EAGAIN)) => return Err(Errno(libc::EIO)),
            Ok((len, beside)) => {
                let sender = sender(&beside);
                let mut without = len;
                if !rights.is_empty() {
                    set_offset(done as i32)?;
                    without = socket::last_sent_at(socket, &mut buffer[done..done + len])?;
                    set_offset((done + len) as i32)?;
                }
                let (before, behind) = buffer[done..done + len].split_at(without);
                match all.messages.last_mut() {
                    _ if before.is_empty() => {}
                    Some(last) if !ended && all.senders.last() == Some(&sender) => {
                        last.extend_from_slice(before);
                    }
                    _ => all.push(before.into(), sender, Rights::new()),
                }
                ended = !behind.is_empty();
                if ended {
                    all.push(behind.into(), sender, rights);
                }
                done += len;
            }
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// `unread`: how many bytes there are, where that is known (SOCK_SEQPACKET).
fn peek_messages(
    socket: Fd,
    unread: Option<usize>,
    set_offset: impl Fn(i32) -> Result<(), Errno>,
) -> Result<Unread, Errno> {
    let mut all = Unread::default();
    let mut done = 0;
    let mut size = 64 << 10;
    loop {
        let mut buffer = vec![0; size];
        let mut rights = Rights::new();
        match socket::peek_beside(socket, &mut buffer, libc::MSG_TRUNC, |fd| rights.push(Duplicate(fd))) {
            // At the end of a connection zero comes for ever; before all bytes have come it is a message without content.
            Ok((0, _))
                if unread.is_some_and(|unread| done >= unread)
                    && sync::poll(socket, libc::POLLRDHUP, 0)? & (libc::POLLRDHUP | libc::POLLHUP) != 0 =>
            {
                return Ok(all);
            }
            Ok((len, _)) if len > LARGEST => return Err(Errno(libc::EMSGSIZE)),
            // The offset has moved on by what was read. Not from the start: messages without content are shown once.
            Ok((len, _)) if len > size => {
                size = len;
                set_offset(done as i32)?;
            }
            Ok((len, beside)) => {
                buffer.truncate(len);
                done += len;
                all.push(buffer, sender(&beside), rights);
            }
            Err(Errno(libc::EAGAIN)) => return Ok(all),
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}
