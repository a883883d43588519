//! Messages between the store server and those who write checkpoints (the checkpoint threads, the
//! coordinator) or read them (`stasis list`, `show`, `restart`...).
//!
//! A connection opens with [`Request::Hello`]. A process dumps itself with `BeginDump`, `Staging`
//! (the staging memfd travels beside it as SCM_RIGHTS), any number of `Pages` and `EndDump`; page
//! data is never in a message but in the staging buffer. The coordinator, once every process has
//! been told [`Reply::Dumped`], sends `Commit`: only then does a checkpoint exist.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

/// A blake3 hash keyed with the store's secret.
pub type Hash = [u8; 32];

/// The address space that pages belong to: the memory of the process (0), or one of the image's
/// objects (its id, see [`crate::image::Object`]), whose pages are counted from its first byte.
pub type Space = u32;

/// The process' own memory.
pub const MEMORY: Space = 0;

/// Pages that lie one after the other in a space and in the staging buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRun {
    pub space: Space,
    /// Address (or offset in the object) divided by the page size.
    pub first_page: u64,
    pub pages: u32,
    /// Where the first page lies in the staging buffer, in bytes; a multiple of the page size.
    pub staging_offset: u64,
}

/// Pages of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange {
    pub space: Space,
    pub first_page: u64,
    pub pages: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Hello {
        version: u32,
    },
    /// Starts (or starts over) the dump of one process for the checkpoint `token`.
    BeginDump {
        /// Names the checkpoint while it is being taken; chosen by the coordinator.
        token: u64,
        pid: u32,
        /// The manifest that unchanged pages are taken from; `None`: the dump is full. Where one is named, answered by
        /// [`Reply::Begun`].
        base: Option<Hash>,
    },
    /// The staging buffer: a memfd of `len` bytes, sent beside this message.
    Staging {
        len: u64,
    },
    /// Takes pages out of the staging buffer. A page given twice: the later one counts.
    /// Answered by [`Reply::Released`] as soon as the staging buffer may be written again.
    Pages {
        runs: Vec<StagedRun>,
    },
    /// These pages, of the base or given before, are holes now. Not answered.
    Forget {
        ranges: Vec<PageRange>,
    },
    /// The dump is whole. Answered by [`Reply::Dumped`] once its pages are durable.
    EndDump {
        /// The encoded [`crate::image::ProcessImage`].
        record: Vec<u8>,
    },
    /// Forgets the dump of this connection. Not answered.
    AbortDump,
    /// Makes a checkpoint of the dumps made under `token`: durable when answered by
    /// [`Reply::Committed`].
    Commit {
        token: u64,
        draft: CheckpointDraft,
    },
    /// Forgets every dump made under `token`. Answered by [`Reply::Done`].
    Discard {
        token: u64,
    },
    /// All checkpoints, oldest first: [`Reply::Checkpoints`].
    List,
    /// The checkpoint that a reference names (an id, a unique prefix of one, a label, `latest`,
    /// each with an optional `~N`): [`Reply::Checkpoint`].
    Resolve {
        reference: String,
    },
    /// A dumped process, by its manifest: [`Reply::Process`]. The packs that it tells of stay where they are
    /// until the connection ends, or asks for something that is not another process.
    ReadProcess {
        manifest: Hash,
        /// Memory, in pages and in address order, each range to the page behind the last: where there is much in it, that is
        /// only told of, and [`Request::ReadPages`] lists it.
        may_wait: Vec<(u64, u64)>,
    },
    /// The pages of a dumped process' memory from one on, up to another: [`Reply::Pages`]. The packs stay where they are
    /// as with `ReadProcess`.
    ReadPages {
        manifest: Hash,
        first_page: u64,
        end_page: u64,
    },
    /// Reads every page of a checkpoint (`None`: of all) against its hash: [`Reply::Verified`].
    Verify {
        id: Option<String>,
    },
    /// Sizes: [`Reply::Usage`].
    Usage,
    /// Ends the server once nothing is being written. Answered by [`Reply::Done`].
    Shutdown,
    /// Makes a connection that can do nothing but dump one process for the checkpoint `token`, for a process of
    /// another user: no hello, no base, no other request. It ends with its dump, when `token` is committed or
    /// discarded by this connection, and with this connection. Answered by [`Reply::Restricted`].
    Restrict {
        token: u64,
    },
    /// Deletes the checkpoints with these ids, all at once; ids that are not there are passed over:
    /// [`Reply::Pruned`].
    Prune {
        ids: Vec<String>,
    },
    /// Gives back the room of what no checkpoint needs: [`Reply::Collected`].
    Collect {
        /// Compresses what has not been, too, where that pays.
        compress: bool,
    },
    /// How much room each checkpoint takes: [`Reply::DiskUsage`].
    DiskUsage,
    /// What differs between two dumped processes, by their manifests: [`Reply::Differences`].
    Diff {
        from: Hash,
        to: Hash,
    },
    /// The record of a dumped process alone: [`Reply::Record`].
    ReadRecord {
        manifest: Hash,
    },
    /// Writes checkpoints to the file or pipe that travels beside this message: [`Reply::Exported`].
    Export {
        references: Vec<String>,
    },
    /// Reads checkpoints from the file or pipe that travels beside this message: [`Reply::Imported`].
    Import,
    /// Keeps what a process touched first after it was restarted from a checkpoint, in place of what was kept before.
    /// Answered by [`Reply::Done`], also where there is no such checkpoint any more.
    KeepWorkingSet {
        checkpoint: String,
        /// The pid that the process knows itself by.
        pid: u32,
        set: WorkingSet,
    },
    /// What was kept for a process of a checkpoint, or else of the nearest checkpoint that led to it:
    /// [`Reply::WorkingSet`].
    ReadWorkingSet {
        checkpoint: String,
        pid: u32,
    },
}

