//! Datagrams that have not been read, with their senders' addresses.

use alloc::{vec, vec::Vec};

use stasis_protocol::{coordinator::Refusal, image::Datagram};
use stasis_sys::{Errno, file::Fd, socket, sync};

use super::{
    Duplicate, Open, bytes,
    in_flight::Rights,
    sockets::WAIT,
    unread::{LARGEST, sender},
};

/// All of them, by peeking from offset to offset (socket(7), SO_PEEK_OFF), and the descriptors that come with each. The program's
/// own offset is put back.
pub fn received(open: &Open, socket: Fd) -> Result<(Vec<Datagram>, Vec<Rights>), Refusal> {
    let unreadable = |error: Errno| open.failed("what it has received cannot be read", error);
    let set = |value| socket::set_number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value);
    // A look would be told an error that waits for the program.
    let ready = sync::poll(socket, libc::POLLIN, 0).map_err(unreadable)?;
    match (ready & libc::POLLIN != 0, ready & libc::POLLERR != 0) {
        (false, _) => return Ok(Default::default()),
        (true, true) => return open.refuse("datagrams wait in it behind an error", WAIT),
        (true, false) => {}
    }
    let own = socket::number_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    set(0).map_err(unreadable)?;
    let all = peek_all(socket, set);
    set(own).map_err(unreadable)?;
    all.map_err(unreadable)
}

fn peek_all(
    socket: Fd,
    set: impl Fn(i32) -> Result<(), Errno>,
) -> Result<(Vec<Datagram>, Vec<Rights>), Errno> {
    let (mut all, mut rights): (Vec<Datagram>, Vec<Rights>) = Default::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut own = Rights::new();
        match socket::peek_beside(socket, &mut buffer, libc::MSG_TRUNC, |fd| own.push(Duplicate(fd))) {
            Ok((len, _)) if len > LARGEST => return Err(Errno(libc::EMSGSIZE)),
            Ok((len, _)) if len > buffer.len() => {
                // The offset has moved on by what was read. Not from the start: datagrams without content are shown once.
                buffer = vec![0; len];
                set(all.iter().map(|datagram| datagram.bytes.len()).sum::<usize>() as i32)?;
            }
            Ok((len, beside)) => {
                // Without a name there is the family alone.
                let named = beside.address_len > size_of::<libc::sa_family_t>();
                let from = if named { bytes(&beside.address, beside.address_len) } else { Vec::new() };
                let bytes = bytes(&buffer, len);
                all.push(Datagram { from, sender: sender(&beside), bytes, rights: Vec::new() });
                rights.push(own);
            }
            Err(Errno(libc::EAGAIN)) => return Ok((all, rights)),
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}
