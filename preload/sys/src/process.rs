//! Processes, threads and signals.

use crate::{Result, call::call, file::Fd};

pub fn getpid() -> i32 {
    // SAFETY: no memory is touched.
    unsafe { crate::raw(libc::SYS_getpid, [0; 6]) as i32 }
}

pub fn gettid() -> i32 {
    // SAFETY: no memory is touched.
    unsafe { crate::raw(libc::SYS_gettid, [0; 6]) as i32 }
}

/// A system call that takes numbers only (getpgid, getpriority, umask, prctl with numbers...).
pub fn numbers(nr: i64, args: [usize; 5]) -> Result<usize> {
    // SAFETY: by contract of the name, the call touches no memory.
    unsafe { call(nr, [args[0], args[1], args[2], args[3], args[4], 0]) }
}

/// What two threads may have together (kcmp(2)).
#[derive(Clone, Copy)]
pub enum Shared {
    Memory = 1,
    /// The table of descriptors.
    Files = 2,
    /// Working and root directory, umask.
    Directory = 3,
}

/// Whether they have it together; `None` where the kernel does not say (CONFIG_KCMP).
pub fn shares(one: i32, other: i32, what: Shared) -> Option<bool> {
    let result = numbers(libc::SYS_kcmp, [one as usize, other as usize, what as usize, 0, 0]);
    result.ok().map(|order| order == 0)
}

/// prctl(2) with numbers.
pub fn prctl(option: i32, args: [usize; 4]) -> Result<usize> {
    numbers(libc::SYS_prctl, [option as usize, args[0], args[1], args[2], args[3]])
}

/// A system call that fills in or reads a value: `args` with its address at `position`.
///
/// # Safety
/// `T` must be what the call expects there.
pub unsafe fn with<T>(nr: i64, mut args: [usize; 6], position: usize, value: &mut T) -> Result<usize> {
    args[position] = value as *mut T as usize;
    // SAFETY: the caller's promise.
    unsafe { call(nr, args) }
}

/// The kernel's struct sigaction (x86-64: arch/x86/include/uapi/asm/signal.h), not libc's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelSigaction {
    pub handler: usize,
    pub flags: u64,
    pub restorer: usize,
    pub mask: u64,
}

/// SA_RESTORER: `restorer` returns from the handler.
pub const SA_RESTORER: u64 = 0x0400_0000;

/// rt_sigaction(2); the previous action.
///
/// # Safety
/// The handler must be sound for every thread of the process.
pub unsafe fn sigaction(signal: i32, new: Option<&KernelSigaction>) -> Result<KernelSigaction> {
    let mut old = KernelSigaction::default();
    let new = new.map_or(0, |new| &raw const *new as usize);
    // SAFETY: the caller's promise; reads and writes one structure each.
    unsafe {
        call(libc::SYS_rt_sigaction, [signal as usize, new, &raw mut old as usize, 8, 0, 0])?;
    }
    Ok(old)
}

/// Sets the calling thread's signal mask; the previous one.
pub fn sigmask(mask: u64) -> u64 {
    change_mask(libc::SIG_SETMASK, mask)
}

/// Blocks signals in the calling thread; the previous mask.
pub fn block(set: u64) -> u64 {
    change_mask(libc::SIG_BLOCK, set)
}

fn change_mask(how: i32, set: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: reads and writes one u64 each.
    let _ = unsafe {
        call(
            libc::SYS_rt_sigprocmask,
            [how as usize, &raw const set as usize, &raw mut old as usize, 8, 0, 0],
        )
    };
    old
}

/// The signals pending for the calling thread or its process (rt_sigpending(2)).
pub fn sigpending() -> u64 {
    let mut set = 0u64;
    // SAFETY: writes one u64.
    let _ = unsafe { call(libc::SYS_rt_sigpending, [&raw mut set as usize, 8, 0, 0, 0, 0]) };
    set
}

