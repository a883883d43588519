//! The record of one process in a checkpoint: all that is not page data.
//!
//! It is written by the checkpoint thread, kept by the store as bytes, and read by `stasis restart`,
//! which must take every number in it for hostile input. State that the restored library puts back
//! by itself, from its own memory (signal actions, timers, thread names...), is not here.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

/// The version of this record, checked before anything else of it is read.
pub const IMAGE_VERSION: u32 = 15;

/// Descriptors that are on their way to a process are numbered from here on, by their places in the checkpoint thread's table. No
/// process gets so far by itself: its table would take 8 GiB (fs.nr_open is a thousandth of it).
pub const IN_FLIGHT: i32 = 1 << 30;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessImage {
    /// [`IMAGE_VERSION`]; the first field, so that it can be read from an image of any version.
    pub version: u32,
    pub machine: Machine,
    pub ids: Ids,
    pub argv: Vec<String>,
    pub exe: FileIdentity,
    pub cwd: String,
    pub umask: u32,
    pub layout: Layout,
    pub mappings: Vec<Mapping>,
    /// Files, memory and queues whose content is in this checkpoint.
    pub objects: Vec<Object>,
    /// System V semaphores and message queues of the computation, each in one of its processes.
    pub system_v: Vec<SystemVContent>,
    /// What the end of this process would add to semaphores (semop(2), SEM_UNDO).
    pub undo: Vec<SemaphoreUndo>,
    pub descriptions: Vec<Description>,
    pub descriptors: Vec<Descriptor>,
    /// Those that come with messages which it has not read (SCM_RIGHTS, unix(7)), by numbers from [`IN_FLIGHT`] on.
    pub in_flight: Vec<Descriptor>,
    pub threads: Vec<Thread>,
    /// Children that have ended and were not waited for.
    pub zombies: Vec<Zombie>,
    pub credentials: Credentials,
    pub limits: Vec<Limit>,
    pub settings: Settings,
    pub resume: Resume,
    /// What the library keeps for its restarted self; handed back by [`crate::plan::RestartInfo`].
    pub handover: Vec<u8>,
}

/// What the image needs of the machine it is restored on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `uname -r`, for messages.
    pub kernel: String,
    /// XCR0: the register sets that a signal frame of this process may hold (Intel SDM 1, 13.3).
    pub xcr0: u64,
    /// The size in bytes of the extended state in a signal frame (CPUID 0xD, EBX).
    pub xsave_size: u32,
    /// Where in it each register set of XCR0 behind SSE's begins, in bytes (CPUID 0xD, EBX of each): processors of different
    /// makers differ.
    pub xsave_offsets: Vec<(u32, u32)>,
    /// CPUID 1 (ECX, EDX), 7.0 (EBX, ECX, EDX) and 7.1 (EAX): instructions the program may have
    /// chosen by these bits.
    pub cpuid: [u32; 6],
    /// The size in bytes and a checksum (FNV-1a, 64 bit) of the vDSO.
    pub vdso_len: u64,
    pub vdso_sum: u64,
    /// A checksum of the boot id and the pid namespace: where it is the same, ids go on from what they were.
    pub counts_ids: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// What the kernel had given last in the pid namespace (ns_last_pid): the program may remember any id up to here, of those that
    /// have ended as well.
    pub last: i32,
}

/// A process that has ended and whose parent has not waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    pub pid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// What waitpid(2) is to tell of it.
    pub status: i32,
}

/// A file, and what tells that it is still the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    pub path: String,
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime_ns: i64,
    /// st_mode: the type and the permissions.
    pub mode: u32,
}

/// prctl(2), PR_SET_MM_MAP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    pub auxv: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// PROT_READ | PROT_WRITE | PROT_EXEC.
    pub protection: u32,
    pub shared: bool,
    /// Where in the backing the mapping starts, in bytes.
    pub offset: u64,
    pub backing: Backing,
    /// See [`flag`].
    pub flags: u32,
    /// Ranges of the mapping that are guard regions (madvise(2), MADV_GUARD_INSTALL).
    pub guards: Vec<(u64, u64)>,
    /// The name given by PR_SET_VMA_ANON_NAME.
    pub name: Option<String>,
    /// pkeys(7); 0: the one that all memory has.
    pub protection_key: u8,
}

