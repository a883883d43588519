//! The coordinator's log: lines on standard error, which is a file beside its socket when it runs in
//! the background. One that has become long is put aside, and the one before it is gone then.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    sync::OnceLock,
};

use nix::{
    sys::stat::fstat,
    unistd::{dup2_stderr, dup2_stdout},
};

use crate::{address::Address, output};

/// In bytes.
const LONGEST: u64 = 1 << 20;

static ADDRESS: OnceLock<Address> = OnceLock::new();

/// Where it is.
pub fn path(address: &Address) -> PathBuf {
    address.beside(".log")
}

/// Opens it to be written to at its end.
///
/// # Errors
/// It cannot be opened, or is a symbolic link: somebody else's, perhaps, in a directory like /tmp.
pub fn open(address: &Address) -> io::Result<File> {
    let path = path(address);
    if path.metadata().is_ok_and(|meta| meta.len() > LONGEST) {
        // One that was faster at this loses nothing.
        let _ = fs::rename(&path, address.beside(".log.old"));
    }
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path)
}

/// Standard error is the log of this address from now on, if it is that file.
pub fn bound(address: &Address) {
    let _ = ADDRESS.set(address.clone());
}

/// Writes one line.
pub fn line(message: fmt::Arguments<'_>) {
    if let Some(address) = ADDRESS.get() {
        keep_short(address);
    }
    // A coordinator whose log cannot be written (disk full) does its work all the same.
    let _ = writeln!(io::stderr(), "{} {message}", output::timestamp(output::now_us()));
}

fn keep_short(address: &Address) {
    let Ok(open_one) = fstat(io::stderr()) else { return };
    if u64::try_from(open_one.st_size).is_ok_and(|len| len <= LONGEST) {
        return;
    }
    // In the foreground it is the user's file, and one that was deleted has no name to be put aside by.
    let is_ours = path(address)
        .metadata()
        .is_ok_and(|meta| (meta.dev(), meta.ino()) == (open_one.st_dev, open_one.st_ino));
    if is_ours && let Ok(log) = open(address) {
        // What cannot be exchanged grows on.
        let _ = dup2_stdout(&log).and_then(|()| dup2_stderr(&log));
    }
}
