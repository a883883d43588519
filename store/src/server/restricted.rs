//! Connections for processes of other users: of all that can be asked, such a process may only dump itself, once, for
//! the checkpoint that is being taken.
//!
//! The coordinator asks for one ([`Request::Restrict`]) and passes it on, so that nothing depends on whom the socket
//! belongs to. It can be used by whoever gets hold of it, for what the table below says, and not for long: it ends
//! with its dump, with its checkpoint, and with the connection that asked for it.
//!
//! Not here: carrying out what is allowed (`connection`).

use std::{
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use stasis_protocol::store::{DumpStats, Request, StagedRun};

use super::{Shared, connection};
use crate::{hash::PAGE_SIZE, staging::Staging};

/// The largest staging buffer, in bytes: a copy of it is made.
pub const LONGEST_STAGING: u64 = 64 << 20;

/// What a restricted connection is restricted to.
pub struct Restriction {
    token: u64,
    over: AtomicBool,
    stream: Arc<UnixStream>,
}

impl Restriction {
    /// Makes a restricted connection and serves it; returns the end that is to be passed on.
    ///
    /// # Errors
    /// There are no more sockets, threads or connections.
    pub fn begin(shared: &Arc<Shared>, token: u64) -> Result<(Arc<Self>, OwnedFd), String> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| format!("there are no more sockets: {error}"))?;
        let restriction = Arc::new(Self { token, over: AtomicBool::new(false), stream: Arc::new(ours) });
        let served = Arc::clone(&restriction);
        shared.start(move |shared| connection::serve_restricted(shared, &served))?;
        Ok((restriction, theirs.into()))
    }

    pub fn token(&self) -> u64 {
        self.token
    }

    pub fn stream(&self) -> &Arc<UnixStream> {
        &self.stream
    }

    /// Ends the connection. What it has sent and was not read is not carried out.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Why a request is not carried out.
    pub fn refuses(&self, request: &Request) -> Option<String> {
        let what = match request {
            Request::BeginDump { token, base: None, .. } if *token == self.token => return None,
            Request::Staging { len } if *len <= LONGEST_STAGING => return None,
            Request::Pages { .. } | Request::Forget { .. } | Request::EndDump { .. } => return None,
            Request::BeginDump { base: Some(_), .. } => "a dump based on another".into(),
            Request::BeginDump { token, .. } => format!("a dump for the checkpoint {token:#x}"),
            Request::Staging { len } => format!("a staging buffer of {len} bytes"),
            Request::Hello { .. } => "Hello".into(),
            Request::AbortDump => "AbortDump".into(),
            Request::Commit { .. } => "Commit".into(),
            Request::Discard { .. } => "Discard".into(),
            Request::List => "List".into(),
            Request::Resolve { .. } => "Resolve".into(),
            Request::ReadProcess { .. } => "ReadProcess".into(),
            Request::ReadPages { .. } => "ReadPages".into(),
            Request::Verify { .. } => "Verify".into(),
            Request::Usage => "Usage".into(),
            Request::Shutdown => "Shutdown".into(),
            Request::Restrict { .. } => "Restrict".into(),
            Request::Prune { .. } => "Prune".into(),
            Request::Collect { .. } => "Collect".into(),
            Request::DiskUsage => "DiskUsage".into(),
            Request::Diff { .. } => "Diff".into(),
            Request::ReadRecord { .. } => "ReadRecord".into(),
            Request::Export { .. } => "Export".into(),
            Request::Import => "Import".into(),
            Request::KeepWorkingSet { .. } => "KeepWorkingSet".into(),
            Request::ReadWorkingSet { .. } => "ReadWorkingSet".into(),
        };
        Some(format!(
            "{what} is refused on a connection that may only dump one process in full for the checkpoint {:#x}, \
             through a staging buffer of at most {LONGEST_STAGING} bytes; connect as the store's owner",
            self.token
        ))
    }
}

/// What a process of another user may know of its dump: not what the store held before.
pub fn told(stats: DumpStats) -> DumpStats {
    DumpStats { written: 0, bytes: 0, ..stats }
}

/// A copy of what `runs` name of the staging buffer: its content must be what its name is made of, for other
/// checkpoints will rely on it.
///
/// # Errors
/// The runs lie outside of the buffer, or there is no memory.
pub fn copy(staging: &Staging, runs: &[StagedRun]) -> Result<Staging, String> {
    let start = runs.iter().map(|run| run.staging_offset).min().unwrap_or(0);
    let len = |run: &StagedRun| u64::from(run.pages) * PAGE_SIZE as u64;
    let end = runs.iter().map(|run| run.staging_offset.saturating_add(len(run))).max().unwrap_or(0);
    staging.copy(start as usize..end as usize)
}
