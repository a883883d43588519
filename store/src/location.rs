//! Where a store is reached: its directory's one true path, and the socket of its server.
//!
//! The socket's name is derived from the directory, so that clients need nothing but the directory.
//! It does not lie inside it: the directory may be on a file system without sockets, or have a path
//! longer than the 107 bytes of sockaddr_un (unix(7)).
//!
//! Not here: what lies inside the directory.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

/// The longest path that fits sockaddr_un with its terminating zero.
const SOCKET_PATH_MAX: usize = 107;

/// The file in a store's directory that its server holds locked: its pid, its socket and which file this is ([`identity`]), a
/// line each.
pub const LOCK: &str = "LOCK";

/// The path of the socket of the server of the store in `directory`, which must exist.
///
/// # Errors
/// The directory does not exist or cannot be reached; the directory for the socket cannot be made or
/// belongs to somebody else.
pub fn socket_path(directory: &Path) -> io::Result<PathBuf> {
    let canonical = fs::canonicalize(directory)?;
    let name = blake3::hash(canonical.as_os_str().as_bytes()).to_hex();
    let file = format!("store-{}.sock", &name[..16]);
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && runtime.is_absolute()
        && runtime.is_dir()
    {
        let path = runtime.join("stasis").join(&file);
        if path.as_os_str().len() <= SOCKET_PATH_MAX && private_directory(&runtime.join("stasis")).is_ok() {
            return Ok(path);
        }
    }
    let directory = PathBuf::from(format!("/tmp/stasis-{}", geteuid()));
    private_directory(&directory)?;
    Ok(directory.join(file))
}

/// The socket that the running server of `directory` wrote into its lock file, if there is one. It
/// differs from [`socket_path`] when the server was started with another XDG_RUNTIME_DIR.
///
/// In a copy of a store's directory the file tells of the server of the original, which knows nothing of the copy.
#[must_use]
pub fn announced_socket(directory: &Path) -> Option<PathBuf> {
    let mut file = File::open(directory.join(LOCK)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    let mut lines = text.lines().skip(1);
    let socket = lines.next().filter(|line| !line.is_empty()).map(PathBuf::from)?;
    // Earlier servers did not say which file it is.
    let is_original =
        lines.next().is_none_or(|told| file.metadata().is_ok_and(|found| told == identity(&found)));
    is_original.then_some(socket)
}

/// Which file this is, of all that there are on this machine.
#[must_use]
pub fn identity(file: &Metadata) -> String {
    format!("{:x}:{}", file.dev(), file.ino())
}

/// Makes `path` a directory that only this user can enter, or checks that it is one.
///
/// # Errors
/// It cannot be made, is no directory, belongs to another user or is open to others. /tmp is shared:
/// somebody else may have made the name first.
pub fn private_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} is not a directory of uid {} closed to others (mode 0700); remove it, or set XDG_RUNTIME_DIR",
                path.display(),
                geteuid(),
            ),
        ));
    }
    Ok(())
}
