//! Sockets: pairs with what was not read yet, and those that are bound, pointed and listen.

use std::{
    io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, SocketOption},
};

use super::{
    Maker, failed,
    joint::{Common, Place},
    kernel::{done, owned},
    name, raw, refuse,
    unread::Unread,
};

/// A struct sockaddr, for messages.
pub fn display(address: &[u8]) -> String {
    let port = address.get(2..4).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
    match family(address) {
        None => "socket".into(),
        Some(libc::AF_INET) => match address.get(4..8).and_then(|ip| <[u8; 4]>::try_from(ip).ok()) {
            Some(ip) => format!("socket {}:{port}", std::net::Ipv4Addr::from(ip)),
            None => "socket".into(),
        },
        Some(libc::AF_INET6) => match address.get(8..24).and_then(|ip| <[u8; 16]>::try_from(ip).ok()) {
            Some(ip) => format!("socket [{}]:{port}", std::net::Ipv6Addr::from(ip)),
            None => "socket".into(),
        },
        Some(_) => match path(address) {
            Some(path) => format!("socket {}", path.display()),
            None => format!("socket @{}", String::from_utf8_lossy(address.get(3..).unwrap_or_default())),
        },
    }
}

fn family(address: &[u8]) -> Option<i32> {
    address.get(..2).map(|family| i32::from(u16::from_ne_bytes([family[0], family[1]])))
}

/// Where a unix socket is bound in the file system.
pub fn path(address: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let name = address.get(2..).filter(|_| family(address) == Some(libc::AF_UNIX))?;
    let name = name.split(|&byte| byte == 0).next()?;
    (!name.is_empty()).then(|| Path::new(std::ffi::OsStr::from_bytes(name)).to_path_buf())
}

/// Binds; a socket file that nobody listens on any more is replaced, with its permissions.
///
/// # Errors
/// bind(2)'s.
pub fn bind(socket: &OwnedFd, address: &[u8]) -> io::Result<()> {
    let mut permissions = None;
    let path = path(address);
    if let Some(path) = &path
        && let Ok(found) = std::fs::symlink_metadata(path)
    {
        if !found.file_type().is_socket() {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        permissions = Some(std::fs::Permissions::from_mode(found.permissions().mode() & 0o7777));
        std::fs::remove_file(path)?;
    }
    // SAFETY: reads as many bytes as there are.
    done(unsafe { libc::bind(raw(socket), address.as_ptr().cast(), address.len() as u32) })?;
    if let (Some(path), Some(permissions)) = (path, permissions) {
        std::fs::set_permissions(path, permissions)?;
    }
    Ok(())
}

/// connect(2).
///
/// # Errors
/// connect(2)'s.
pub fn connect(socket: &OwnedFd, address: &[u8]) -> io::Result<()> {
    // SAFETY: reads as many bytes as there are.
    done(unsafe { libc::connect(raw(socket), address.as_ptr().cast(), address.len() as u32) }).map(drop)
}

/// Sets options. Buffer sizes come back doubled from the kernel (socket(7)), and beyond the system's limit only
/// the privileged may set them.
///
/// # Errors
/// setsockopt(2)'s, except for buffer sizes.
pub fn set_options(socket: &OwnedFd, options: &[SocketOption]) -> io::Result<()> {
    let set = |level: i32, name: i32, value: &[u8]| {
        // SAFETY: reads as many bytes as there are.
        done(unsafe { libc::setsockopt(raw(socket), level, name, value.as_ptr().cast(), value.len() as u32) })
    };
    for option in options {
        let force = match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => Some(libc::SO_SNDBUFFORCE),
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => Some(libc::SO_RCVBUFFORCE),
            _ => None,
        };
        match (force, <[u8; 4]>::try_from(option.value.as_slice())) {
            (Some(force), Ok(value)) => {
                let half = (i32::from_ne_bytes(value) / 2).to_ne_bytes();
                if set(option.level, force, &half).is_err() {
                    let _ = set(option.level, option.name, &half);
                }
            }
            _ => {
                set(option.level, option.name, &option.value)?;
            }
        }
    }
    Ok(())
}

