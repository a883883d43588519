//! Unix stream sockets, as far as talking to the coordinator and the store server needs.

use crate::{Errno, Result, call::call, file::Fd};

/// Connects to the unix socket at `path` (without NUL, at most 107 bytes); not inherited over exec.
///
/// # Errors
/// ENAMETOOLONG for a longer path, else connect(2)'s.
pub fn connect(path: &[u8]) -> Result<Fd> {
    // SAFETY: sockaddr_un is plain data.
    let mut address: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    if path.len() >= address.sun_path.len() {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    for (to, &from) in address.sun_path.iter_mut().zip(path) {
        *to = from as i8;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is touched.
    let fd = unsafe { call(libc::SYS_socket, [libc::AF_UNIX as usize, kind as usize, 0, 0, 0, 0])? };
    let len = size_of::<libc::sockaddr_un>();
    // SAFETY: reads the address.
    match unsafe { call(libc::SYS_connect, [fd, &raw const address as usize, len, 0, 0, 0]) } {
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
    #[repr(C)]
    struct Rights {
        header: libc::cmsghdr,
        fd: Fd,
        padding: u32,
    }
    while !bytes.is_empty() {
        let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
        // SAFETY: msghdr is plain data.
        let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        let mut rights = Rights {
            header: libc::cmsghdr {
                cmsg_len: size_of::<libc::cmsghdr>() + size_of::<Fd>(),
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
