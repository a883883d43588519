//! The checkpoint thread has the program's users, groups and capabilities.
//!
//! They are a thread's own for the kernel (credentials(7)), and glibc changes those of its own threads only. One that
//! stayed root in a program that has given root up would be root's power in that program's memory. So the wrappers of
//! setuid(2) and its like return when the checkpoint thread has made the same call ([`tell`], [`told`]); what was
//! changed by other calls (capset(2), raw system calls) is made good when a checkpoint begins ([`follow`]).
//!
//! A connection to the store that was made under other ids is given up: the server knows it by those.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use stasis_protocol::image::Credentials;
use stasis_sys::{
    Errno, Result,
    file::Fd,
    process::{self, Siginfo},
    socket, sync,
};

use crate::{procfs, snapshot, stop};

/// The checkpoint thread's id, and how many there have been in this memory: a restarted one may have the same id.
static THREAD: AtomicI32 = AtomicI32::new(0);
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The idle connection to the store; -1: there is none.
static STORE: AtomicI32 = AtomicI32::new(-1);

/// Whether the effective user has changed since the store was last used.
static CHANGED: AtomicBool = AtomicBool::new(false);

/// Notes which is the checkpoint thread. It is told of changes from then on, and hears of them when it [`listen`]s.
pub fn set_thread(tid: i32) {
    THREAD.store(tid, Ordering::Release);
}

/// The checkpoint thread's id.
pub fn thread() -> i32 {
    THREAD.load(Ordering::Acquire)
}

/// In the checkpoint thread: lets [`told`] interrupt it, in any call but those of [`follow`].
pub fn listen() {
    process::sigmask(!(1 << (stop::SIGNAL - 1)));
}

/// Forgets what was another process'.
pub fn forget() {
    THREAD.store(0, Ordering::Release);
    GENERATION.fetch_add(1, Ordering::AcqRel);
    STORE.store(-1, Ordering::Release);
    CHANGED.store(false, Ordering::Release);
}

/// A connection to the store is kept while no checkpoint is being taken. Returns whether it may be: not when it was
/// made as another user.
pub fn keep_store(socket: Fd) -> bool {
    STORE.store(socket, Ordering::SeqCst);
    let keep = !CHANGED.load(Ordering::SeqCst);
    if !keep {
        STORE.store(-1, Ordering::SeqCst);
    }
    keep
}

/// A checkpoint begins: the connection is in use, if it has not been ended.
pub fn use_store() {
    STORE.store(-1, Ordering::SeqCst);
    CHANGED.store(false, Ordering::SeqCst);
}

/// Ends what was allowed to another user.
fn changed() {
    CHANGED.store(true, Ordering::SeqCst);
    let socket = STORE.swap(-1, Ordering::SeqCst);
    if socket >= 0 {
        socket::shutdown(socket);
    }
}

/// struct __user_cap_data_struct, twice: effective, permitted, inheritable, low halves and then high ones.
type CapabilityWords = [u32; 6];

/// _LINUX_CAPABILITY_VERSION_3 (capget(2)), and the calling thread.
static CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

fn capabilities() -> CapabilityWords {
    let mut words = [0; 6];
    let header = &raw const CAPABILITY_HEADER as usize;
    // SAFETY: capget(2) reads a header and writes six words.
    let _ = unsafe { process::with(libc::SYS_capget, [header, 0, 0, 0, 0, 0], 1, &mut words) };
    words
}

fn set_capabilities(mut words: CapabilityWords) {
    let header = &raw const CAPABILITY_HEADER as usize;
    // SAFETY: capset(2) reads a header and six words.
    let _ = unsafe { process::with(libc::SYS_capset, [header, 0, 0, 0, 0, 0], 1, &mut words) };
}

fn effective_user() -> usize {
    process::numbers(libc::SYS_geteuid, [0; 5]).unwrap_or(0)
}

/// A call that the checkpoint thread is to make, too. It lies on the stack of a thread that waits for it.
struct Order {
    nr: i64,
    arguments: [usize; 3],
    keep_capabilities: usize,
    capabilities: CapabilityWords,
    done: AtomicU32,
}