/// Of [`Mapping::flags`]: VmFlags in proc(5), smaps.
pub mod flag {
    pub const GROWSDOWN: u32 = 1 << 0;
    pub const LOCKED: u32 = 1 << 1;
    pub const NORESERVE: u32 = 1 << 2;
    pub const DONTFORK: u32 = 1 << 3;
    pub const DONTDUMP: u32 = 1 << 4;
    pub const WIPEONFORK: u32 = 1 << 5;
    pub const HUGEPAGE: u32 = 1 << 6;
    pub const NOHUGEPAGE: u32 = 1 << 7;
    pub const MERGEABLE: u32 = 1 << 8;
    pub const SEQUENTIAL: u32 = 1 << 9;
    pub const RANDOM: u32 = 1 << 10;
    pub const HUGETLB: u32 = 1 << 11;
    /// It may be made writable (mprotect(2)), whether it is now or not.
    pub const MAY_WRITE: u32 = 1 << 12;
    /// Locked as it is touched (mlock2(2), MLOCK_ONFAULT).
    pub const LOCK_ON_FAULT: u32 = 1 << 13;
    /// mseal(2).
    pub const SEALED: u32 = 1 << 14;
    /// MAP_DROPPABLE.
    pub const DROPPABLE: u32 = 1 << 15;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    Anonymous,
    /// A file that is reopened and must be what it was.
    File(FileIdentity),
    /// An object of this image, by its id.
    Object(u32),
    /// `[vdso]`, `[vvar]`, `[vvar_vclock]`: moved into place. The pages of `[vdso]` are in the checkpoint all the same, for
    /// a kernel with another one.
    Kernel(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Also the [`crate::store::Space`] of its pages; from 1.
    pub id: u32,
    pub kind: ObjectKind,
    /// Bytes.
    pub size: u64,
    pub mode: u32,
    /// Names the object among all of the computation: processes that share it say the same.
    pub key: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// Anonymous shared memory (MAP_SHARED | MAP_ANONYMOUS).
    SharedMemory,
    Memfd {
        name: String,
        /// F_GET_SEALS.
        seals: u32,
        hugetlb: bool,
    },
    /// A deleted file (or O_TMPFILE), by the path it had.
    DeletedFile { path: String },
    /// A file with a name, of which shared memory is made: its content is put back.
    File {
        file: FileIdentity,
        /// It lies in memory (tmpfs): nobody expects it to outlive its users.
        memory: bool,
    },
    /// A System V shared memory segment.
    Segment {
        of: SystemV,
        /// It was to go away when nobody has it attached any more (shmctl(2), IPC_RMID).
        removed: bool,
        /// The process that made it (shm_cpid); 0: outside of the pid namespace.
        creator: i32,
    },
}

/// What System V objects have in common (sysvipc(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemV {
    pub id: i32,
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    /// Who made it.
    pub creator_uid: u32,
    pub creator_gid: u32,
    /// Permissions, and SHM_LOCKED.
    pub mode: u32,
    /// The time of the last change, in seconds.
    pub changed: i64,
}

/// A System V object and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemVContent {
    Semaphores {
        of: SystemV,
        values: Vec<u16>,
        /// The process that used each of them last (semctl(2), GETPID); 0: nobody.
        users: Vec<i32>,
    },
    Messages {
        of: SystemV,
        /// How many bytes may wait (msg_qbytes).
        most: u64,
        /// Type and text; the first to be received first.
        messages: Vec<(i64, Vec<u8>)>,
        /// The processes that sent and received last (msg_lspid, msg_lrpid); 0: nobody.
        sender: i32,
        receiver: i32,
    },
}

/// An adjustment of a semaphore that the kernel makes when a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreUndo {
    pub id: i32,
    pub number: u16,
    pub adjustment: i32,
}

