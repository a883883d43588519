//! What unix sockets have not read yet, and who sent it where they ask for that (SO_PASSCRED).

use alloc::{format, vec, vec::Vec};

use stasis_protocol::{coordinator::Refusal, image::Sender};
use stasis_sys::{
    Errno,
    file::Fd,
    socket::{self, Beside},
    sync,
};

use super::{
    Open, refusal,
    sockets::{Asked, WAIT},
    tcp,
};

/// Messages, and whom they are of: nothing where nobody asks.
pub type Unread = (Vec<Vec<u8>>, Vec<Option<Sender>>);

/// Who sent a message; `None` where the kernel has not noted it, since nobody asked at that time.
pub fn sender(beside: &Beside) -> Option<Sender> {
    let [pid, uid, gid] = beside.credentials?;
    (pid != 0 || uid != NOBODY).then_some(Sender { uid, gid })
}

/// What the kernel says instead of no user (kernel.overflowuid).
const NOBODY: u32 = 65534;

/// What a unix socket has not read yet, by peeking from offset to offset (socket(7), SO_PEEK_OFF). The program's own
/// offset is put back.
pub fn received(open: &Open, asked: &Asked) -> Result<Unread, Refusal> {
    let socket = asked.socket.0;
    let unreadable = |error: Errno| refusal(open.fd, &open.link, format!("{UNREADABLE}: {error}"), WAIT);
    let ready = sync::poll(socket, libc::POLLIN, 0).map_err(unreadable)?;
    let unread = tcp::unread(socket);
    // All but streams tell an error that waits before what was sent, and tell it once: a look would take it away.
    if ready & libc::POLLERR != 0 && asked.kind != libc::SOCK_STREAM {
        let waits = if asked.kind == libc::SOCK_DGRAM { ready & libc::POLLIN != 0 } else { unread > 0 };
        return if waits {
            open.refuse("messages wait in it behind an error", WAIT)
        } else {
            Ok(Unread::default())
        };
    }
    let set = |value| socket::set_number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value);
    let own = socket::number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    set(0).map_err(unreadable)?;
    let all = match asked.kind {
        libc::SOCK_STREAM => peek_stream(socket, unread),
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
/// Where the socket asks whom they are of, what several have sent comes in pieces.
fn peek_stream(socket: Fd, unread: usize) -> Result<Unread, Errno> {
    let (mut all, mut senders): Unread = Default::default();
    let mut buffer = vec![0; unread];
    let mut done = 0;
    while done < unread {
        match socket::peek_beside(socket, &mut buffer[done..], 0) {
            Ok((0, _)) | Err(Errno(libc::EAGAIN)) => return Err(Errno(libc::EIO)),
            Ok((len, beside)) => {
                let (piece, sender) = (&buffer[done..done + len], sender(&beside));
                match all.last_mut() {
                    Some(last) if senders.last() == Some(&sender) => last.extend_from_slice(piece),
                    _ => {
                        all.push(Vec::from(piece));
                        senders.push(sender);
                    }
                }
                done += len;
            }
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((all, senders))
}

/// `unread`: how many bytes there are, where that is known (SOCK_SEQPACKET).
fn peek_messages(
    socket: Fd,
    unread: Option<usize>,
    set_offset: impl Fn(i32) -> Result<(), Errno>,
) -> Result<Unread, Errno> {
    let (mut all, mut senders): Unread = Default::default();
    let mut done = 0;
    let mut size = 64 << 10;
    loop {
        let mut buffer = vec![0; size];
        match socket::peek_beside(socket, &mut buffer, libc::MSG_TRUNC) {
            // At the end of a connection zero comes for ever; before all bytes have come it is a message without content.
            Ok((0, _))
                if unread.is_some_and(|unread| done >= unread)
                    && sync::poll(socket, libc::POLLRDHUP, 0)? & (libc::POLLRDHUP | libc::POLLHUP) != 0 =>
            {
                return Ok((all, senders));
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
                all.push(buffer);
                senders.push(sender(&beside));
            }
            Err(Errno(libc::EAGAIN)) => return Ok((all, senders)),
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}