/// si_code of the signal that brings an [`Order`]: one that nothing else uses (asm-generic/siginfo.h ends at -60 with
/// SI_ASYNCNL), of those that a process may choose for itself.
pub const SI_CODE: i32 = -2033;

/// Has the checkpoint thread make a change of ids that the calling thread has just made, and waits until it has.
/// Where there is no checkpoint thread, or the kernel has no room for a signal (RLIMIT_SIGPENDING), [`follow`] is left
/// to do it.
pub fn tell(nr: i64, arguments: [usize; 3]) {
    let (thread, generation) = (THREAD.load(Ordering::Acquire), GENERATION.load(Ordering::Acquire));
    if thread == 0 {
        return;
    }
    let pid = process::getpid();
    let order = Order {
        nr,
        arguments,
        keep_capabilities: process::prctl(libc::PR_GET_KEEPCAPS, [0; 4]).unwrap_or(0),
        capabilities: capabilities(),
        done: AtomicU32::new(0),
    };
    let info = Siginfo::queued(stop::SIGNAL, SI_CODE, &raw const order as u64);
    // In the child of a vfork(2) the thread is another process', and not found.
    if process::queue_to_thread(pid, thread, stop::SIGNAL, &info).is_err() {
        return;
    }
    /// How often it is looked whether there still is a checkpoint thread, in nanoseconds.
    const LOOK: u64 = 100_000_000;
    while order.done.load(Ordering::Acquire) == 0 && GENERATION.load(Ordering::Acquire) == generation {
        sync::futex_wait(&order.done, 0, Some(LOOK));
        let probe = [pid as usize, thread as usize, 0, 0, 0];
        if process::numbers(libc::SYS_tgkill, probe).is_err() {
            return;
        }
    }
}

/// In the stop signal's handler, in the checkpoint thread: makes the call.
pub fn told(info: &Siginfo) {
    let word =
        |at: usize| info.0[at..at + 8].iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    let sender = word(16) as u32 as i32;
    if sender != process::getpid() || process::gettid() != THREAD.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: whoever sent this (see `tell`) waits until `done`.
    let order = unsafe { &*(word(24) as *const Order) };
    keeping_dumpable(|| {
        let before = effective_user();
        let _ = process::prctl(libc::PR_SET_KEEPCAPS, [order.keep_capabilities, 0, 0, 0]);
        let [a, b, c] = order.arguments;
        // SAFETY: a call that the program has just made itself; setgroups(2) reads what it points to.
        unsafe { stasis_sys::raw(order.nr, [a, b, c, 0, 0, 0]) };
        set_capabilities(order.capabilities);
        let _ = process::prctl(libc::PR_SET_KEEPCAPS, [0; 4]);
        if effective_user() != before {
            changed();
        }
    });
    order.done.store(1, Ordering::Release);
    sync::futex_wake(&order.done, 1);
}

/// Makes the checkpoint thread's credentials those of the program, where they differ.
pub fn follow() {
    let own = process::gettid();
    let mut theirs = procfs::thread_status(process::getpid());
    if procfs::field(&theirs, "State:").is_none_or(|state| state.starts_with(b"Z")) {
        let mut other = None;
        let _ = procfs::numbered_entries(c"/proc/self/task", |tid| {
            if tid != own && tid != process::getpid() {
                other.get_or_insert(tid);
            }
        });
        let Some(other) = other else { return };
        theirs = procfs::thread_status(other);
    }
    let ours = procfs::thread_status(own);
    const FIELDS: [&str; 9] =
        ["Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:"];
    if FIELDS.iter().all(|key| procfs::field(&ours, key) == procfs::field(&theirs, key)) {
        return;
    }
    // A change that comes meanwhile comes after this one.
    let mask = process::sigmask(u64::MAX);
    keeping_dumpable(|| {
        let before = effective_user();
        become_like(&snapshot::credentials(&theirs, 0), &snapshot::credentials(&ours, 0));
        if effective_user() != before {
            changed();
        }
    });
    process::sigmask(mask);
}