/// An open file description (open(2)): descriptors that were duplicated share one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// O_* flags as F_GETFL reports them, access mode included.
    pub flags: u32,
    /// The file offset.
    pub offset: u64,
    /// F_GETOWN_EX type and id, and F_GETSIG.
    pub owner: Option<(i32, i32)>,
    pub signal: i32,
    /// flock(2): LOCK_SH or LOCK_EX.
    pub flock: Option<i32>,
    /// Open-file-description locks (F_OFD_SETLK): type, start, length.
    pub ofd_locks: Vec<(i32, u64, u64)>,
    /// F_SETLEASE: F_RDLCK or F_WRLCK.
    pub lease: Option<i32>,
    pub kind: DescriptionKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DescriptionKind {
    Regular {
        file: FileIdentity,
        /// POSIX record locks (F_SETLK) of the process: type, start, length.
        locks: Vec<(i32, u64, u64)>,
    },
    Directory {
        file: FileIdentity,
    },
    /// /dev/null, /dev/urandom...: reopened by path.
    CharacterDevice {
        path: String,
        rdev: u64,
    },
    /// A terminal: the other side of a [`DescriptionKind::Pseudoterminal`] of the computation, or else attached to the one
    /// of `stasis restart`.
    Terminal {
        path: String,
        /// Names the pseudo-terminal; 0: it is none.
        pty: u64,
        /// The master side was closed: nothing can be read or written any more.
        hung_up: bool,
        /// It was the controlling terminal.
        controlling: bool,
        /// struct termios, as TCGETS gave it.
        termios: Vec<u8>,
        winsize: Vec<u8>,
    },
    /// The master side of a pseudo-terminal.
    Pseudoterminal {
        /// Names it: both sides say the same.
        pty: u64,
        /// The number in the name of the other side, `/dev/pts/N`.
        index: u32,
        /// st_dev of that file.
        file_system: u64,
        /// The other side: its modes (struct termios) and its size (struct winsize), and whether it may be opened (TIOCSPTLCK).
        termios: Vec<u8>,
        winsize: Vec<u8>,
        locked: bool,
        /// TIOCPKT.
        packet: bool,
        /// The other side: user, group and permissions of its file.
        owner: (u32, u32, u32),
        slave: Slave,
        /// What waits in it, of the process that copied it.
        queues: Option<TerminalQueues>,
    },
    /// One end of a pipe or FIFO. Where no process of the checkpoint has the other and it was not closed, it is outside: what
    /// `stasis restart` has at this number takes its place.
    Pipe {
        /// Names the pipe; both ends say the same.
        pipe: u64,
        write: bool,
        /// Nobody had the other end any more.
        other_closed: bool,
        /// Of a FIFO that is open for reading: nobody has opened it for writing yet. It has not ended for that.
        unopened: bool,
        /// F_GETPIPE_SZ.
        capacity: u32,
        /// What sits in the pipe, of the first description of it in each process; oldest byte first.
        content: Vec<u8>,
        /// O_DIRECT packets: their lengths.
        packets: Vec<u32>,
        /// Where it has, or had, a name.
        fifo: Option<Fifo>,
    },
    /// Something whose other end is outside, inherited on descriptor 0, 1 or 2: taken from
    /// `stasis restart`, which has one in the same place.
    Inherited {
        fd: i32,
        what: String,
    },
    Event {
        count: u64,
        semaphore: bool,
    },
    Timer {
        clock: i32,
        settime_flags: i32,
        /// Nanoseconds until it expires (0: disarmed), and its period.
        value_ns: u64,
        /// When it expires, in nanoseconds of its clock, for a timer of absolute time (TFD_TIMER_ABSTIME) on a clock
        /// that goes on when the machine does not (CLOCK_REALTIME): it does not move. 0 for others.
        deadline_ns: u64,
        interval_ns: u64,
        /// Expirations not read yet.
        ticks: u64,
    },
    Signal {
        /// The mask, as the kernel prints it in fdinfo.
        mask: u64,
    },
    Epoll {
        targets: Vec<EpollTarget>,
    },
    Inotify {
        watches: Vec<InotifyWatch>,
        /// Events wait to be read, which the library keeps: one stands for them in the queue.
        events_wait: bool,
    },
    Object {
        /// The id of the object.
        object: u32,
        /// Whether it is a memfd rather than a deleted file.
        memfd: bool,
        /// POSIX record locks, as in `Regular`.
        locks: Vec<(i32, u64, u64)>,
    },
    /// One of two sockets that are connected: unix sockets, or TCP. Where no process of the checkpoint has the other and it
    /// was not closed, it is outside, as for a pipe.
    SocketPair {
        /// Names the pair: both ends say the same.
        pair: u64,
        /// Nobody had the other end any more.
        other_closed: bool,
        /// An error waits to be told: the connection was reset.
        reset: bool,
        domain: i32,
        /// struct sockaddr of this end, as getsockname(2) gave it; empty when it has no name.
        local: Vec<u8>,
        /// struct sockaddr of the other end of a TCP connection; empty when that has ended.
        peer: Vec<u8>,
        /// SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET.
        socket_type: i32,
        /// What this end has not read yet; one entry per datagram or packet. For streams one in all, or one for each sender.
        received: Vec<Vec<u8>>,
        /// Who sent each of them, where a unix socket asks for that (SO_PASSCRED); else empty.
        senders: Vec<Option<Sender>>,
        /// The descriptions ([`ProcessImage::descriptions`]) that come with each of them; empty where none comes with any.
        rights: Vec<Vec<u32>>,
        /// How much of its send buffer what the other end has not read takes, in the kernel's own count (SIOCOUTQ).
        charged: u32,
        shutdown_read: bool,
        shutdown_write: bool,
        /// Whose the other end of a unix socket is.
        peer_is: Option<Peer>,
        /// Where a unix socket with a path is in the file system; `None`: nowhere any more.
        file: Option<SocketFile>,
        options: Vec<SocketOption>,
    },
    /// A socket bound and perhaps listening, re-made at restart.
    Socket {
        domain: i32,
        socket_type: i32,
        protocol: i32,
        /// struct sockaddr as getsockname(2) gave it; empty when not bound.
        local: Vec<u8>,
        /// struct sockaddr that a datagram socket is connected to, or that one of TCP is being connected to; empty when it is
        /// not.
        peer: Vec<u8>,
        /// listen(2)'s backlog.
        backlog: Option<i32>,
        /// The connections ([`DescriptionKind::SocketPair`]) that wait to be accepted, the first to be accepted first.
        waiting: Vec<u64>,
        /// Datagrams that have not been read.
        received: Vec<Datagram>,
        /// Of TCP: it could not be connected, which may be tried again; whether that waits to be told.
        refused: Option<bool>,
        /// Who listens at a unix socket, as those who connect to it are told.
        listener_is: Option<Peer>,
        /// As of `SocketPair`.
        file: Option<SocketFile>,
        options: Vec<SocketOption>,
    },
    /// A POSIX message queue.
    MessageQueue {
        /// Names the queue: all who have it say the same.
        queue: u64,
        name: String,
        /// It has no name any more (mq_unlink(3)).
        unlinked: bool,
        mode: u32,
        /// How many messages may wait, and how long each may be in bytes.
        most: u64,
        size: u64,
        /// Priority and text, the first to be received first; of one process that has it.
        messages: Vec<(u32, Vec<u8>)>,
    },
    /// A location only, not open for reading or writing (O_PATH).
    Path {
        file: FileIdentity,
    },
    /// A pidfd.
    Process {
        /// Of the process; -1: it has ended, and was waited for.
        id: i32,
        /// It is a thread's (PIDFD_THREAD).
        thread: bool,
    },
}

