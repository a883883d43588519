//! The token that a coordinator and those who reach it over TCP share: a file that only its user may read.

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use anyhow::Context as _;

use super::seal;
use crate::failure::Failure;

/// Shorter ones could be found by trying.
const SHORTEST: usize = 16;

/// No token is longer; what is may be another file.
const LONGEST: usize = 4096;

/// The key that a token stands for.
pub struct Token {
    key: [u8; blake3::KEY_LEN],
}

impl Token {
    /// Reads the token in `path`, without the white space at its end, which editors and echo(1) add.
    ///
    /// # Errors
    /// [`Failure::Refused`] when the file cannot be read, is no file, is not the user's own and only the user's, or is
    /// too short or too long.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let refuse = |reason: String, remedy: &str| {
            Failure::refused(format!("the token file {}", path.display()), reason, remedy)
        };
        // A FIFO would be waited for, and is refused below.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        let opened = opened.and_then(|file| Ok((file.metadata()?, file)));
        let (meta, file) = opened.map_err(|error| {
            refuse(
                format!("it cannot be read: {error}"),
                "`stasis coordinator --listen` makes one where there is none; copy that",
            )
        })?;
        if !meta.is_file() {
            return Err(refuse("it is no regular file".into(), "name another one with --token-file"));
        }
        let uid = nix::unistd::geteuid().as_raw();
        if meta.uid() != uid {
            return Err(refuse(
                format!("it belongs to uid {} and this is uid {uid}", meta.uid()),
                "copy it to a file of your own",
            ));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(refuse(
                format!("others may use it (mode {:04o})", meta.mode() & 0o7777),
                "chmod 600, and another token if somebody else may have read it",
            ));
        }
        let mut content = Vec::new();
        file.take(LONGEST as u64 + 1).read_to_end(&mut content).map_err(|error| {
            refuse(format!("it cannot be read: {error}"), "name another one with --token-file")
        })?;
        let content = content.trim_ascii_end();
        if !(SHORTEST..=LONGEST).contains(&content.len()) {
            return Err(refuse(
                format!("a token has {SHORTEST} to {LONGEST} bytes, and it has {}", content.len()),
                "remove it: `stasis coordinator --listen` makes a new one",
            ));
        }
        Ok(Self::of(content))
    }

    pub fn of(content: &[u8]) -> Self {
        Self { key: blake3::derive_key("stasis coordinator over tcp, token 1", content) }
    }

    pub fn key(&self) -> &[u8; blake3::KEY_LEN] {
        &self.key
    }
}

/// Makes a token of 256 random bits, in hexadecimal digits, where there is no file.
///
/// # Errors
/// Why it could not be made.
pub fn make_where_missing(path: &Path) -> anyhow::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let cannot = || format!("cannot make the token file {}", path.display());
    let mut text = String::new();
    for byte in seal::nonce().context("/dev/urandom")? {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    // Complete from the moment on in which it is there, and only its user's (0600).
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(directory).with_context(cannot)?;
    file.write_all(text.as_bytes()).with_context(cannot)?;
    match file.persist_noclobber(path) {
        // Somebody else was faster, and that one counts.
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error.error).with_context(cannot)
        }
        _ => Ok(()),
    }
}
