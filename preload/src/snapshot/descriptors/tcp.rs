//! TCP: connections with what was not read yet, and listening sockets with what waits in them.
//!
//! What is on its way through a connection belongs to its receiver. All processes of the computation stand still, so the
//! receiver waits until its peer's kernel has nothing left that was not acknowledged, as sock_diag(7) tells; where its
//! receive buffer is full, that is made larger for the while. Then everything is in the receive queue, and is peeked at:
//! nothing is taken from a connection that goes on.

use alloc::{format, vec, vec::Vec};

use stasis_protocol::{
    coordinator::{End, Refusal},
    image::{DescriptionKind, checksum},
};
use stasis_sys::{
    Errno,
    file::{self, Fd},
    process, socket, sync,
};

use super::{
    Duplicate, Open, Table,
    address::Address,
    ends, inet_diag, open_pidfd,
    options::options,
    refusal,
    sockets::{Asked, URGENT, WAIT, bound, fresh, name},
};
use crate::{procfs, snapshot::subject, state};

/// States (net/tcp_states.h).
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

/// linux/sockios.h.
const SIOCOUTQNSD: u64 = 0x894b;

/// What TCP_INFO tells.
struct Told {
    state: u8,
    /// Of a listening socket: how many connections wait in it to be accepted, and its backlog.
    waiting: u32,
    backlog: u32,
    /// It has tried to connect, and never was connected.
    failed: bool,
}

fn ask(open: &Open, socket: Fd) -> Result<Told, Refusal> {
    // struct tcp_info (linux/tcp.h): eight bytes of flags, the state first. For a listening socket tcpi_unacked (at 24) is the
    // number of connections not accepted yet, tcpi_sacked (at 28) the backlog. tcpi_rcv_mss (at 20) is guessed when a
    // connection is asked for (`tcp_connect_init`), tcpi_rcv_space (at 96) set when it is made (`tcp_init_buffer_space`).
    let mut info = [0u8; 100];
    socket::option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)
        .map_err(|error| open.failed("it does not answer TCP_INFO", error))?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    Ok(Told {
        state: info[0],
        waiting: word(24),
        backlog: word(28),
        failed: info[0] == CLOSE && word(20) != 0 && word(96) == 0,
    })
}

pub fn capture(table: &Table<'_>, open: &Open, asked: &Asked) -> Result<DescriptionKind, Refusal> {
    let Told { state, waiting, backlog, failed } = ask(open, asked.socket.0)?;
    let local = bound(name(asked, false));
    let is_multipath = asked.protocol == libc::IPPROTO_MPTCP;
    if is_multipath && (state != LISTEN && state != CLOSE || waiting > 0) {
        return open.refuse(
            "it is a connection of Multipath TCP, or such wait in it to be accepted",
            "let the program use TCP (Go: GODEBUG=multipathtcp=0)",
        );
    }
    match state {
        LISTEN => {
            let waiting = if waiting > 0 { not_accepted(table, open, &local, waiting)? } else { Vec::new() };
            let keys = waiting.iter().map(|end| key(&end.local, &end.peer)).collect();
            Ok(fresh(asked, local, None, Vec::new(), Some(backlog as i32), keys, Vec::new()))
        }
        SYN_SENT => connecting(open, asked, local),
        SYN_RECV => {
            open.refuse("it is being connected", "take the checkpoint when that has succeeded or failed")
        }
        CLOSE | LAST_ACK | CLOSING => {
            let events = ready(open, asked, libc::POLLRDHUP)?;
            if is_multipath || events & libc::POLLRDHUP == 0 {
                Ok(fresh(asked, local, None, Vec::new(), None, Vec::new(), Vec::new()))
            } else if failed {
                let mut kind = fresh(asked, local, None, Vec::new(), None, Vec::new(), Vec::new());
                if let DescriptionKind::Socket { refused, .. } = &mut kind {
                    *refused = Some(events & libc::POLLERR != 0);
                }
                Ok(kind)
            } else {
                ended(table, open, asked, local)
            }
        }
        _ => connection(table, open, asked, state),
    }
}

fn ready(open: &Open, asked: &Asked, events: i16) -> Result<i16, Refusal> {
    sync::poll(asked.socket.0, events, 0).map_err(|error| open.failed("it cannot be polled", error))
}

