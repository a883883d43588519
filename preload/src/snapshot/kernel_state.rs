//! State of the process that lives in the kernel and that the restarted library puts back by itself:
//! signal actions, interval timers, POSIX timers, pending signals.
//!
//! It travels as the image's handover: the library's own memory is restored as it stands, but the
//! arena that this is built in is not.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};
use stasis_protocol::image::SemaphoreUndo;
use stasis_sys::{
    memory,
    process::{self, KernelSigaction, Siginfo},
};

use super::{mappings::Found, threads::Seen};
use crate::{
    aio, memory_policy, procfs, quiesce::Quiet, signal_limit, stop, system_v, threads, wrappers::timers,
};

/// A siginfo_t.
type SiginfoBytes = Vec<u8>;

#[derive(Default, Serialize, Deserialize)]
pub struct KernelState {
    /// Handler, flags, restorer, mask of signals 1 to 64 (the stop signal's is ours).
    pub actions: Vec<(u64, u64, u64, u64)>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF: interval and value in microseconds.
    pub itimers: [(u64, u64); 3],
    pub timers: Vec<PosixTimer>,
    /// Signals that are pending and were left alone: each is of one timer only, see [`left_alone`].
    pub timers_due: u64,
    /// Signals pending for the process, in the order they would be taken.
    pub pending: Vec<SiginfoBytes>,
    /// Signals pending for one thread.
    pub thread_pending: Vec<(i32, SiginfoBytes)>,
    /// The System V objects that the computation uses: kind and id.
    pub system_v: Vec<(u32, i32)>,
    /// What the process' end would undo of semaphores.
    pub undo: Vec<SemaphoreUndo>,
    /// CLOCK_MONOTONIC when all threads had stopped, in nanoseconds.
    pub monotonic_ns: u64,
    /// membarrier(2): the registrations of the process, as the commands that make them.
    pub barriers: u32,
    /// PR_GET_MDWE.
    pub refuses_writable_code: u32,
    /// PR_GET_MEMORY_MERGE.
    pub merges_memory: bool,
    /// io_setup(2).
    pub aio: Vec<aio::Context>,
    /// mlockall(2): MCL_FUTURE and MCL_ONFAULT, as far as they hold for what is mapped from now on.
    pub locks_future: u32,
    /// mbind(2).
    pub memory_policies: Vec<memory_policy::Range>,
}

/// A timer of timer_create(2).
#[derive(Serialize, Deserialize)]
pub struct PosixTimer {
    pub id: i32,
    pub clock: i32,
    pub notify: i32,
    pub signal: i32,
    pub value: u64,
    /// The thread that is notified (SIGEV_THREAD_ID).
    pub tid: i32,
    /// Nanoseconds until it expires (0: disarmed), and its period.
    pub value_ns: u64,
    pub interval_ns: u64,
}

/// Asks the kernel; the result is encoded. `hold`: the process is to be ended.
pub fn capture(quiet: &Quiet, hold: bool, seen: &[Seen], mappings: &[Found]) -> Vec<u8> {
    let mut state = KernelState { monotonic_ns: quiet.complete, ..KernelState::default() };
    for signal in 1..=64 {
        // SAFETY: nothing is changed.
        let action = unsafe { process::sigaction(signal, None) }.unwrap_or_default();
        let KernelSigaction { handler, flags, restorer, mask } = action;
        state.actions.push((handler as u64, flags, restorer as u64, mask));
    }
    for (which, timer) in state.itimers.iter_mut().enumerate() {
        let mut value = [0u64; 4];
        // SAFETY: getitimer(2) fills in struct itimerval, four words.
        let _ = unsafe { process::with(libc::SYS_getitimer, [which, 0, 0, 0, 0, 0], 1, &mut value) };
        *timer = (value[0] * 1_000_000 + value[1], value[2] * 1_000_000 + value[3]);
    }
    state.timers = timers();
    // A process that is about to end gives them away with their counts; one that goes on keeps them.
    let of_timers = if hold { 0 } else { left_alone(&state.timers) };
    if of_timers != 0 {
        let leader = procfs::read(c"/proc/self/status").unwrap_or_default();
        let pending = |key| procfs::field(&leader, key).and_then(procfs::hex).unwrap_or(0) & of_timers;
        state.timers_due = pending("SigPnd:") | pending("ShdPnd:");
        for seen in seen {
            state.timers_due |= seen.pending & of_timers;
        }
    }
    state.system_v = system_v::noted().into_iter().map(|(kind, id)| (kind as u32, id)).collect();
    state.undo = system_v::own_undo();
    state.barriers = barriers();
    state.refuses_writable_code = process::prctl(PR_GET_MDWE, [0; 4]).unwrap_or(0) as u32;
    state.merges_memory = process::prctl(PR_GET_MEMORY_MERGE, [0; 4]).is_ok_and(|merges| merges != 0);
    state.locks_future = locks_future();
    state.aio = aio::capture(mappings);
    state.memory_policies = memory_policy::capture(mappings);
    (state.pending, state.thread_pending) = pending(seen, of_timers);
    stasis_protocol::wire::encode(&state).unwrap_or_default()
}