/// Runs of pages of the process' memory, in the order in which they were touched first: for each, how far it begins behind
/// the first page of the one before (of page 0), and how many pages it has.
pub type WorkingSet = Vec<(i64, u32)>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Welcome {
        version: u32,
        server_pid: u32,
    },
    /// Answers `BeginDump`: whether the base is there. Where it is not (it was pruned), the dump is full.
    Begun {
        base: bool,
    },
    Released,
    Dumped {
        manifest: Hash,
        stats: DumpStats,
    },
    Committed(CheckpointRecord),
    Done,
    Checkpoints(Vec<CheckpointRecord>),
    Checkpoint(CheckpointRecord),
    /// Answers `ReadProcess`; a read-only memfd with the hashes and extents travels beside it: first
    /// `pages` hashes of 32 bytes, in the order of the extents, then `extents` values of [`Extent`], as laid
    /// out by `repr(C)`. Extents are sorted by space and first page and do not overlap.
    Process {
        /// The key that page hashes are made with.
        key: [u8; 32],
        /// The store's directory; pack N is `packs/{N:08x}.pack` in it.
        directory: String,
        extents: u64,
        pages: u64,
        /// What of its memory is not listed: each from a page to the one behind the last, in address order.
        later: Vec<(u64, u64)>,
        /// How many pages that are.
        later_pages: u64,
    },
    /// Answers `ReadPages`; a memfd as with `Process` travels beside it.
    Pages {
        extents: u64,
        pages: u64,
    },
    Verified {
        pages: u64,
        /// How many pages and nodes are damaged.
        damaged: u64,
        /// One line for each, as far as there is room: what is damaged and which checkpoints it touches.
        damage: Vec<String>,
        /// The same in short: one line for what of a pack the same checkpoints need.
        summary: Vec<String>,
    },
    Usage(Usage),
    /// Answers `Restrict`; the other end of the new connection travels beside it.
    Restricted,
    /// The request failed; the connection goes on. What it concerns, the reason and the remedy.
    Refused(String),
    /// The checkpoints that are deleted, oldest first.
    Pruned(Vec<CheckpointRecord>),
    Collected(Collected),
    DiskUsage(DiskUsage),
    /// By space and first page.
    Differences(Vec<Difference>),
    /// The encoded [`crate::image::ProcessImage`].
    Record(Vec<u8>),
    Exported(Exported),
    Imported(Imported),
    /// Empty: nothing is known.
    WorkingSet(WorkingSet),
}

/// What was written to a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    pub checkpoints: u64,
    pub pages: u64,
    /// The length of the stream.
    pub bytes: u64,
}

/// What was read from a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Those that were not there, in the order of the stream.
    pub checkpoints: Vec<CheckpointRecord>,
    /// How many were there already.
    pub known: u64,
    /// Pages in the stream.
    pub pages: u64,
    /// Of those, not there before, hence written.
    pub written: u64,
}

/// All in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Pages of all checkpoints, counted as often as they are named.
    pub logical: u64,
    /// Of those, once each and without pages of zeros.
    pub distinct: u64,
    /// Pages in packs, needed or not.
    pub stored: u64,
    /// On disk.
    pub packs: u64,
    /// On disk.
    pub index: u64,
    /// Of `stored`, what lies in packs whose pages are compressed where that pays.
    pub compressed: u64,
    /// What those packs take on the disk.
    pub compressed_packs: u64,
    /// Oldest first.
    pub checkpoints: Vec<CheckpointUsage>,
}