/// One that the other end has not answered yet: it is connected anew by a restart.
fn connecting(open: &Open, asked: &Asked, local: Vec<u8>) -> Result<DescriptionKind, Refusal> {
    let port = Address::parse(&local).map_or(0, |at| at.port);
    let end = inet_diag::connecting(port, open.stat.st_ino)
        .map_err(|error| open.failed("sock_diag does not tell what it is being connected to", error))?;
    let peer = end.peer.sockaddr(asked.domain, end.interface);
    Ok(fresh(asked, local, None, peer, None, Vec::new(), Vec::new()))
}

/// A connection that both ends have ended, or that was reset: what was not read of it is left.
fn ended(table: &Table<'_>, open: &Open, asked: &Asked, local: Vec<u8>) -> Result<DescriptionKind, Refusal> {
    Ok(DescriptionKind::SocketPair {
        pair: open.stat.st_ino,
        other_closed: true,
        reset: ready(open, asked, 0)? & libc::POLLERR != 0,
        domain: asked.domain,
        local,
        peer: Vec::new(),
        socket_type: asked.kind,
        received: if table.copies_queue(open) { received(open, asked)? } else { Vec::new() },
        senders: Vec::new(),
        rights: Vec::new(),
        charged: 0,
        shutdown_read: false,
        shutdown_write: true,
        peer_is: None,
        file: None,
        options: options(asked),
    })
}

fn connection(table: &Table<'_>, open: &Open, asked: &Asked, state: u8) -> Result<DescriptionKind, Refusal> {
    let (local, peer) = (name(asked, false), name(asked, true));
    let (Some(here), Some(there)) = (Address::parse(&local), Address::parse(&peer)) else {
        return open.refuse("its addresses are not known", "take another checkpoint");
    };
    if here == there {
        return open
            .refuse("it is connected to itself", "let the program close it, or use two sockets for that");
    }
    let other = match inet_diag::find(&there, &here) {
        Ok(end) => Some(end),
        Err(Errno(libc::ENOENT)) => None,
        Err(error) => return Err(open.failed("sock_diag does not tell its other end", error)),
    };
    let has_ended = state == CLOSE_WAIT;
    let other_closed = match &other {
        // Closed, and kept by the kernel until all is sent and acknowledged.
        Some(end) => has_ended && end.inode == 0 && ![ESTABLISHED, CLOSE_WAIT].contains(&end.state),
        None => has_ended && there.is_near(&here),
    };
    if table.stopped()
        && let Some(end) = &other
    {
        arrived(table, open, asked, end)?;
    }
    let down = ready(open, asked, libc::POLLRDHUP)? & libc::POLLRDHUP != 0;
    Ok(DescriptionKind::SocketPair {
        pair: key(&here, &there),
        other_closed,
        reset: false,
        domain: asked.domain,
        local,
        peer,
        socket_type: asked.kind,
        received: if table.copies_queue(open) { received(open, asked)? } else { Vec::new() },
        senders: Vec::new(),
        rights: Vec::new(),
        charged: 0,
        // The end of the stream, which comes by itself, looks the same.
        shutdown_read: down && !has_ended,
        shutdown_write: [FIN_WAIT1, FIN_WAIT2].contains(&state),
        peer_is: None,
        file: None,
        options: options(asked),
    })
}

/// Names a connection: the same at both ends.
fn key(one: &Address, other: &Address) -> u64 {
    let mut both = one.min(other).bytes();
    both.extend(one.max(other).bytes());
    checksum(&both)
}

/// Which of the two ends one is.
pub fn side(local: &[u8], peer: &[u8]) -> bool {
    Address::parse(local) < Address::parse(peer)
}

