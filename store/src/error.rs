//! What can go wrong in a store, each with what it concerns, why, and what can be done.

use std::{io, path::PathBuf};

use stasis_protocol::wire::WireError;

use crate::limit;

/// An error of the store. Its text goes to the client as it is ([`stasis_protocol::store::Reply::Refused`]).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{action} {}: {}", path.display(), limit::explain())]
    TooLarge { action: &'static str, path: PathBuf },
    #[error(
        "the file system of {} is full ({} MiB free, {} MiB kept in reserve): the checkpoint was given up; \
         make room there, or use another store (--store DIR), and take it again",
        directory.display(), free >> 20, reserve >> 20
    )]
    Full { directory: PathBuf, free: u64, reserve: u64 },
    #[error("the index of the store {}: {problem}", directory.display())]
    Index { directory: PathBuf, problem: String },
    #[error("{} is not a store: it holds {found:?} but no FORMAT file; give an empty directory", directory.display())]
    NotAStore { directory: PathBuf, found: String },
    #[error(
        "the store {} has format {found}, this program knows formats up to {known}; use the newer Stasis that wrote it",
        directory.display()
    )]
    NewerFormat { directory: PathBuf, found: u32, known: u32 },
    #[error(
        "the store {} is open in the server with pid {pid}; stop that one first, or talk to it",
        directory.display()
    )]
    Locked { directory: PathBuf, pid: String },
    #[error(
        "the store {} was deleted or moved away while its server (pid {}) had it open; the server ends, and nothing \
         was taken: try again, which makes a store there, or name where it is now (--store DIR)",
        directory.display(), std::process::id()
    )]
    Gone { directory: PathBuf },
    #[error(
        "{} was removed or replaced while the store's server wrote to it: the checkpoint was given up; take it again, which \
         stores all its pages anew, and see `stasis verify` for what else is missing",
        path.display()
    )]
    PackGone { path: PathBuf },
    #[error("{} {problem}; {remedy}", directory.display())]
    Directory { directory: PathBuf, problem: String, remedy: String },
    /// Something in the store is not what it was when it was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The client asked for something that cannot be done.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl StoreError {
    /// For `map_err`: what was being done to which file.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::FileTooLarge => Self::TooLarge { action, path },
            _ => Self::Io { action, path, source },
        }
    }

    /// Whether the disk does not give what is there, or was: it may come back.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    /// Whether the file system or a quota on it had no room.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Bytes as hexadecimal digits, for messages.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
