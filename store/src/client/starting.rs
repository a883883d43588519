//! Of several clients that find no server, one starts it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::location::socket_path;

/// The right to start a server, by a file that is locked and is there only meanwhile. It lies beside the socket, because
/// the directory may turn out to be none of ours.
pub(super) struct Starting {
    path: PathBuf,
    /// Locked.
    _file: File,
}

impl Starting {
    /// Waits for it.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn take(directory: &Path) -> io::Result<Self> {
        let path = socket_path(directory)?.with_extension("starting");
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            file.lock()?;
            // Who had it has removed it.
            let held = file.metadata()?;
            if fs::metadata(&path).is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