/// The connections that wait to be accepted, the first to be accepted first.
fn not_accepted(
    table: &Table<'_>,
    open: &Open,
    local: &[u8],
    count: u32,
) -> Result<Vec<inet_diag::End>, Refusal> {
    /// Where one has waited for so long, the program is not about to accept it.
    const LONG_MS: u32 = 20;
    let accept = "take the checkpoint when the program has accepted them";
    let Some(at) = Address::parse(local) else { return open.refuse("its address is not known", accept) };
    // How long they have waited is counted from when each is told of: a tick between two would turn their order.
    const TRIES: usize = 8;
    let mut found = Vec::new();
    for _ in 0..TRIES {
        let before = sync::clock_ns(libc::CLOCK_MONOTONIC_COARSE);
        found = inet_diag::not_accepted(at.port)
            .map_err(|error| open.failed("sock_diag does not tell what waits in it to be accepted", error))?;
        if sync::clock_ns(libc::CLOCK_MONOTONIC_COARSE) == before {
            break;
        }
    }
    found.retain(|end| at.is_any() || end.local.ip == at.ip);
    // A program that runs accepts some while they are counted.
    if table.stopped() && found.len() != count as usize {
        return open.refuse(
            &format!(
                "{count} connections wait in it to be accepted, and the kernel tells of {}",
                found.len()
            ),
            accept,
        );
    }
    let stands = |end: &&inet_diag::End| end.unread > 0 && (table.stopped() || end.idle_ms >= LONG_MS);
    if let Some(end) = found.iter().find(stands) {
        return open.refuse(
            &format!(
                "{} bytes wait in a connection that was not accepted yet, from port {}",
                end.unread, end.peer.port
            ),
            accept,
        );
    }
    // Those of one millisecond came from where sockets are made in the order of their inodes.
    let client =
        |end: &inet_diag::End| inet_diag::find(&end.peer, &end.local).map_or(0, |client| client.inode);
    let mut ordered: Vec<_> =
        found.into_iter().map(|end| ((core::cmp::Reverse(end.idle_ms), client(&end)), end)).collect();
    ordered.sort_by_key(|(order, _)| *order);
    Ok(ordered.into_iter().map(|(_, end)| end).collect())
}

/// The ends that wait in a listening socket, whose other ends somebody must have.
pub fn waiting_ends(open: &Open, keys: &[u64], local: &[u8]) -> Vec<End> {
    let known =
        Address::parse(local).and_then(|at| inet_diag::not_accepted(at.port).ok()).unwrap_or_default();
    let side_of = |wanted: u64| {
        let end = known.iter().find(|end| key(&end.local, &end.peer) == wanted);
        end.is_some_and(|end| end.local < end.peer)
    };
    let refusal = || {
        refusal(
            open.fd,
            &open.link,
            "a connection from outside the checkpoint waits in it to be accepted".into(),
            "launch the other end in the same computation, or checkpoint with --external-sockets=close",
        )
    };
    keys.iter()
        .map(|&pair| {
            let side = side_of(pair);
            End {
                has: ends::named(pair, side),
                wants: ends::named(pair, !side),
                refusal: Some(refusal()),
                socket: true,
                terminal: None,
            }
        })
        .collect()
}

/// Lets what was written leave: what waits for more (TCP_CORK, MSG_MORE, Nagle's algorithm) is sent by setting
/// TCP_NODELAY, "an explicit push" (tcp(7), net/ipv4/tcp.c).
pub fn push(socket: Fd) {
    let mut unsent = 0i32;
    // SAFETY: SIOCOUTQNSD writes an int.
    if unsafe { file::ioctl(socket, SIOCOUTQNSD, &mut unsent) }.is_err() || unsent <= 0 {
        return;
    }
    if let Ok(own) = socket::number_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY) {
        let _ = socket::set_number_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        let _ = socket::set_number_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, own);
    }
}