// Not in the libc crate (linux/prctl.h).
pub const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
pub const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;

/// What the process has registered for by membarrier(2). The kernel tells since Linux 6.3; before, a barrier that nobody
/// has registered for fails, and who has registered for those of all processes cannot be told.
fn barriers() -> u32 {
    const GET_REGISTRATIONS: usize = 1 << 9;
    /// MEMBARRIER_CMD_PRIVATE_EXPEDITED, _SYNC_CORE, _RSEQ; the command that registers for each is the next bit.
    const PRIVATE: [u32; 3] = [1 << 3, 1 << 5, 1 << 7];
    let membarrier = |command: usize| process::numbers(libc::SYS_membarrier, [command, 0, 0, 0, 0]);
    match membarrier(GET_REGISTRATIONS) {
        Ok(registrations) => registrations as u32,
        Err(_) => {
            let registered = PRIVATE.iter().filter(|&&command| membarrier(command as usize).is_ok());
            registered.fold(0, |all, command| all | command << 1)
        }
    }
}

/// What mlockall(2) has asked for memory that is mapped later. The kernel tells nobody (mm/mlock.c, `apply_mlockall_flags`),
/// but does it with a page that is mapped to see.
fn locks_future() -> u32 {
    const LEN: usize = 4096;
    let page = match memory::map_anonymous(LEN, 0) {
        Ok(page) => page,
        // More than may be locked (RLIMIT_MEMLOCK).
        Err(error) if error.0 == libc::EAGAIN => return libc::MCL_FUTURE as u32,
        Err(_) => return 0,
    };
    // SAFETY: nothing is in the page.
    let is_locked = unsafe { memory::advise(page, LEN, libc::MADV_DONTNEED) }.is_err();
    let mut resident = 0u8;
    if is_locked {
        let vector = &raw mut resident as usize;
        let _ = process::numbers(libc::SYS_mincore, [page, LEN, vector, 0, 0]);
    }
    // SAFETY: as above.
    let _ = unsafe { memory::unmap(page, LEN) };
    match (is_locked, resident) {
        (false, _) => 0,
        (true, 0) => (libc::MCL_FUTURE | libc::MCL_ONFAULT) as u32,
        (true, _) => libc::MCL_FUTURE as u32,
    }
}

/// /proc/self/timers (proc(5)): for each timer `ID:`, `signal: N/value`, `notify: how/pid.N` or `how/tid.N`,
/// `ClockID:`.
fn timers() -> Vec<PosixTimer> {
    let content = procfs::read(c"/proc/self/timers").unwrap_or_default();
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in procfs::lines(&content) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (key, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let halves = |separator: u8| {
            let at = value.iter().position(|&byte| byte == separator).unwrap_or(value.len());
            (&value[..at], value.get(at + 1..).unwrap_or_default())
        };
        if key == b"ID" {
            let id = procfs::decimal(value).unwrap_or(0) as i32;
            let mut remaining = [0u64; 4];
            // SAFETY: timer_gettime(2) fills in struct itimerspec, four words.
            let _ = unsafe {
                process::with(libc::SYS_timer_gettime, [id as usize, 0, 0, 0, 0, 0], 1, &mut remaining)
            };
            timers.push(PosixTimer {
                id,
                clock: 0,
                notify: 0,
                signal: 0,
                value: 0,
                tid: 0,
                value_ns: remaining[2] * 1_000_000_000 + remaining[3],
                interval_ns: remaining[0] * 1_000_000_000 + remaining[1],
            });
        }
        let Some(timer) = timers.last_mut() else { continue };
        match key {
            b"signal" => {
                let (signal, value) = halves(b'/');
                timer.signal = procfs::decimal(signal).unwrap_or(0) as i32;
                timer.value = procfs::hex(value).unwrap_or(0);
            }
            b"notify" => {
                let (how, who) = halves(b'/');
                timer.notify = match how {
                    b"none" => libc::SIGEV_NONE,
                    b"thread" => libc::SIGEV_THREAD,
                    _ => libc::SIGEV_SIGNAL,
                };
                if let Some(tid) = who.strip_prefix(b"tid.").and_then(procfs::decimal) {
                    timer.notify = libc::SIGEV_THREAD_ID;
                    timer.tid = tid as i32;
                }
            }
            b"ClockID" => timer.clock = procfs::signed(value).unwrap_or(0) as i32,
            _ => {}
        }
    }
    for timer in &mut timers {
        if timer.clock == timers::OWN_THREAD {
            // By a call that no wrapper saw; refused where there are several threads.
            timer.clock = timers::clock_of(process::getpid());
        }
    }
    // A call with a time-out was left by siglongjmp(3), and the timer that stood in for it (interrupted/expiry.rs) stayed.
    timers.retain(|timer| {
        let is_left = timer.signal == stop::SIGNAL && timer.value_ns == 0;
        if is_left {
            let _ = process::numbers(libc::SYS_timer_delete, [timer.id as usize, 0, 0, 0, 0]);
        }
        !is_left
    });
    // The kernel lists the newest first; ids can only be had again in ascending order.
    timers.sort_by_key(|timer| timer.id);
    timers
}