/// Whether the other side of a master is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slave {
    /// It was never open: who reads from the master waits.
    Unopened,
    Open,
    /// Nobody has it any more: who reads from the master gets an error.
    Closed,
}

/// What waits in a pseudo-terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalQueues {
    /// Lines that can be read; an empty one is an end of file.
    pub lines: Vec<Vec<u8>>,
    /// The unfinished line, or what can be read from a terminal without lines.
    pub rest: Vec<u8>,
    /// What the master has not read.
    pub output: Vec<u8>,
    /// What the master will be told of the other side (packet mode).
    pub status: u8,
    /// How output was stopped: 1 by a character, 2 by a call; 0: it was not.
    pub stopped: u8,
    /// TIOCEXCL.
    pub exclusive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// struct sockaddr of the sender; empty when it had no name.
    pub from: Vec<u8>,
    /// As of `SocketPair`.
    pub sender: Option<Sender>,
    pub bytes: Vec<u8>,
    /// The descriptions that come with it.
    pub rights: Vec<u32>,
}

/// What the kernel tells one end of a unix connection of who made the other (SO_PEERCRED, SO_PEERGROUPS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// 0: outside of the pid namespace.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// SCM_CREDENTIALS (unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// 0: outside of the pid namespace.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// The file of a unix socket: it may have been renamed since, and belong to somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    pub path: String,
    /// `None` where the program may not look at it any more.
    pub rights: Option<FileRights>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRights {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fifo {
    pub path: String,
    /// That is gone: nobody else can open it.
    pub deleted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollTarget {
    /// The descriptor number it was added by.
    pub fd: i32,
    /// What it watches: an index into [`ProcessImage::descriptions`]. `None`: another process, which has the epoll as well, has
    /// what it watches.
    pub description: Option<u32>,
    pub events: u32,
    pub data: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    pub wd: i32,
    pub path: String,
    pub mask: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    pub fd: i32,
    /// Index into [`ProcessImage::descriptions`].
    pub description: u32,
    pub close_on_exec: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: i32,
    /// The stack pointer that it is resumed with, inside the stop handler.
    pub resume_sp: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// set_tid_address(2), as PR_GET_TID_ADDRESS tells.
    pub clear_tid: u64,
    pub name: String,
    /// SCHED_*, the static priority, the nice value and sched_attr's flags.
    pub policy: u32,
    pub priority: u32,
    pub nice: i32,
    pub sched_flags: u64,
    /// sched_attr's runtime (SCHED_DEADLINE; of others, the slice), deadline and period, in nanoseconds.
    pub sched_times: [u64; 3],
    /// ioprio_get(2); 0: none of its own.
    pub io_priority: u32,
    /// sched_getaffinity(2)'s bytes.
    pub affinity: Vec<u8>,
    /// The thread has exited and waits to be the last (a leader after pthread_exit).
    pub exited: bool,
    /// It stands in the code of the vDSO.
    pub in_vdso: bool,
    /// The working directory and the umask, where it does not share those of its process (unshare(2), CLONE_FS).
    pub own_directory: Option<(String, u32)>,
    /// Where they are not those of its process (a raw setresuid(2), capset(2)...).
    pub own_credentials: Option<Credentials>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, filesystem.
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
    pub no_new_privs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// RLIMIT_*.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// PR_GET_DUMPABLE.
    pub dumpable: u32,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// PR_GET_THP_DISABLE: 0, or 1 with the flags that it was set with (Linux 6.18).
    pub thp_disable: u32,
    /// personality(2).
    pub personality: u32,
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: i32,
    /// /proc/self/coredump_filter.
    pub coredump_filter: u32,
    /// The protection keys that are allocated (pkey_alloc(2)), a bit each.
    pub protection_keys: u32,
    /// The process stood stopped by a signal.
    pub stopped: bool,
    /// Whether its group was its controlling terminal's foreground one.
    pub foreground: bool,
    /// The device number of its controlling terminal; 0: it had none.
    pub terminal: u64,
    /// The terminal's foreground group; -1: none.
    pub foreground_group: i32,
    /// The leader of its session has ended: nobody else can be in that session but who was born into it.
    pub session_ended: bool,
}

/// Where the restored memory takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Every user thread but an exited one goes on here, with its `resume_sp`.
    pub thread_entry: u64,
    /// The checkpoint thread starts here, with this stack pointer.
    pub checkpoint_entry: u64,
    pub checkpoint_sp: u64,
    /// A [`crate::plan::RestartInfo`] in the library's memory, filled in before any thread goes on.
    pub restart_info: u64,
}

/// FNV-1a, 64 bit: tells one vDSO from another.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