/// Waits until all that the other end has written is here.
fn arrived(table: &Table<'_>, open: &Open, asked: &Asked, other: &inet_diag::End) -> Result<(), Refusal> {
    /// A segment that was lost is sent again within that time, twice.
    const PATIENCE: u64 = 3_000_000_000;
    const FIRST_PAUSE: u64 = 20_000;
    const LAST_PAUSE: u64 = 1_000_000;
    let socket = asked.socket.0;
    let begin = sync::monotonic_ns();
    let (mut left, mut pause, mut room) = (other.unacknowledged, FIRST_PAUSE, None);
    while left > 0 {
        // An acknowledgement that is put off is sent now (tcp(7), TCP_QUICKACK); it is not the option's nature to stay.
        let _ = socket::set_number_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1);
        let now = inet_diag::find(&other.local, &other.peer);
        let before = left;
        left = now.map_or(0, |end| end.unacknowledged);
        if left == 0 {
            break;
        }
        if left == before {
            // A full buffer, or one that came to be full.
            room.get_or_insert_with(|| Room::make(open, socket)).enlarge(socket, u64::from(left));
            // After a read, if only a look, the kernel tells the other end of the room that there is
            // (`tcp_cleanup_rbuf` in net/ipv4/tcp.c).
            let _ = peek(socket, unread(socket).min(1));
            if sync::monotonic_ns() - begin > PATIENCE {
                table.rooms.borrow_mut().extend(room);
                return Err(refusal(
                    open.fd,
                    &open.link,
                    format!("{left} bytes that were sent to it do not arrive"),
                    "raise /proc/sys/net/core/rmem_max and net/ipv4/tcp_rmem, or take the checkpoint when the program has read",
                ));
            }
            state::pause(pause);
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
    table.rooms.borrow_mut().extend(room);
    Ok(())
}

/// A receive buffer that was made larger, put back when dropped: when the program has run for a while. The window that was
/// opened is used up by then, or what had filled it was read; a buffer that is smaller than what is in it and what was
/// promised drops what comes.
pub struct Room {
    fd: i32,
    inode: u64,
    size: i32,
    /// SO_BUF_LOCK (socket(7)): whether the program has set sizes, or the kernel chooses them.
    locked: Option<i32>,
    now: u64,
}

pub const SO_BUF_LOCK: i32 = 72;

impl Room {
    fn make(open: &Open, socket: Fd) -> Self {
        let size = number(socket, libc::SO_RCVBUF).unwrap_or(0);
        let locked = number(socket, SO_BUF_LOCK).ok();
        Self { fd: open.fd, inode: open.stat.st_ino, size, locked, now: 0 }
    }

    /// For so many bytes more, with what the kernel needs for its bookkeeping; hardly for more: whatever it promises room
    /// for, and has none when the buffer is put back, is sent in vain.
    fn enlarge(&mut self, socket: Fd, bytes: u64) {
        const SO_MEMINFO: i32 = 55;
        let mut memory = [0u8; 36];
        let told = socket::option(socket, libc::SOL_SOCKET, SO_MEMINFO, &mut memory);
        // SK_MEMINFO_RMEM_ALLOC is the first (linux/sock_diag.h).
        let taken = told.map_or(0, |_| u32::from_ne_bytes([memory[0], memory[1], memory[2], memory[3]]));
        let wanted = (u64::from(taken) + bytes * 2 + (128 << 10)).max(self.size as u64).min(1 << 28);
        if wanted > self.now {
            self.now = wanted;
            self.set(socket, wanted as i32);
        }
    }

    fn set(&self, socket: Fd, size: i32) {
        // Of which the kernel makes twice as much (socket(7)). Only the privileged may go beyond rmem_max.
        if set(socket, libc::SO_RCVBUFFORCE, size / 2).is_err() {
            self.set_unprivileged(socket, size);
        }
        if let Some(locked) = self.locked {
            let _ = set(socket, SO_BUF_LOCK, locked);
        }
    }

    /// The kernel's own choice goes far beyond rmem_max (tcp(7), tcp_rmem): what is asked for there would cut a buffer down
    /// that is full. One that has become larger stays so: nothing makes it smaller without that.
    fn set_unprivileged(&self, socket: Fd, size: i32) {
        let most = most_unprivileged();
        if size <= most {
            let _ = set(socket, libc::SO_RCVBUF, size / 2);
            return;
        }
        // A buffer grows, whoever asks, so that it has room for the least that a reader waits for, as far as tcp_rmem allows;
        // unless its size was set (`tcp_set_rcvlowat` in net/ipv4/tcp.c). How much room that is depends on how full
        // segments came.
        let own = number(socket, libc::SO_RCVLOWAT).unwrap_or(1);
        let _ = set(socket, SO_BUF_LOCK, 0);
        let mut least = size / 4;
        while number(socket, libc::SO_RCVBUF).is_ok_and(|now| now < size) && least < size {
            least += size / 8;
            let _ = set(socket, libc::SO_RCVLOWAT, least);
        }
        let _ = set(socket, libc::SO_RCVLOWAT, own);
        if number(socket, libc::SO_RCVBUF).is_ok_and(|now| now < most) {
            let _ = set(socket, libc::SO_RCVBUF, most / 2);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Through the program's descriptor: one of our own would keep the socket open when the program closes it.
        let tid = subject();
        let Ok(pidfd) = open_pidfd(tid).map(Duplicate) else { return };
        let Ok(socket) = process::pidfd_getfd(pidfd.0, self.fd).map(Duplicate) else { return };
        let link = path!("/proc/self/task/{tid}/fd/{}", self.fd);
        if file::stat(link.as_c_str()).is_ok_and(|stat| stat.st_ino == self.inode) {
            self.set(socket.0, self.size);
        }
    }
}

fn number(socket: Fd, name: i32) -> Result<i32, Errno> {
    socket::number_option(socket, libc::SOL_SOCKET, name)
}

fn set(socket: Fd, name: i32, value: i32) -> Result<(), Errno> {
    socket::set_number_option(socket, libc::SOL_SOCKET, name, value)
}

/// The largest receive buffer that may be asked for.
fn most_unprivileged() -> i32 {
    /// The kernel's own, where it does not tell: other network namespaces than the first (Linux 6.8).
    const USUAL: u64 = 212_992;
    let told = procfs::read(c"/proc/sys/net/core/rmem_max").ok();
    let most = told.and_then(|text| procfs::decimal(procfs::lines(&text).next()?)).unwrap_or(USUAL);
    most.saturating_mul(2).min(i32::MAX as u64) as i32
}

/// How many bytes can be read; 0 where the kernel does not tell.
pub fn unread(socket: Fd) -> usize {
    file::unread(socket).unwrap_or(0)
}

/// So many bytes, which must be there: one more, and an error that waits for the program would be told to this.
fn peek(socket: Fd, len: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; len];
    if len == 0 {
        return Ok(buffer);
    }
    // Offsets for peeking are the program's own business (SO_PEEK_OFF, since Linux 6.9 for TCP).
    let own = socket::number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    let set = |value| socket::set_number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value);
    if own >= 0 {
        set(-1)?;
    }
    let got = socket::peek(socket, &mut buffer, 0);
    if own >= 0 {
        set(own)?;
    }
    buffer.truncate(got?);
    Ok(buffer)
}