/// The signals whose pending instances are not taken, since they count overruns until the program takes them: those of one
/// periodic timer that may have expired, and of no other timer. A timer that is not periodic counts nothing, and which of
/// several expired only their signals tell. What the program itself has sent by such a number is taken for the timer's.
fn left_alone(timers: &[PosixTimer]) -> u64 {
    let (mut once, mut twice, mut periodic) = (0, 0, 0);
    for timer in timers.iter().filter(|timer| timer.notify != libc::SIGEV_NONE) {
        let bit = bit(timer.signal);
        twice |= once & bit;
        once |= bit;
        if timer.interval_ns != 0 && (1..=timer.interval_ns).contains(&timer.value_ns) {
            periodic |= bit;
        }
    }
    periodic & !twice
}

/// Whether there is a timer of the time of a thread that the kernel does not name.
pub fn has_timer_of_unknown_thread() -> bool {
    let content = procfs::read(c"/proc/self/timers").unwrap_or_default();
    procfs::lines(&content).any(|line| line == b"ClockID: -2")
}

/// Takes the signals that are pending, notes them and queues them again: the kernel shows their
/// values to nobody else but a tracer. Done only where something is pending. Signals `of_timers` are left
/// alone: they carry a count of overruns that ends when they are taken, and the timer itself brings them back.
fn pending(seen: &[Seen], of_timers: u64) -> (Vec<SiginfoBytes>, Vec<(i32, SiginfoBytes)>) {
    let pid = process::getpid();
    let ours = bit(stop::SIGNAL) | of_timers;
    let mut private = Vec::new();
    for seen in seen.iter().filter(|seen| seen.pending & !ours != 0) {
        let tid = seen.tid;
        let Some(slot) = threads::claim(tid) else { continue };
        let mut taken = Vec::new();
        let mut set = seen.pending & !ours;
        while set != 0 {
            let Some(info) = stop::take_one_of(slot, set) else { break };
            taken.push(info);
            let status = procfs::thread_status(tid);
            set = procfs::field(&status, "SigPnd:").and_then(procfs::hex).unwrap_or(0) & !ours;
        }
        let _room = signal_limit::Raised::limit();
        stop::queue(slot, &taken);
        private.extend(taken.iter().map(|info| (tid, Vec::from(info.0))));
    }
    // The queue of the process can be emptied by any of its threads; the checkpoint thread has none of
    // its own, so what it takes is the process'.
    let mut taken = Vec::new();
    while let Some(info) = process::take_pending(!ours) {
        taken.push(info);
    }
    if !taken.is_empty() {
        let _room = signal_limit::Raised::limit();
        queue_to_process(pid, &taken);
    }
    (taken.iter().map(|info| Vec::from(info.0)).collect(), private)
}

/// Queues signals to this process as they were. Only who has the process' id may by rt_sigqueueinfo(2): its leader. Where that has
/// ended, a thread may by a pidfd of its own (Linux 6.9); before, it is as if by sigqueue(3).
pub fn queue_to_process(pid: i32, signals: &[Siginfo]) {
    let leader = threads::all().find(|slot| slot.tid.load(Relaxed) == pid && stop::waits(slot));
    if let Some(leader) = leader {
        return stop::queue_to_process(leader, signals);
    }
    for &(mut info) in signals {
        if process::queue_to_own_process(&info).is_err() {
            info.0[8..12].copy_from_slice(&libc::SI_QUEUE.to_ne_bytes());
            let _ = process::queue_to_process(pid, info.signal(), &info);
        }
    }
}

/// A signal's bit in the kernel's sets.
fn bit(signal: i32) -> u64 {
    1u64.checked_shl(signal as u32 - 1).unwrap_or(0)
}

/// A signal, as it was noted.
pub fn siginfo(bytes: &[u8]) -> Option<Siginfo> {
    Some(Siginfo(bytes.try_into().ok()?))
}
