//! netlink(7), as far as sock_diag(7) needs it.

use alloc::vec;

use stasis_sys::{
    Errno, Result,
    file::{self, Fd},
    socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The size of struct nlmsghdr.
const HEADER: usize = 16;

/// struct nlmsghdr (linux/netlink.h), the first field of every request.
#[repr(C)]
pub struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

impl Header {
    /// Of a `Request` for one socket or, as a dump, for all that match.
    pub fn of<Request>(is_dump: bool) -> Self {
        let flags = libc::NLM_F_REQUEST | if is_dump { libc::NLM_F_DUMP } else { 0 };
        let len = size_of::<Request>() as u32;
        Self { len, kind: SOCK_DIAG_BY_FAMILY, flags: flags as u16, sequence: 1, port: 0 }
    }

    fn is_dump(&self) -> bool {
        self.flags & libc::NLM_F_DUMP as u16 != 0
    }
}

/// What can be sent as it lies in memory.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and begins with a [`Header`].
pub unsafe trait Request: Sized {
    fn header(&self) -> &Header;
}

/// Sends a request and gives what follows each answer's header to `each`.
///
/// # Errors
/// What the kernel answers; EIO where that cannot be understood.
pub fn ask<R: Request>(request: &R, each: impl FnMut(&[u8])) -> Result<()> {
    let netlink =
        socket::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG)?;
    let answer = exchange(netlink, request, each);
    let _ = file::close(netlink);
    answer
}

fn exchange<R: Request>(netlink: Fd, request: &R, mut each: impl FnMut(&[u8])) -> Result<()> {
    // SAFETY: plain data without padding, as `Request` requires.
    let bytes =
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(request).cast::<u8>(), size_of::<R>()) };
    socket::send_all(netlink, bytes, None)?;
    // One answer may name a backlog of thousands (net.core.somaxconn): an inode each.
    let mut answer = vec![0u8; 64 << 10];
    loop {
        let len = file::read(netlink, &mut answer)?;
        let mut rest = &answer[..len];
        while rest.len() >= HEADER {
            let header = word(rest, 0) as usize;
            let message = rest.get(..header.clamp(HEADER, rest.len())).unwrap_or_default();
            match i32::from(word(message, 4) as u16) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    return Err(Errno(0i32.wrapping_sub(word(message, HEADER) as i32)));
                }
                kind if kind == i32::from(SOCK_DIAG_BY_FAMILY) => each(&message[HEADER..]),
                _ => return Err(Errno(libc::EIO)),
            }
            rest = rest.get(header.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
        }
        if !request.header().is_dump() {
            return Ok(());
        }
    }
}

/// Four bytes as a number; 0 beyond the end.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The types and values of what follows an answer's fixed part. struct rtattr: u16 length with this header, u16
/// type, then the value, padded to 4 bytes.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let header = word(bytes.get(..4)?, 0);
        let (len, kind) = ((header & 0xffff) as usize, (header >> 16) as u16);
        let value = bytes.get(4..len).unwrap_or_default();
        bytes = bytes.get(len.max(4).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
