//! Sockets: talking to the coordinator and the store server, and asking about the program's own.

use crate::{Errno, Result, call::call, file::Fd};

/// Connects to the unix socket at `path` (without NUL, at most 107 bytes); not inherited over exec.
/// `wait`: for room in the backlog of one who is slow to accept.
///
/// # Errors
/// ENAMETOOLONG for a longer path, EAGAIN where there is no room and it is not to be waited for, else connect(2)'s.
pub fn connect(path: &[u8], wait: bool) -> Result<Fd> {
    // SAFETY: sockaddr_un is plain data.
    let mut address: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    if path.len() >= address.sun_path.len() {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    for (to, &from) in address.sun_path.iter_mut().zip(path) {
        *to = from as i8;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | if wait { 0 } else { libc::SOCK_NONBLOCK };
    // SAFETY: no memory is touched.
    let fd = unsafe { call(libc::SYS_socket, [libc::AF_UNIX as usize, kind as usize, 0, 0, 0, 0])? };
    let len = size_of::<libc::sockaddr_un>();
    // SAFETY: reads the address.
    let connected = unsafe { call(libc::SYS_connect, [fd, &raw const address as usize, len, 0, 0, 0]) };
    let connected = match connected {
        Ok(_) if !wait => crate::file::fcntl(fd as Fd, libc::F_SETFL, 0),
        other => other,
    };
    match connected {
        Ok(_) => Ok(fd as Fd),
        Err(error) => {
            let _ = crate::file::close(fd as Fd);
            Err(error)
        }
    }
}

/// Sends all of `bytes`, with a descriptor beside the first of them if one is given (SCM_RIGHTS).
/// Never raises SIGPIPE.
///
/// # Errors
/// sendmsg(2)'s; EPIPE when the other side is gone.
pub fn send_all(socket: Fd, mut bytes: &[u8], mut beside: Option<Fd>) -> Result<()> {
    while !bytes.is_empty() {
        let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
        // SAFETY: msghdr is plain data.
        let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        let mut rights = Rights {
            header: libc::cmsghdr {
                cmsg_len: Rights::LEN,
                cmsg_level: libc::SOL_SOCKET,
                cmsg_type: libc::SCM_RIGHTS,
            },
            fd: beside.unwrap_or(-1),
            padding: 0,
        };
        if beside.is_some() {
            message.msg_control = (&raw mut rights).cast();
            message.msg_controllen = size_of::<Rights>();
        }
        let flags = libc::MSG_NOSIGNAL as usize;
        // SAFETY: the message's parts outlive the call.
        match unsafe {
            call(libc::SYS_sendmsg, [socket as usize, &raw const message as usize, flags, 0, 0, 0])
        } {
            Ok(sent) => {
                bytes = &bytes[sent..];
                beside = None;
            }
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads exactly `buffer.len()` bytes, and the one descriptor that may have come beside them (SCM_RIGHTS); of several
/// the kernel closes all but the first, for which there is room (unix(7)).
///
/// # Errors
/// ECONNRESET when the other side closed before that, else recvmsg(2)'s.
pub fn read_exact_beside(socket: Fd, mut buffer: &mut [u8]) -> Result<Option<Fd>> {
    let mut beside = None;
    while !buffer.is_empty() {
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: msghdr and cmsghdr are plain data.
        let (mut message, header): (libc::msghdr, libc::cmsghdr) = unsafe { core::mem::zeroed() };
        let mut rights = Rights { header, fd: -1, padding: 0 };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut rights).cast();
        message.msg_controllen = Rights::LEN;
        let flags = libc::MSG_CMSG_CLOEXEC as usize;
        // SAFETY: the message's parts outlive the call.
        let received =
            unsafe { call(libc::SYS_recvmsg, [socket as usize, &raw mut message as usize, flags, 0, 0, 0]) };
        match received {
            Ok(0) => {
                beside.map(crate::file::close);
                return Err(Errno(libc::ECONNRESET));
            }
            Ok(got) => buffer = &mut buffer[got..],
            Err(Errno(libc::EINTR)) => continue,
            Err(error) => {
                beside.map(crate::file::close);
                return Err(error);
            }
        }
        let came = message.msg_controllen >= Rights::LEN
            && (rights.header.cmsg_level, rights.header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        if came {
            beside.replace(rights.fd).map(crate::file::close);
        }
    }
    Ok(beside)
}

/// A control message with one descriptor.
#[repr(C)]
struct Rights {
    header: libc::cmsghdr,
    fd: Fd,
    padding: u32,
}

impl Rights {
    /// Without the padding (CMSG_LEN, cmsg(3)).
    const LEN: usize = size_of::<libc::cmsghdr>() + size_of::<Fd>();
}

/// Reads exactly `buffer.len()` bytes.
///
/// # Errors
/// ECONNRESET when the other side closed before that, else read(2)'s.
pub fn read_exact(fd: Fd, mut buffer: &mut [u8]) -> Result<()> {
    while !buffer.is_empty() {
        match crate::file::read(fd, buffer) {
            Ok(0) => return Err(Errno(libc::ECONNRESET)),
            Ok(n) => buffer = &mut buffer[n..],
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// socket(2).
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<Fd> {
    // SAFETY: no memory is touched.
    unsafe { call(libc::SYS_socket, [domain as usize, kind as usize, protocol as usize, 0, 0, 0]) }
        .map(|fd| fd as Fd)
}

/// Ends a connection for everybody who has it open (shutdown(2)).
pub fn shutdown(socket: Fd) {
    let _ = crate::process::numbers(libc::SYS_shutdown, [socket as usize, libc::SHUT_RDWR as usize, 0, 0, 0]);
}

/// getsockopt(2); how many bytes of `value` were filled in.
pub fn option(socket: Fd, level: i32, name: i32, value: &mut [u8]) -> Result<usize> {
    let room = value.len();
    Ok(get_option(socket, level, name, value, room)?.min(room))
}

/// getsockopt(2) of an option whose length is counted in elements of 8 bytes, in and out; that length.
pub fn count_option(socket: Fd, level: i32, name: i32, value: &mut [u8]) -> Result<usize> {
    let room = value.len() / 8;
    get_option(socket, level, name, value, room)
}

/// getsockopt(2) with `room` as the length that goes in; the one that comes out.
fn get_option(socket: Fd, level: i32, name: i32, value: &mut [u8], room: usize) -> Result<usize> {
    let mut len = room as u32;
    let (address, len_address) = (value.as_mut_ptr() as usize, &raw mut len as usize);
    let arguments = [socket as usize, level as usize, name as usize, address, len_address, 0];
    // SAFETY: writes at most what there is room for, whatever its unit, and the length.
    unsafe { call(libc::SYS_getsockopt, arguments)? };
    Ok(len as usize)
}

/// getsockopt(2) of an int.
pub fn number_option(socket: Fd, level: i32, name: i32) -> Result<i32> {
    let mut value = [0; 4];
    option(socket, level, name, &mut value).map(|_| i32::from_ne_bytes(value))
}

/// setsockopt(2) of an int.
pub fn set_number_option(socket: Fd, level: i32, name: i32, value: i32) -> Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// setsockopt(2).
pub fn set_option(socket: Fd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let (address, len) = (value.as_ptr() as usize, value.len());
    // SAFETY: reads the value.
    unsafe { call(libc::SYS_setsockopt, [socket as usize, level as usize, name as usize, address, len, 0]) }
        .map(drop)
}

/// getsockname(2), or getpeername(2); how many bytes of `address` were filled in.
pub fn name(socket: Fd, peer: bool, address: &mut [u8; 128]) -> Result<usize> {
    let nr = if peer { libc::SYS_getpeername } else { libc::SYS_getsockname };
    let mut len = address.len() as u32;
    // SAFETY: writes at most the address' length, and the length.
    unsafe { call(nr, [socket as usize, address.as_mut_ptr() as usize, &raw mut len as usize, 0, 0, 0])? };
    Ok((len as usize).min(address.len()))
}

/// Reads without consuming and without waiting (recv(2), MSG_PEEK | MSG_DONTWAIT | `flags`). Descriptors that travel
/// with it are not received.
pub fn peek(socket: Fd, buffer: &mut [u8], flags: i32) -> Result<usize> {
    let flags = (libc::MSG_PEEK | libc::MSG_DONTWAIT | flags) as usize;
    // SAFETY: writes at most the buffer's length.
    unsafe {
        call(libc::SYS_recvfrom, [socket as usize, buffer.as_mut_ptr() as usize, buffer.len(), flags, 0, 0])
    }
}

/// What came beside a message.
pub struct Beside {
    pub address: [u8; 128],
    pub address_len: usize,
    /// Pid, user and group of the sender (SCM_CREDENTIALS).
    pub credentials: Option<[u32; 3]>,
}

/// As [`peek`], and what is beside. `right` is given each descriptor among that, which is its to close.
///
/// # Errors
/// recvmsg(2)'s; EMFILE where there is no room for all descriptors (`right` has been given the others).
pub fn peek_beside(
    socket: Fd,
    buffer: &mut [u8],
    flags: i32,
    mut right: impl FnMut(Fd),
) -> Result<(usize, Beside)> {
    const SCM_PIDFD: i32 = 4;
    /// SCM_MAX_FD descriptors (unix(7)), credentials, a pidfd and a security label.
    const CONTROL: usize = 256;
    let mut beside = Beside { address: [0; 128], address_len: 0, credentials: None };
    let mut control = [0u64; CONTROL];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_name = beside.address.as_mut_ptr().cast();
    message.msg_namelen = beside.address.len() as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = (libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | flags) as usize;
    // SAFETY: the message's parts outlive the call, which writes at most their lengths.
    let len =
        unsafe { call(libc::SYS_recvmsg, [socket as usize, &raw mut message as usize, flags, 0, 0, 0])? };
    beside.address_len = (message.msg_namelen as usize).min(beside.address.len());
    let mut words = control.get(..message.msg_controllen.div_ceil(8)).unwrap_or_default();
    // struct cmsghdr: a length with this header of 16 bytes, level and type; what follows is padded to 8 bytes.
    while let [header_len, kind, values @ ..] = words {
        let value = |at: usize| (values.get(at / 2).copied().unwrap_or(0) >> (at % 2 * 32)) as u32;
        let count = (*header_len as usize).saturating_sub(16) / 4;
        match (*kind as u32 as i32, (*kind >> 32) as i32) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                beside.credentials = Some([value(0), value(1), value(2)])
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for at in 0..count.min(values.len() * 2) {
                    right(value(at) as Fd);
                }
            }
            (libc::SOL_SOCKET, SCM_PIDFD) => {
                let _ = crate::file::close(value(0) as Fd);
            }
            _ => {}
        }
        words = words.get((*header_len as usize).div_ceil(8).max(2)..).unwrap_or_default();
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno(libc::EMFILE));
    }
    Ok((len, beside))
}

/// Of bytes that a unix stream socket has not read, which were sent in pieces and fill `buffer` (again): where the last piece
/// begins. Pieces are received whole or not at all where memory cannot be written to, here that of the last byte
/// (net/unix/af_unix.c, `unix_stream_read_generic`).
///
/// # Errors
/// recvmsg(2)'s.
pub fn last_sent_at(socket: Fd, buffer: &mut [u8]) -> Result<usize> {
    static READ_ONLY: u8 = 0;
    let Some((_, valid)) = buffer.split_last_mut() else { return Ok(0) };
    let mut parts = [
        libc::iovec { iov_base: valid.as_mut_ptr().cast(), iov_len: valid.len() },
        libc::iovec { iov_base: (&raw const READ_ONLY).cast_mut().cast(), iov_len: 1 },
    ];
    // SAFETY: msghdr is plain data.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    let flags = (libc::MSG_PEEK | libc::MSG_DONTWAIT) as usize;
    // SAFETY: the message's parts outlive the call; the kernel refuses to write to what is mapped read-only.
    match unsafe { call(libc::SYS_recvmsg, [socket as usize, &raw mut message as usize, flags, 0, 0, 0]) } {
        Err(Errno(libc::EFAULT)) => Ok(0),
        begin => begin,
    }
}

/// SO_RCVTIMEO or SO_SNDTIMEO of a socket, as seconds and microseconds; `None` where there is none
/// (socket(7): zero), or no socket.
pub fn timeout(socket: Fd, name: i32) -> Option<[i64; 2]> {
    let mut value = [0; 16];
    option(socket, libc::SOL_SOCKET, name, &mut value).ok()?;
    let [seconds, micros] = *value.as_chunks::<8>().0 else { return None };
    let value = [i64::from_ne_bytes(seconds), i64::from_ne_bytes(micros)];
    (value != [0; 2]).then_some(value)
}
