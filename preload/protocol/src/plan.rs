//! The plan that `stasis restart` writes and the restorer follows, and what the restored library is
//! told.
//!
//! The plan is one read-only mapping: a [`Header`], then the arrays that it points to. It holds
//! nothing to be decided: every check has been made by who wrote it, and the restorer carries it
//! out in order or ends the process with [`Failure`].

/// The first word of a plan: `STASPLAN`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"STASPLAN");

/// An array in the plan: offset from its start in bytes, and number of elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Array {
    pub offset: u64,
    pub len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u64,
    /// Bytes of the whole plan.
    pub len: u64,
    /// Where the restorer moves itself, its stacks and a copy of the plan: free in the image's
    /// layout, and `area_len` bytes long.
    pub area: u64,
    pub area_len: u64,
    /// Where failures are written: a pipe.
    pub report_fd: u64,
    /// Of [`KernelMapping`], in address order.
    pub kernel_mappings: Array,
    /// Of [`Mapping`], in address order.
    pub mappings: Array,
    /// Of pairs of words: address and length of memory to be given huge pages before it is filled
    /// (madvise(2), MADV_COLLAPSE); 2 MiB aligned, in address order.
    pub huge: Array,
    /// Of [`Fill`].
    pub fills: Array,
    /// A file that begins with the hashes of the pages that fills name, 32 bytes each: the list that the store
    /// server made, not copied into the plan.
    pub hashes_fd: u64,
    /// How many.
    pub hashes: u64,
    /// The key of the hashes.
    pub key: [u8; 32],
    /// Of [`Call`]: made in this order once memory is whole, before any thread is made.
    /// Arguments that are addresses mean the restored memory, unless `relocate` says otherwise.
    pub calls: Array,
    /// Of [`Thread`]: the leader first.
    pub threads: Array,
    /// Of [`Call`]: made by the leader when all threads exist, before it goes on.
    pub last_calls: Array,
    /// Of [`Call`]: made by every thread before it goes on (credentials).
    pub thread_calls: Array,
    /// [`Thread`] of the checkpoint thread, `entry` its own.
    pub checkpoint_thread: Thread,
    /// Where [`RestartInfo`] is written.
    pub restart_info: u64,
    pub info: RestartInfo,
    /// Of bytes: the handover, and whatever calls point to.
    pub data: Array,
    /// Of pairs of words: at the first offset of `data`, the address of the second is written.
    pub pointers: Array,
    /// How many threads fill memory.
    pub fillers: u64,
    /// Of pairs of words: address and length of mappings whose pages the pager brings; in address order.
    pub lazy: Array,
    /// Of pairs of words: address and length of mappings of which it is tracked from here on what is written.
    pub watched: Array,
    /// Of pairs of words: address and length of what of them is as the checkpoint has it; in address order.
    pub unwritten: Array,
    /// Of triples of words: where memory lies that is whole already, where it is to be, its length; in the order of the
    /// first. Nothing of the layout to come is there.
    pub staged: Array,
    /// An open /dev/userfaultfd, where userfaultfd(2) is not for this user; -1: none. The socket to the pager is
    /// [`RestartInfo::pager_fd`].
    pub userfaultfd_device: i64,
    /// Where the tracer gives the threads their ids, since this user may not ask the kernel for them: the connection to it, and
    /// the file whose lock the restart's processes have in turns (`turns.rs` of the restorer). -1: both are none.
    pub tracer_fd: i64,
    pub turns_fd: i64,
    /// Of [`Call`]: made, before the others, by a child that shares this memory and has a user namespace of its own, which gives
    /// it the capability to set /proc/PID/exe. All may fail.
    pub namespaced: Array,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mapping {
    pub start: u64,
    pub len: u64,
    /// The protection while memory is filled; the final one is set by a call.
    pub protection: u32,
    /// mmap(2) flags, without MAP_FIXED_NOREPLACE.
    pub flags: u32,
    /// -1: anonymous.
    pub fd: i32,
    pub _pad: u32,
    pub offset: u64,
}

/// Where one of the kernel's own mappings (`[vvar]`, `[vvar_vclock]`, `[vdso]`) is to lie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelMapping {
    /// Its name as in /proc/self/maps, NUL-padded.
    pub name: [u8; 16],
    pub start: u64,
    pub len: u64,
}

