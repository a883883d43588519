//! Unix sockets in the file system. A socket has the name that it was bound to; its file may have been renamed or removed
//! since, and its directory too.

use std::{
    ffi::{CString, OsStr},
    fs::{self, DirBuilder, Metadata, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown},
        },
    },
    path::{Path, PathBuf},
};

use stasis_protocol::image::{FileRights, SocketFile};

use super::{
    kernel::{self, done, owned},
    raw,
    sockets::family,
};

/// Where a unix socket is bound in the file system.
pub fn path(address: &[u8]) -> Option<PathBuf> {
    let name = address.get(2..).filter(|_| family(address) == Some(libc::AF_UNIX))?;
    let name = name.split(|&byte| byte == 0).next()?;
    (!name.is_empty()).then(|| Path::new(OsStr::from_bytes(name)).to_path_buf())
}

/// bind(2).
///
/// # Errors
/// bind(2)'s.
pub fn bind(socket: &OwnedFd, address: &[u8]) -> io::Result<()> {
    // SAFETY: reads as many bytes as there are.
    done(unsafe { libc::bind(raw(socket), address.as_ptr().cast(), address.len() as u32) }).map(drop)
}

/// Binds, and puts the socket's file where it was, in the place of one that nobody listens behind. Without a file the name is
/// there for a moment only. What it gives leads to the socket whatever becomes of its name.
///
/// # Errors
/// bind(2)'s; NotFound where the file's directory is gone.
pub fn bind_at(socket: &OwnedFd, address: &[u8], file: Option<&SocketFile>) -> io::Result<Option<OwnedFd>> {
    let Some(name) = path(address) else { return bind(socket, address).map(|()| None) };
    let target = file.map(|file| Path::new(&file.path));
    let directory = target.and_then(Path::parent);
    if let Some(directory) = directory {
        directory.metadata()?;
    }
    let _there = match target.filter(|_| name.is_relative()) {
        Some(target) => Some(Elsewhere::enter(base(&name, target).or(directory).unwrap_or(target))?),
        None => None,
    };
    let moment = BoundForAMoment::bind(socket, address)?;
    let c_name = CString::new(name.as_os_str().as_bytes())?;
    // SAFETY: reads a string.
    let reach =
        owned(unsafe { libc::open(c_name.as_ptr(), libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) })?;
    if let Some(file) = file {
        moment.stay(&name, file)?;
    }
    Ok(Some(reach))
}

/// What a path must be looked up from to be another one.
fn base<'a>(relative: &Path, target: &'a Path) -> Option<&'a Path> {
    target.ends_with(relative).then(|| target.ancestors().nth(relative.components().count())).flatten()
}

/// The address at which a socket is reached that [`bind_at`] has made; its own where it has no path.
pub fn reached_at(reach: Option<&OwnedFd>, address: &[u8]) -> Vec<u8> {
    let Some(reach) = reach else { return address.to_vec() };
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend(format!("/proc/self/fd/{}\0", reach.as_raw_fd()).into_bytes());
    address
}

/// A socket bound to an address that is somebody else's or free: what was at its path is put back when this is dropped.
pub struct BoundForAMoment {
    path: Option<PathBuf>,
    aside: Option<PathBuf>,
    /// Directories that were not there, the inmost first.
    directories: Vec<PathBuf>,
}

impl BoundForAMoment {
    /// # Errors
    /// bind(2)'s; rename(2)'s where the socket's file cannot be put aside.
    pub fn bind(socket: &OwnedFd, address: &[u8]) -> io::Result<Self> {
        let path = path(address);
        let mut moment = Self { path: None, aside: None, directories: Vec::new() };
        if let Some(path) = &path {
            moment.make_directories(path)?;
            if let Ok(found) = fs::symlink_metadata(path) {
                if !found.file_type().is_socket() {
                    return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
                }
                let mut aside = path.clone().into_os_string();
                aside.push(format!(".stasis-{}", std::process::id()));
                fs::rename(path, &aside)?;
                moment.aside = Some(aside.into());
            }
        }
        // Dropped, it puts back what was put aside.
        moment.path = path;
        bind(socket, address)?;
        Ok(moment)
    }

    fn make_directories(&mut self, path: &Path) -> io::Result<()> {
        let is_missing =
            |directory: &&Path| !directory.as_os_str().is_empty() && directory.symlink_metadata().is_err();
        let missing: Vec<&Path> = path.ancestors().skip(1).take_while(is_missing).collect();
        for directory in missing.into_iter().rev() {
            DirBuilder::new().mode(0o700).create(directory)?;
            self.directories.insert(0, directory.to_path_buf());
        }
        Ok(())
    }

    /// Keeps the socket in the file system, as it was there.
    fn stay(mut self, name: &Path, file: &SocketFile) -> io::Result<()> {
        let target = Path::new(&file.path);
        let before = self.aside.as_ref().filter(|_| file.rights.is_none()).map(fs::symlink_metadata);
        let rights = match before {
            Some(before) => Some(rights(&before?)),
            None => file.rights,
        };
        if let Some(FileRights { mode, uid, gid }) = rights {
            let now = self::rights(&fs::symlink_metadata(name)?);
            if (now.uid, now.gid) != (uid, gid) {
                // Not everybody may give files away; then it is this user's, with the mode that it had.
                let _ = lchown(name, Some(uid), Some(gid));
            }
            fs::set_permissions(name, Permissions::from_mode(mode & 0o7777))?;
        }
        if is_same(name, target)? {
            self.path = None;
            return self.aside.take().map_or(Ok(()), fs::remove_file);
        }
        if fs::symlink_metadata(target).is_ok_and(|found| !found.file_type().is_socket()) {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        fs::rename(name, target)
    }
}

fn rights(found: &Metadata) -> FileRights {
    FileRights { mode: found.mode(), uid: found.uid(), gid: found.gid() }
}

/// Whether two paths are the same place.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let directory = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).canonicalize()
    };
    Ok(one.file_name() == other.file_name() && directory(one)? == directory(other)?)
}

impl Drop for BoundForAMoment {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = match &self.aside {
                Some(aside) => fs::rename(aside, path),
                None => fs::remove_file(path),
            };
        }
        for directory in &self.directories {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Another working directory, for as long as something is made whose path is relative to it.
pub struct Elsewhere {
    back: OwnedFd,
}

impl Elsewhere {
    /// # Errors
    /// chdir(2)'s.
    pub fn enter(directory: &Path) -> io::Result<Self> {
        let back = kernel::open(".", libc::O_PATH | libc::O_DIRECTORY)?;
        std::env::set_current_dir(directory)?;
        Ok(Self { back })
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // SAFETY: no memory is touched. The directory was this process' a moment ago.
        let _ = done(unsafe { libc::fchdir(self.back.as_raw_fd()) });
    }
}
