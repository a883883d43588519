//! The content-addressed store of checkpoints.
//!
//! A page is named by its keyed blake3 hash and written once, to an append-only *pack*; a process
//! is a Merkle tree of page names (its *manifest*); a checkpoint is one record that names the
//! manifests of all its processes and appears in one atomic, durable step. One server process per
//! store directory ([`server`], the binary `stasis-store`) is the only one that opens the index
//! (RocksDB); everybody else is its [`client`], over a unix socket.
//!
//! What the store assumes of the disk, its formats and how it recovers: `store/README.md`.
//!
//! Not here: what is in a process record (opaque bytes to the store), when to take checkpoints, and
//! how pages come back into a process.

/// Writes a line to standard error, the server's log. Where it cannot be written (the disk is full), the server goes on.
#[cfg(feature = "server")]
macro_rules! log {
    ($($message:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($message)*);
    }};
}

pub mod client;
pub mod hash;
pub mod label;
pub mod location;
pub mod pager;
pub mod read_ahead;
mod stored;
pub mod transport;
pub mod unpack;
pub mod usable;

#[cfg(feature = "server")]
mod catalog;
#[cfg(feature = "server")]
mod difference;
#[cfg(feature = "server")]
mod directory;
#[cfg(feature = "server")]
mod du;
#[cfg(feature = "server")]
mod dump;
#[cfg(feature = "server")]
pub mod error;
#[cfg(feature = "server")]
mod export;
#[cfg(feature = "server")]
pub mod failpoint;
#[cfg(feature = "server")]
mod gc;
#[cfg(feature = "server")]
mod import;
#[cfg(feature = "server")]
mod index;
#[cfg(feature = "server")]
mod lease;
#[cfg(feature = "server")]
mod leaves;
#[cfg(feature = "server")]
pub mod limit;
#[cfg(feature = "server")]
pub mod log;
#[cfg(feature = "server")]
mod manifest;
#[cfg(feature = "server")]
mod names;
#[cfg(feature = "server")]
mod naming;
#[cfg(feature = "server")]
mod nodelog;
#[cfg(feature = "server")]
pub mod pack;
#[cfg(feature = "server")]
mod peers;
#[cfg(feature = "server")]
mod process;
#[cfg(feature = "server")]
mod reference;
#[cfg(feature = "server")]
mod release;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
mod session;
#[cfg(feature = "server")]
mod staging;
#[cfg(feature = "server")]
mod store;
#[cfg(feature = "server")]
pub mod stream;
#[cfg(feature = "server")]
mod verify;
#[cfg(feature = "server")]
mod written;