/// The calls that make one who has `ours` have `theirs`. What is not allowed is left: never is it more.
fn become_like(theirs: &Credentials, ours: &Credentials) {
    let call = |nr: i64, arguments: [usize; 5]| {
        let _ = process::numbers(nr, arguments);
    };
    let prctl = |option: i32, [a, b, c, d]: [usize; 4]| call(libc::SYS_prctl, [option as usize, a, b, c, d]);
    let id = |id: u32| id as usize;
    let words = |effective: u64, permitted: u64, inheritable: u64| {
        let sets = [effective, permitted, inheritable];
        let (low, high) = (sets.map(|set| set as u32), sets.map(|set| (set >> 32) as u32));
        [low[0], low[1], low[2], high[0], high[1], high[2]]
    };
    set_capabilities(words(ours.permitted, ours.permitted, ours.inheritable));
    for capability in (0..64).filter(|bit| (ours.bounding & !theirs.bounding) >> bit & 1 != 0) {
        prctl(libc::PR_CAPBSET_DROP, [capability, 0, 0, 0]);
    }
    if theirs.groups != ours.groups {
        call(libc::SYS_setgroups, [theirs.groups.len(), theirs.groups.as_ptr() as usize, 0, 0, 0]);
    }
    if theirs.gid != ours.gid {
        call(libc::SYS_setresgid, [id(theirs.gid[0]), id(theirs.gid[1]), id(theirs.gid[2]), 0, 0]);
        call(libc::SYS_setfsgid, [id(theirs.gid[3]), 0, 0, 0, 0]);
    }
    if theirs.uid != ours.uid {
        prctl(libc::PR_SET_KEEPCAPS, [1, 0, 0, 0]);
        call(libc::SYS_setresuid, [id(theirs.uid[0]), id(theirs.uid[1]), id(theirs.uid[2]), 0, 0]);
        call(libc::SYS_setfsuid, [id(theirs.uid[3]), 0, 0, 0, 0]);
        prctl(libc::PR_SET_KEEPCAPS, [0; 4]);
    }
    // Not more than there was, or the call would do nothing: to give up is always allowed.
    let (effective, permitted) = (theirs.effective & ours.permitted, theirs.permitted & ours.permitted);
    set_capabilities(words(effective, permitted, theirs.inheritable & ours.inheritable));
    set_capabilities(words(effective, permitted, theirs.inheritable));
    prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL as usize, 0, 0, 0]);
    for capability in (0..64).filter(|bit| theirs.ambient >> bit & 1 != 0) {
        prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_RAISE as usize, capability, 0, 0]);
    }
    if theirs.no_new_privs {
        prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]);
    }
}

fn dumpable() -> usize {
    process::prctl(libc::PR_GET_DUMPABLE, [0; 4]).unwrap_or(1)
}

/// A change of ids makes the whole process undumpable (commit_creds(), kernel/cred.c); what the program has chosen
/// since it changed its own stays. The value 2 cannot be set (prctl(2)), and where it was, it is what comes of it.
fn keeping_dumpable(change: impl FnOnce()) {
    let before = dumpable();
    change();
    if dumpable() != before {
        let _ = process::prctl(libc::PR_SET_DUMPABLE, [before, 0, 0, 0]);
    }
}

/// Opens a file of /proc/self for which its owner's rights are needed. Of a process that is not dumpable the owner is
/// root (proc(5)); it is made dumpable for as long as this takes.
pub fn open_own(open: impl Fn() -> Result<Fd>) -> Result<Fd> {
    match open() {
        Err(Errno(libc::EACCES)) => {}
        other => return other,
    }
    let before = dumpable();
    if before == 1 || process::prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0]).is_err() {
        return Err(Errno(libc::EACCES));
    }
    let opened = open();
    // Nobody but the kernel can set 2 (fs.suid_dumpable); 0 is stricter.
    let _ = process::prctl(libc::PR_SET_DUMPABLE, [0, 0, 0, 0]);
    opened
}