/// As in [`DiskUsage`], for one checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointUsage {
    pub id: String,
    pub logical: u64,
    pub distinct: u64,
    /// Pages that no other checkpoint needs.
    pub own: u64,
    /// What those take on the disk.
    pub own_on_disk: u64,
}

/// Pages one after the other that differ between two dumped processes in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub space: Space,
    pub first_page: u64,
    pub pages: u64,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Only in the second.
    Added,
    /// Only in the first.
    Removed,
    Changed,
}

/// What a collection of garbage has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Packs without a page that was needed.
    pub packs_removed: u64,
    /// Packs whose needed pages were copied elsewhere.
    pub packs_compacted: u64,
    pub pages_moved: u64,
    /// Nodes of manifests.
    pub nodes_removed: u64,
    /// Packs that were compressed.
    pub packs_compressed: u64,
    /// Bytes of pages in them, and of what else was copied and compressed.
    pub compressed_from: u64,
    /// What that became.
    pub compressed_to: u64,
    /// Bytes of packs that were given back, less what was copied.
    pub freed: u64,
    /// Some files go only when a restart under way has opened them.
    pub waiting: bool,
    /// Packs that should have been compacted and were not: which, why, the remedy.
    pub left: Vec<String>,
}

/// How a page lies in its pack.
pub mod kind {
    /// 4096 bytes, page-aligned.
    pub const RAW: u32 = 0;
    /// A page of zeros; nothing is stored.
    pub const ZERO: u32 = 1;
    /// One of up to [`BLOCK_PAGES`](super::BLOCK_PAGES) pages that are compressed together, as one LZ4 block.
    pub const LZ4: u32 = 2;
}

/// The most pages that are compressed together.
pub const BLOCK_PAGES: usize = 16;

/// The most bytes that compressed pages take: they would else lie raw.
pub const BLOCK: usize = BLOCK_PAGES * crate::PAGE_SIZE;

/// Pages that lie one after the other in a space and in a pack. All numbers come from a file, and whoever reads the pages
/// takes them for hostile.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub space: Space,
    /// See [`kind`].
    pub kind: u32,
    pub first_page: u64,
    pub pages: u64,
    /// The pack's number; 0 where nothing is stored.
    pub pack: u64,
    /// Where the first page lies in the pack, in bytes; of compressed pages, where the block does.
    pub offset: u64,
    /// The bytes of the block; 0 where pages are not compressed.
    pub stored: u32,
    /// How many pages of the block come before the first.
    pub skipped: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpStats {
    /// Pages that the dump names.
    pub pages: u64,
    /// Of those, handed over for this checkpoint (the rest came from the base).
    pub received: u64,
    /// Of those, not known before, hence written. A connection that is restricted is told 0, here and in `bytes`:
    /// else it would learn what else the store holds. What is committed has the true numbers.
    pub written: u64,
    /// Of those handed over, all zero.
    pub zero: u64,
    /// Bytes written to packs.
    pub bytes: u64,
}

/// What the coordinator knows of a checkpoint that is to be committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointDraft {
    /// Names the computation; stays the same over restarts.
    pub computation: String,
    /// The checkpoint that the computation went on from: the last one taken, or the one restarted.
    pub parent: Option<String>,
    pub label: Option<String>,
    pub host: String,
    /// The longest time that any thread stood still, in microseconds.
    pub pause_us: u64,
    /// The first is the one that was launched, or of those that are left the one that joined first.
    pub processes: Vec<ProcessEntry>,
    /// Open file descriptions that several processes share: for each, its descriptors.
    pub shared: Vec<Vec<SharedDescriptor>>,
}

/// A descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedDescriptor {
    pub pid: u32,
    pub fd: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// The pid that the program knows itself by.
    pub pid: u32,
    /// The command line, for people.
    pub command: String,
    pub manifest: Hash,
    pub stats: DumpStats,
    /// How changed pages were found: `full`, `wp-async`, `soft-dirty`, `hash`.
    pub tracker: String,
}

/// A checkpoint, as committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// 16 hexadecimal digits, unique in the world for all practical purposes.
    pub id: String,
    /// Counts the checkpoints of this store, from 1.
    pub sequence: u64,
    /// When it was committed, in microseconds since 1970 (CLOCK_REALTIME).
    pub taken_us: u64,
    pub draft: CheckpointDraft,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub checkpoints: u64,
    /// Bytes of all pages of all checkpoints, counted as often as they are named.
    pub logical: u64,
    /// Bytes of distinct pages.
    pub unique: u64,
    /// Bytes of the packs and the index on disk.
    pub on_disk: u64,
}
