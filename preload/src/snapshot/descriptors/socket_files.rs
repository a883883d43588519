//! Where unix sockets are in the file system. That is not always the name that they were bound to: servers bind another
//! one and rename it into place, or remove it.

use alloc::{string::String, vec::Vec};
use core::ffi::CStr;

use stasis_protocol::image::{FileRights, SocketFile};
use stasis_sys::{
    Errno, Result as SysResult,
    file::{self, Fd},
    process,
};

use super::{Duplicate, Table, sock_diag::UnixSocket, sockets::Asked};
use crate::procfs;

/// The file of a socket; `None` where it has no path, or is not in the file system any more.
pub fn of(table: &Table<'_>, asked: &Asked, found: &UnixSocket, local: &[u8]) -> Option<SocketFile> {
    let name = local.get(2..)?.split(|&byte| byte == 0).next().filter(|name| !name.is_empty())?;
    if !table.stopped() {
        return None;
    }
    opened(asked).map_or_else(|_| searched(table, found, name), |file| described(&file))
}

/// SIOCUNIXFILE (linux/un.h): a descriptor of the file, for who has CAP_NET_ADMIN.
fn opened(asked: &Asked) -> SysResult<Duplicate> {
    const SIOCUNIXFILE: usize = 0x89e0;
    process::numbers(libc::SYS_ioctl, [asked.socket.0 as usize, SIOCUNIXFILE, 0, 0, 0])
        .map(|fd| Duplicate(fd as Fd))
}

fn described(file: &Duplicate) -> Option<SocketFile> {
    let stat = file::fstat(file.0).ok().filter(|stat| stat.st_nlink > 0)?;
    let path = procfs::link(path!("/proc/thread-self/fd/{}", file.0).as_c_str()).ok()?;
    let is_it = |there: &libc::stat| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino);
    if procfs::stat(&path).is_ok_and(|there| is_it(&there)) {
        return with(path, Some(&stat));
    }
    // The kernel tells the name that it was bound to, which may be removed while another one is left (link(2)).
    beside(path, stat.st_ino as u32, is_it)
}

fn with(path: Vec<u8>, stat: Option<&libc::stat>) -> Option<SocketFile> {
    let rights =
        |stat: &libc::stat| FileRights { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
    Some(SocketFile { path: String::from_utf8(path).ok()?, rights: stat.map(rights) })
}

/// At its name, or else in the same directory: there it is renamed mostly.
fn searched(table: &Table<'_>, found: &UnixSocket, name: &[u8]) -> Option<SocketFile> {
    let inode = found.file?;
    // Of the kernel's own device numbers, which sock_diag tells, file systems show others (btrfs, overlayfs). The socket
    // keeps its inode, so that no other one has its number in that place.
    let is_it =
        |stat: &libc::stat| stat.st_mode & libc::S_IFMT == libc::S_IFSOCK && stat.st_ino as u32 == inode;
    let mut path = Vec::from(name);
    if name[0] != b'/' {
        path = procfs::link(path!("/proc/self/task/{}/cwd", table.tid).as_c_str()).ok()?;
        path.push(b'/');
        path.extend_from_slice(name);
    }
    match procfs::stat(&path) {
        Ok(stat) if is_it(&stat) => return with(path, Some(&stat)),
        // Who has given up root may not reach what root has bound.
        Err(Errno(libc::EACCES)) => return with(path, None),
        _ => {}
    }
    beside(path, inode, is_it)
}

/// The name in a path's directory that leads to an inode.
fn beside(mut path: Vec<u8>, inode: u32, is_it: impl Fn(&libc::stat) -> bool) -> Option<SocketFile> {
    path.truncate(path.iter().rposition(|&byte| byte == b'/')? + 1);
    let directory = procfs::c_path(&path);
    let entries = procfs::Directory::open(CStr::from_bytes_until_nul(&directory).ok()?).ok()?;
    let mut names = Vec::new();
    let noted = entries.entries(|entry, name| {
        if entry as u32 == inode {
            names.push(Vec::from(name));
        }
    });
    noted.ok()?;
    names.into_iter().find_map(|name| {
        let path = [&path[..], &name].concat();
        let stat = procfs::stat(&path).ok().filter(&is_it)?;
        with(path, Some(&stat))
    })
}
