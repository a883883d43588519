//! Places where the server can be made to die, one behind each durable step.
//!
//! `STASIS_FAILPOINT=pack-synced` kills the server (SIGKILL, as a crash would) when it first comes
//! there; `pack-synced:3` the third time. The tests kill it at each of [`FailPoint::DUMP`] and [`FailPoint::COLLECT`] and look
//! at what the next server finds.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::getpid,
};

/// The environment variable that arms a failpoint.
pub const VARIABLE: &str = "STASIS_FAILPOINT";

/// A durable step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    /// The store's secret is on disk, its format file is not.
    KeyWritten,
    /// A pack file exists; neither its header nor its directory entry is durable.
    PackCreated,
    /// Some pages are written to a pack, no footer names them.
    PagesWritten,
    /// A footer is written, nothing is synced.
    FooterWritten,
    /// The pages of a dump are durable, its process has not been told.
    PackSynced,
    /// Some nodes of a large checkpoint are in the index.
    NodesAnnounced,
    /// The batch that makes a checkpoint is built and not written.
    BatchBuilt,
    /// The batch is durable, nobody has been told.
    BatchWritten,
    /// Some index entries of a committed checkpoint are written, others are not.
    IndexPartial,
    /// All index entries are durable, the packs' records do not say so yet.
    IndexWritten,
    /// The batch that deletes checkpoints is durable, nobody has been told.
    Pruned,
    /// Pages that move are durable in their new pack, whose record does not say so.
    PagesCopied,
    /// The record says so, the index does not.
    PackGrown,
    /// The index says where all pages lie, leaves do not.
    PagesMoved,
    /// Some leaves say so, some garbage is gone.
    NodesPartial,
    /// The records of packs are gone, their files are not.
    PacksForgotten,
    /// Some of the files are gone.
    PacksRemoved,
}

impl FailPoint {
    /// The steps of taking checkpoints.
    pub const DUMP: [Self; 10] = [
        Self::KeyWritten,
        Self::PackCreated,
        Self::PagesWritten,
        Self::FooterWritten,
        Self::PackSynced,
        Self::NodesAnnounced,
        Self::BatchBuilt,
        Self::BatchWritten,
        Self::IndexPartial,
        Self::IndexWritten,
    ];

    /// The steps of giving room back.
    pub const COLLECT: [Self; 7] = [
        Self::Pruned,
        Self::PagesCopied,
        Self::PackGrown,
        Self::PagesMoved,
        Self::NodesPartial,
        Self::PacksForgotten,
        Self::PacksRemoved,
    ];

    /// The name to put into [`VARIABLE`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyWritten => "key-written",
            Self::PackCreated => "pack-created",
            Self::PagesWritten => "pages-written",
            Self::FooterWritten => "footer-written",
            Self::PackSynced => "pack-synced",
            Self::NodesAnnounced => "nodes-announced",
            Self::BatchBuilt => "batch-built",
            Self::BatchWritten => "batch-written",
            Self::IndexPartial => "index-partial",
            Self::IndexWritten => "index-written",
            Self::Pruned => "pruned",
            Self::PagesCopied => "pages-copied",
            Self::PackGrown => "pack-grown",
            Self::PagesMoved => "pages-moved",
            Self::NodesPartial => "nodes-partial",
            Self::PacksForgotten => "packs-forgotten",
            Self::PacksRemoved => "packs-removed",
        }
    }

    /// Dies here if this failpoint is armed and has been reached often enough.
    pub fn hit(self) {
        static ARMED: OnceLock<Option<(FailPoint, AtomicU64)>> = OnceLock::new();
        let armed = ARMED.get_or_init(|| std::env::var(VARIABLE).ok().and_then(|text| parse(&text)));
        if let Some((point, left)) = armed
            && *point == self
            && left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            let _ = kill(getpid(), Signal::SIGKILL);
        }
    }
}

fn parse(text: &str) -> Option<(FailPoint, AtomicU64)> {
    let (name, count) = text.split_once(':').unwrap_or((text, "1"));
    let point = FailPoint::DUMP.into_iter().chain(FailPoint::COLLECT).find(|point| point.name() == name)?;
    Some((point, AtomicU64::new(count.parse().ok()?)))
}