/// siginfo_t, as bytes of the kernel's size.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Siginfo(pub [u8; 128]);

impl Siginfo {
    /// What sigqueue(3) would make: SI_QUEUE with a value.
    pub fn queued(signal: i32, code: i32, value: u64) -> Self {
        let mut info = [0u8; 128];
        info[0..4].copy_from_slice(&signal.to_ne_bytes());
        info[8..12].copy_from_slice(&code.to_ne_bytes());
        info[16..20].copy_from_slice(&getpid().to_ne_bytes());
        info[24..32].copy_from_slice(&value.to_ne_bytes());
        Self(info)
    }

    pub fn signal(&self) -> i32 {
        i32::from_ne_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// si_code.
    pub fn code(&self) -> i32 {
        i32::from_ne_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    /// The low half of si_value: who sent it may know it as an int.
    pub fn value(&self) -> u32 {
        u32::from_ne_bytes([self.0[24], self.0[25], self.0[26], self.0[27]])
    }
}

/// rt_tgsigqueueinfo(2).
pub fn queue_to_thread(pid: i32, tid: i32, signal: i32, info: &Siginfo) -> Result<()> {
    let info = &raw const *info as usize;
    // SAFETY: reads one siginfo.
    unsafe { call(libc::SYS_rt_tgsigqueueinfo, [pid as usize, tid as usize, signal as usize, info, 0, 0]) }
        .map(drop)
}

/// rt_sigqueueinfo(2).
pub fn queue_to_process(pid: i32, signal: i32, info: &Siginfo) -> Result<()> {
    let info = &raw const *info as usize;
    // SAFETY: reads one siginfo.
    unsafe { call(libc::SYS_rt_sigqueueinfo, [pid as usize, signal as usize, info, 0, 0, 0]) }.map(drop)
}

/// Queues a signal as it is to the calling thread's process (pidfd_send_signal(2) with PIDFD_SIGNAL_THREAD_GROUP, Linux 6.9).
pub fn queue_to_own_process(info: &Siginfo) -> Result<()> {
    const PIDFD_SIGNAL_THREAD_GROUP: usize = 1 << 1;
    let pidfd = pidfd_open(gettid(), PIDFD_THREAD)?;
    let arguments =
        [pidfd as usize, info.signal() as usize, &raw const *info as usize, PIDFD_SIGNAL_THREAD_GROUP, 0, 0];
    // SAFETY: reads one siginfo.
    let sent = unsafe { call(libc::SYS_pidfd_send_signal, arguments) };
    let _ = crate::file::close(pidfd);
    sent.map(drop)
}

/// Takes one pending signal of `set` without waiting (rt_sigtimedwait(2)); `None` when none is.
pub fn take_pending(set: u64) -> Option<Siginfo> {
    let mut info = Siginfo([0; 128]);
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: reads the set and the time-out, writes one siginfo.
    unsafe {
        call(
            libc::SYS_rt_sigtimedwait,
            [&raw const set as usize, &raw mut info as usize, &raw const zero as usize, 8, 0, 0],
        )
    }
    .ok()
    .map(|_| info)
}

pub fn kill(pid: i32, signal: i32) -> Result<()> {
    numbers(libc::SYS_kill, [pid as usize, signal as usize, 0, 0, 0]).map(drop)
}

/// Whether there is a process, or one that was not waited for (kill(2), signal 0).
pub fn exists(pid: i32) -> bool {
    kill(pid, 0) != Err(crate::Errno(libc::ESRCH))
}

/// A resource's (RLIMIT_...) soft and hard limit (prlimit(2)).
pub fn limit(resource: libc::__rlimit_resource_t) -> Result<[u64; 2]> {
    let mut limit = [0; 2];
    // SAFETY: prlimit64(2) fills in two words.
    unsafe { with(libc::SYS_prlimit64, [0, resource as usize, 0, 0, 0, 0], 3, &mut limit) }.map(|_| limit)
}

/// Sets them, for all threads of the process.
pub fn set_limit(resource: libc::__rlimit_resource_t, mut limit: [u64; 2]) -> Result<()> {
    // SAFETY: prlimit64(2) reads two words.
    unsafe { with(libc::SYS_prlimit64, [0, resource as usize, 0, 0, 0, 0], 2, &mut limit) }.map(drop)
}

/// How much of a resource (RLIMIT_...) may be used (prlimit(2)).
pub fn soft_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = [libc::RLIM_INFINITY; 2];
    // SAFETY: prlimit64(2) fills in two words.
    let _ = unsafe { with(libc::SYS_prlimit64, [0, resource as usize, 0, 0, 0, 0], 3, &mut limit) };
    limit[0]
}

/// Whether it is limited.
pub fn is_limited(resource: libc::__rlimit_resource_t) -> bool {
    soft_limit(resource) != libc::RLIM_INFINITY
}

/// Has the calling thread wait less for its turn where there are more threads than processors: it asks for short turns, and who
/// does goes before others when it wakes (`sched_runtime` under SCHED_OTHER, since Linux 6.12; needs no privilege). How much of the
/// processor's time it gets is as before. Threads that it makes do the same.
///
/// Nothing changes where it has another policy, or the kernel is older.
pub fn take_short_turns() {
    /// The shortest that may be asked for, in nanoseconds.
    const SHORT: u64 = 100_000;
    // SAFETY: plain numbers.
    let mut attributes: libc::sched_attr = unsafe { core::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: sched_getattr(2) fills in at most `size` bytes of the structure.
    let asked = unsafe { with(libc::SYS_sched_getattr, [0, 0, size, 0, 0, 0], 1, &mut attributes) };
    if asked.is_err() || attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.sched_runtime = SHORT;
    // SAFETY: sched_setattr(2) reads the structure.
    let _ = unsafe { with(libc::SYS_sched_setattr, [0; 6], 1, &mut attributes) };
}

/// Lets others go first (sched_yield(2)).
pub fn give_way() {
    let _ = numbers(libc::SYS_sched_yield, [0; 5]);
}

/// Whether this process has children, whichever thread made them (waitid(2): ECHILD where there is none).
pub fn has_children() -> bool {
    let mut info = Siginfo([0; 128]);
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let arguments = [libc::P_ALL as usize, 0, 0, flags as usize, 0, 0];
    // SAFETY: waitid(2) fills in one siginfo; with WNOWAIT nothing is waited for.
    unsafe { with(libc::SYS_waitid, arguments, 2, &mut info) }.is_ok()
}

/// The status (as waitpid(2) gives it) of a child that has ended, which is left to be waited for; `None` for one that has
/// not.
///
/// # Errors
/// ECHILD when it is no child of this process.
pub fn ended_child(pid: i32) -> Result<Option<i32>> {
    let mut info = Siginfo([0; 128]);
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let arguments = [libc::P_PID as usize, pid as usize, 0, flags as usize, 0, 0];
    // SAFETY: waitid(2) fills in one siginfo; with WNOWAIT nothing is waited for.
    unsafe { with(libc::SYS_waitid, arguments, 2, &mut info) }?;
    // siginfo_t of SIGCHLD: si_pid at 16 bytes, si_uid, si_status (asm-generic/siginfo.h, 64 bit).
    let word = |at: usize| i32::from_ne_bytes([info.0[at], info.0[at + 1], info.0[at + 2], info.0[at + 3]]);
    const CORE: i32 = 0x80;
    let status = word(24);
    Ok((word(16) != 0).then(|| match info.code() {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | CORE,
        _ => status,
    }))
}

/// Ends the process.
pub fn exit_group(status: i32) -> ! {
    loop {
        let _ = numbers(libc::SYS_exit_group, [status as usize, 0, 0, 0, 0]);
    }
}

/// Of pidfd_open(2): of a thread (Linux 6.9).
pub const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// pidfd_open(2).
pub fn pidfd_open(pid: i32, flags: u32) -> Result<Fd> {
    numbers(libc::SYS_pidfd_open, [pid as usize, flags as usize, 0, 0, 0]).map(|fd| fd as Fd)
}

/// pidfd_getfd(2): a duplicate, in this thread's table, of another task's descriptor.
pub fn pidfd_getfd(pidfd: Fd, fd: Fd) -> Result<Fd> {
    numbers(libc::SYS_pidfd_getfd, [pidfd as usize, fd as usize, 0, 0, 0]).map(|fd| fd as Fd)
}

/// Reads this process' memory; fails, or ends early, where none is mapped (process_vm_readv(2)).
pub fn read_memory(address: usize, buffer: &mut [u8]) -> Result<usize> {
    let local = [buffer.as_mut_ptr() as usize, buffer.len()];
    let remote = [address, buffer.len()];
    let arguments = [getpid() as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
    // SAFETY: reads two iovecs, writes the buffer.
    unsafe { call(libc::SYS_process_vm_readv, arguments) }
}

/// A part of this process' memory: struct iovec.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub start: u64,
    pub len: u64,
}

/// Whether the machine has anything in swap (sysinfo(2)).
pub fn is_anything_swapped() -> bool {
    // SAFETY: struct sysinfo is plain data, filled in by sysinfo(2).
    let mut info: libc::sysinfo = unsafe { core::mem::zeroed() };
    // SAFETY: as above.
    let asked = unsafe { with(libc::SYS_sysinfo, [0; 6], 0, &mut info) };
    asked.is_err() || info.freeswap != info.totalswap
}

/// The most parts that [`gather`] takes (UIO_MAXIOV).
pub const PARTS: usize = 1024;

/// Copies parts of this process' memory, one after the other, to `to`, in one call (process_vm_readv(2)): at most
/// [`PARTS`]. How many bytes were copied: fewer than asked where a page cannot be read; that one begins there.
///
/// # Safety
/// There must be room at `to` for all parts.
///
/// # Errors
/// EFAULT where the first page cannot be read.
pub unsafe fn gather(parts: &[Part], to: *mut u8) -> Result<usize> {
    let len: u64 = parts.iter().map(|part| part.len).sum();
    let local = [to as usize, len as usize];
    let (from, count) = (parts.as_ptr() as usize, parts.len());
    let arguments = [getpid() as usize, local.as_ptr() as usize, 1, from, count, 0];
    // SAFETY: reads the iovecs, writes the room that the caller promises.
    unsafe { call(libc::SYS_process_vm_readv, arguments) }
}

/// Writes parts of this process' memory, one after the other, to a file, at `at`, in one call (pwritev(2)): at most [`PARTS`]. How
/// many bytes were written: fewer than asked where a page cannot be read; that one begins there.
///
/// Unlike process_vm_readv(2) it pins no pages. What is pinned to be read only is made the process' own first (mm/gup.c,
/// `gup_must_unshare`, Linux 5.19): a forked process would get a copy of all that it shares with its relatives.
///
/// # Errors
/// EFAULT where the first page cannot be read, and what pwritev(2) says.
pub fn gather_to(parts: &[Part], file: Fd, at: u64) -> Result<usize> {
    let (from, count) = (parts.as_ptr() as usize, parts.len());
    // SAFETY: reads the iovecs, and what they name where it can be read.
    unsafe { call(libc::SYS_pwritev, [file as usize, from, count, at as usize, 0, 0]) }
}

/// Writes two words of this process' memory, if that may be written (process_vm_writev(2)).
pub fn write_memory(address: usize, words: &[i64; 2]) -> Result<usize> {
    let len = size_of_val(words);
    let local = [words.as_ptr() as usize, len];
    let remote = [address, len];
    let arguments = [getpid() as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
    // SAFETY: reads two iovecs and the words; the kernel checks the destination.
    unsafe { call(libc::SYS_process_vm_writev, arguments) }
}