fn received(open: &Open, asked: &Asked) -> Result<Vec<Vec<u8>>, Refusal> {
    let socket = asked.socket.0;
    if ready(open, asked, libc::POLLPRI)? & libc::POLLPRI != 0 {
        return open.refuse(URGENT, WAIT);
    }
    let len = unread(socket);
    let bytes =
        peek(socket, len).map_err(|error| open.failed("what it has received cannot be read", error))?;
    if bytes.len() != len {
        return open
            .refuse(&format!("of {len} bytes that wait in it only {} can be read", bytes.len()), WAIT);
    }
    Ok(if bytes.is_empty() { Vec::new() } else { vec![bytes] })
}

/// Pushes what every connection of the process has to send.
pub fn push_all(table: &Table<'_>) {
    for_each(table, push);
}

/// See [`super::reset_at_end`]: socket(7), SO_LINGER.
pub fn reset_at_end(table: &Table<'_>) {
    for_each(table, |socket| {
        let mut info = [0u8; 1];
        let known = socket::option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info);
        if known.is_ok() && info[0] != LISTEN {
            let _ = socket::set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]);
        }
    });
}

fn for_each(table: &Table<'_>, act: impl Fn(Fd)) {
    // Standard descriptors may be shared with those who started the computation.
    let sockets = table.opens.iter().filter(|open| open.fd > 2 && open.is_socket());
    for open in sockets {
        let Ok(socket) = table.duplicate(open) else { continue };
        let number = |name| socket::number_option(socket.0, libc::SOL_SOCKET, name).unwrap_or(-1);
        if number(libc::SO_PROTOCOL) == libc::IPPROTO_TCP && number(libc::SO_DOMAIN) != libc::AF_UNIX {
            act(socket.0);
        }
    }
}
