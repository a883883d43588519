//! The server's log, which is its standard output and error in the background.
//!
//! Not here: what is written to it (`log!`).

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::{
    sys::stat::fstat,
    unistd::{dup2_stderr, dup2_stdout},
};

use crate::usable::{LOG, OLD_LOG};

/// In bytes; then another one is begun, and one is kept.
const LONGEST: u64 = 1 << 20;

/// Writes to the log in `directory` from now on.
///
/// # Errors
/// It cannot be opened.
pub fn begin(directory: &Path) -> io::Result<()> {
    let path = directory.join(LOG);
    if path.metadata().is_ok_and(|meta| meta.len() > LONGEST) {
        fs::rename(&path, directory.join(OLD_LOG))?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    dup2_stdout(&log)?;
    dup2_stderr(&log)?;
    Ok(())
}

/// Begins another one where it has become too long; does nothing in the foreground.
pub(crate) fn bound(directory: &Path) {
    let Ok(open) = fstat(io::stderr()) else { return };
    if u64::try_from(open.st_size).is_ok_and(|len| len <= LONGEST) {
        return;
    }
    // The one that is open may be of a directory that was deleted, or somebody's file.
    let is_ours = directory
        .join(LOG)
        .metadata()
        .is_ok_and(|meta| (meta.dev(), meta.ino()) == (open.st_dev, open.st_ino));
    if is_ours {
        // What cannot be renamed grows on.
        let _ = begin(directory);
    }
}