/// Pages read from a pack (or a file) into memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Fill {
    pub address: u64,
    /// Bytes; a multiple of the page size.
    pub len: u64,
    pub fd: i32,
    /// The same file open for reading past the page cache (O_DIRECT); -1: none.
    pub direct: i32,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// The bytes of an LZ4 block there, which holds the pages; 0: they lie there as they are.
    pub stored: u32,
    /// How many pages of the block come before.
    pub skipped: u32,
    /// The index of the first page's hash.
    pub hash: u64,
    /// How many pieces of [`Header::huge`] must have their huge pages first.
    pub huge: u64,
}

/// One system call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    pub nr: u64,
    pub args: [u64; 6],
    /// A bit for each argument that is an offset in `data`, made an address before the call.
    pub relocate: u32,
    /// Whether a failure is no failure.
    pub may_fail: u32,
    /// Where the descriptor that the call gives is to be: one more than its number; 0: it gives none, or anywhere.
    pub onto: u32,
    pub _pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Thread {
    pub tid: u64,
    pub entry: u64,
    pub sp: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub clear_tid: u64,
    /// The thread only exits: a leader after pthread_exit.
    pub exited: u64,
    /// Whether the common calls of threads are not for this one: it has credentials of its own.
    pub own: u64,
    /// Of [`Call`]: made by this thread alone (scheduling, name), before the common ones.
    pub calls: Array,
}

/// What went wrong, written to the report pipe; nothing is written when all went well, and the pipe
/// is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// See [`step`].
    pub step: u64,
    /// The index of the mapping, fill, call or thread.
    pub index: u64,
    pub errno: u64,
    /// The address concerned.
    pub address: u64,
    /// The process that it went wrong in.
    pub pid: u64,
}

/// Values of [`Failure::step`].
pub mod step {
    pub const PLAN: u64 = 1;
    pub const AREA: u64 = 2;
    pub const UNMAP: u64 = 3;
    pub const KERNEL_MAPPING: u64 = 4;
    pub const MAP: u64 = 5;
    pub const FILL: u64 = 6;
    /// A page is not what its hash says.
    pub const CORRUPT: u64 = 7;
    pub const PROTECT: u64 = 8;
    pub const CALL: u64 = 9;
    pub const THREAD: u64 = 10;
    pub const LAST_CALL: u64 = 11;
    pub const THREAD_CALL: u64 = 12;
    /// Memory cannot be left to the pager.
    pub const LAZY: u64 = 13;
}

/// What the restored library finds in its own memory before its checkpoint thread starts.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RestartInfo {
    /// A socket connected to the coordinator, in the checkpoint thread's own table; -1: none.
    pub coordinator_fd: i32,
    /// How many threads will arrive.
    pub threads: u32,
    /// The restorer's area: to be unmapped when all have arrived.
    pub area: u64,
    pub area_len: u64,
    /// The handover (in the area).
    pub handover: u64,
    pub handover_len: u64,
    /// The id of the checkpoint (16 ASCII digits; zeros: none).
    pub checkpoint: [u8; 16],
    /// The address of the coordinator's socket, NUL-padded.
    pub coordinator: [u8; 108],
    /// How many objects the image has.
    pub objects: u32,
    /// The manifest that the process was restored from; zeros: none.
    pub manifest: [u8; 32],
    /// Stop the process again (it stood stopped at the checkpoint).
    pub stopped: u64,
    /// In the checkpoint thread's own table: the socket to the pager, the userfaultfd, the table of pages; -1: all
    /// memory is there.
    pub pager_fd: i32,
    pub userfaultfd: i32,
    pub table_fd: i32,
    /// There, too: the userfaultfd that tracks what is written to memory that is there; -1: none.
    pub watching: i32,
}

impl RestartInfo {
    /// Of a process that was never restarted.
    pub const NONE: Self = Self {
        coordinator_fd: -1,
        threads: 0,
        area: 0,
        area_len: 0,
        handover: 0,
        handover_len: 0,
        checkpoint: [0; 16],
        coordinator: [0; 108],
        objects: 0,
        manifest: [0; 32],
        stopped: 0,
        pager_fd: -1,
        userfaultfd: -1,
        table_fd: -1,
        watching: -1,
    };
}

impl Default for RestartInfo {
    fn default() -> Self {
        Self::NONE
    }
}