/// A socket that is not connected to another of the process.
pub fn open(maker: &mut Maker<'_>, index: usize) -> Result<OwnedFd, Refusal> {
    let image = maker.image;
    let DescriptionKind::Socket { domain, socket_type, protocol, local, peer, backlog, options } =
        &image.descriptions[index].kind
    else {
        return maker.inherit(index, -1);
    };
    let error = |what: &'static str| move |error: io::Error| failed(image, index, what, &error);
    // SAFETY: no memory is touched.
    let socket = owned(unsafe { libc::socket(*domain, socket_type | libc::SOCK_CLOEXEC, *protocol) })
        .map_err(error("it cannot be made again"))?;
    set_options(&socket, options).map_err(error("its options cannot be set"))?;
    if !local.is_empty() {
        bind(&socket, local).map_err(|error| {
            let reason = format!("its address cannot be bound: {error}");
            refuse(image, index, reason, "end the process that uses the address (ss -nlp tells which)")
        })?;
    }
    if !peer.is_empty()
        && let Err(error) = connect(&socket, peer)
    {
        // A datagram socket without its peer gets the same error from send(2) as when the peer goes away.
        maker.installed.warnings.push(format!(
            "{}: it cannot be pointed at {} again: {error}",
            name(image, index),
            display(peer)
        ));
    }
    if let Some(backlog) = backlog {
        // SAFETY: no memory is touched.
        done(unsafe { libc::listen(raw(&socket), *backlog) }).map_err(error("it cannot listen"))?;
    }
    Ok(socket)
}

/// One end of a pair; the other is kept for the description that it belongs to.
pub fn open_pair(maker: &mut Maker<'_>, index: usize) -> Result<OwnedFd, Refusal> {
    let image = maker.image;
    let DescriptionKind::SocketPair { pair, .. } = &image.descriptions[index].kind else {
        return maker.inherit(index, -1);
    };
    if let Some(kept) = maker.pairs.get_mut(pair) {
        return kept.take().ok_or_else(|| {
            refuse(image, index, "more than two sockets are one pair", "run `stasis verify`")
        });
    }
    let this = maker.common.relations.first((maker.process, index));
    let ends = maker.common.relations.ends(*pair);
    let other = ends.iter().copied().find(|end| *end != this);
    let (one, two) = make_pair(maker.common, this, other)
        .map_err(|error| failed(image, index, "the pair cannot be made again", &error))?;
    // Without a description, the other end was closed.
    maker.pairs.insert(*pair, other.map(|_| two));
    Ok(one)
}

fn make_pair(common: &Common<'_>, one: Place, other: Option<Place>) -> io::Result<(OwnedFd, OwnedFd)> {
    let kinds = (&common.description(one).kind, other.map(|other| &common.description(other).kind));
    let DescriptionKind::SocketPair { socket_type, local, .. } = kinds.0 else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let no_name = Vec::new();
    let other_local = match kinds.1 {
        Some(DescriptionKind::SocketPair { local, .. }) => local,
        _ => &no_name,
    };
    let ends = connected(*socket_type, local, other_local)?;
    for (sender, sent_by, received_by) in [(&ends.1, kinds.1, Some(one)), (&ends.0, Some(kinds.0), other)] {
        let Some(received) = received_by.and_then(|end| received(common, end)) else { continue };
        let (charged, options) = match sent_by {
            Some(DescriptionKind::SocketPair { charged, options, .. }) => (*charged as usize, &options[..]),
            _ => (0, &[][..]),
        };
        Unread { socket_type: *socket_type, messages: received, charged, options }.send(sender)?;
    }
    for (end, kind) in [(&ends.0, Some(kinds.0)), (&ends.1, kinds.1)] {
        let Some(DescriptionKind::SocketPair { shutdown_read, shutdown_write, options, .. }) = kind else {
            continue;
        };
        set_options(end, options)?;
        for (how, wanted) in [(libc::SHUT_RD, shutdown_read), (libc::SHUT_WR, shutdown_write)] {
            // A closed end takes care of that by itself, and for datagrams it was none.
            if *wanted && other.is_some() {
                // SAFETY: no memory is touched.
                done(unsafe { libc::shutdown(raw(end), how) })?;
            }
        }
    }
    Ok(ends)
}

/// What an end has not read: each process that had it may have it in its image.
fn received<'a>(common: &Common<'a>, end: Place) -> Option<&'a [Vec<u8>]> {
    common.relations.places(end).into_iter().find_map(|place| match &common.description(place).kind {
        DescriptionKind::SocketPair { received, .. } if !received.is_empty() => Some(&received[..]),
        _ => None,
    })
}

/// Two unix sockets that are connected to each other, with the names they had.
///
/// # Errors
/// socketpair(2)'s; and for ends with names.
pub fn connected(socket_type: i32, one: &[u8], two: &[u8]) -> io::Result<(OwnedFd, OwnedFd)> {
    if one.is_empty() && two.is_empty() {
        let mut ends = [0; 2];
        // SAFETY: writes two ints.
        done(unsafe {
            libc::socketpair(libc::AF_UNIX, socket_type | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr())
        })?;
        // SAFETY: socketpair gave both to us.
        return Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) });
    }
    // Named ends have to be bound and connected, beside the listener of that name, which is not made yet or is
    // made again: names of unix connections may be the same as their listener's, but only bind(2) gives one.
    Err(io::Error::other("its ends have names, which is not supported yet"))
}
