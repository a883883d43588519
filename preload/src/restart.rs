//! After a restart: the library finds itself in restored memory, in a process whose kernel half is
//! new, and puts back what only the process itself can.
//!
//! The restorer has brought back memory, descriptors, ids and credentials. It starts the checkpoint
//! thread here and lets the others go on inside the stop handler, where each puts back its own part
//! and waits until the checkpoint thread has put back the rest.

use alloc::{string::String, vec::Vec};
use core::{cell::UnsafeCell, sync::atomic::Ordering};

use stasis_protocol::{plan::RestartInfo, wire};
use stasis_sys::{
    file, memory,
    process::{self, KernelSigaction, Siginfo},
    sync,
};

use crate::{
    aio, arch, arena, births, checkpoint, credentials, lazy,
    link::{self, coordinator::Coordinator},
    memory_policy, procfs, signal_limit,
    snapshot::{
        self,
        kernel_state::{self, KernelState, PosixTimer},
    },
    state, stop, system_v,
    threads::{self, Slot},
    tracker, unread_events,
};

struct Info(UnsafeCell<RestartInfo>);

// SAFETY: written by the restorer before any thread of the library runs, read-only afterwards.
unsafe impl Sync for Info {}

static INFO: Info = Info(UnsafeCell::new(RestartInfo::NONE));

/// Where the restorer writes what the library is to know.
pub fn info_address() -> u64 {
    INFO.0.get() as u64
}

/// The checkpoint that this process, or the one that it is a child of, was restarted from.
pub fn checkpoint() -> Option<String> {
    // SAFETY: see `Info`.
    let info = unsafe { *INFO.0.get() };
    let id = core::str::from_utf8(&info.checkpoint).ok()?;
    (!id.starts_with('\0')).then(|| id.into())
}

/// glibc's rseq registration: the offset from the thread pointer and the size (`__rseq_offset`,
/// `__rseq_size`, 2.35); `None` where glibc has none.
pub fn glibc_rseq() -> Option<(i64, u32)> {
    let (offset, size) = arch::glibc_rseq_symbols();
    if offset.is_null() || size.is_null() {
        return None;
    }
    // SAFETY: glibc defines them as ptrdiff_t and unsigned int, constant once the program runs.
    unsafe { Some((offset.read(), size.read())) }
}

/// Called in the stop handler by each restarted thread: puts back what is the thread's own, and waits.
pub fn thread_arrived(slot: &Slot) {
    // As in the handler that it is in: who has blocked all signals by libc has not blocked the stop signal.
    process::sigmask(u64::MAX);
    let load = |word: &core::sync::atomic::AtomicU64| word.load(Ordering::Relaxed) as usize;
    let _ = process::numbers(
        libc::SYS_set_robust_list,
        [load(&slot.robust_head), load(&slot.robust_len), 0, 0, 0],
    );
    let len = slot.rseq_len.load(Ordering::Relaxed) as usize;
    if len != 0 {
        let _ = process::numbers(libc::SYS_rseq, [load(&slot.rseq), len, 0, stop::RSEQ_SIGNATURE, 0]);
    }
    let _ =
        process::prctl(libc::PR_SET_PDEATHSIG, [slot.pdeathsig.load(Ordering::Relaxed) as usize, 0, 0, 0]);
    let _ = process::prctl(libc::PR_SET_TIMERSLACK, [load(&slot.timer_slack), 0, 0, 0]);
    let keep = slot.keep_capabilities.load(Ordering::Relaxed) as usize;
    let _ = process::prctl(libc::PR_SET_KEEPCAPS, [keep, 0, 0, 0]);
    let mce_kill = slot.mce_kill.load(Ordering::Relaxed) as usize;
    let _ = process::prctl(libc::PR_MCE_KILL, [libc::PR_MCE_KILL_SET as usize, mce_kill, 0, 0]);
    put_back_modes(slot);
    memory_policy::put_back_own(slot);
    let name = [load(&slot.name[0]), load(&slot.name[1])];
    let _ = process::prctl(libc::PR_SET_NAME, [name.as_ptr() as usize, 0, 0, 0]);
    let ticket = state::release_ticket();
    slot.state.store(threads::state::ARRIVED, Ordering::Release);
    state::arrive();
    state::await_release(ticket, || stop::answer(slot));
}

/// What hardly any thread has changed: its execution domain, whether it may read the processor's clock, speculation.
fn put_back_modes(slot: &Slot) {
    let personality = slot.personality.load(Ordering::Relaxed);
    if personality != stop::personality() {
        let _ = process::numbers(libc::SYS_personality, [personality as usize, 0, 0, 0, 0]);
    }
    let tsc = slot.tsc.load(Ordering::Relaxed) as usize;
    if tsc == libc::PR_TSC_SIGSEGV as usize {
        let _ = process::prctl(libc::PR_SET_TSC, [tsc, 0, 0, 0]);
    }
    /// Of the value: a thread may choose for itself.
    const PR_SPEC_PRCTL: u32 = 1;
    for (kind, kept) in slot.speculation.iter().enumerate() {
        let kept = kept.load(Ordering::Relaxed);
        if kept & PR_SPEC_PRCTL != 0 && kept != stop::speculation(kind) {
            let choice = (kept & !PR_SPEC_PRCTL) as usize;
            let _ = process::prctl(libc::PR_SET_SPECULATION_CTRL, [kind, choice, 0, 0]);
        }
    }
}

/// The checkpoint thread of a restarted process.
pub extern "C" fn checkpoint_thread() -> ! {
    checkpoint::take_name();
    checkpoint::forget_inherited();
    // SAFETY: the arena is empty: nothing of it was restored.
    unsafe { arena::forget() };
    // SAFETY: see `Info`.
    let info = unsafe { *INFO.0.get() };
    lazy::adopt(&info);
    tracker::adopt(info.watching);
    await_threads(info.threads);
    // SAFETY: the area holds the handover until it is unmapped below.
    let handover =
        unsafe { core::slice::from_raw_parts(info.handover as *const u8, info.handover_len as usize) };
    let kernel_state: KernelState = wire::decode(handover).unwrap_or_default();
    // SAFETY: every thread has left the restorer's code.
    let _ = unsafe { memory::unmap(info.area as usize, info.area_len as usize) };
    checkpoint::restored_from(info.manifest, info.objects);
    link::coordinator::set_address(info.coordinator.split(|&byte| byte == 0).next().unwrap_or_default());
    births::open_again();
    // Before any process runs: others wait for this one to greet.
    system_v::note_again(&kernel_state.system_v, &kernel_state.undo);
    // What others send from now on is behind it.
    put_back_signals(&kernel_state);
    let stops = info.stopped != 0;
    let put_back = || {
        put_back(&kernel_state);
        hold_queues();
        // Beside the timers, which go on from here with what they had left.
        state::set_skipped((sync::monotonic_ns() as i64).saturating_sub(kernel_state.monotonic_ns as i64));
    };
    if stops {
        put_back();
    }
    let socket = info.coordinator_fd;
    let [pager, userfaultfd, table] = lazy::descriptors(&info);
    checkpoint::keep_these([socket, pager, userfaultfd, table, info.watching]);
    let coordinator =
        if socket >= 0 { Coordinator::greet_again(socket, checkpoint(), stops).ok() } else { None };
    if stops {
        // Before others go on, who may continue it.
        let _ = process::kill(process::getpid(), libc::SIGSTOP);
    }
    if let Some(coordinator) = &coordinator {
        coordinator.await_others();
    }
    if !stops {
        // Not before all processes are there: time goes on from here.
        put_back();
    }
    credentials::set_thread(process::gettid());
    credentials::listen();
    state::release();
    checkpoint::serve(coordinator)
}

/// Opens queues again of which events are kept.
fn hold_queues() {
    if unread_events::WAITING.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Ok(pidfd) = snapshot::open_pidfd(process::getpid()) else { return };
    unread_events::open_again(|fd| process::pidfd_getfd(pidfd, fd));
    let _ = file::close(pidfd);
}

/// Waits until `count` threads have arrived, and those that only had to end have ended.
fn await_threads(count: u32) {
    let is_back = |slot: &Slot| slot.state.load(Ordering::Acquire) == threads::state::ARRIVED;
    loop {
        let seen = state::arrivals();
        let arrived = threads::all().filter(|slot| is_back(slot)).count();
        if arrived as u32 >= count {
            break;
        }
        state::await_arrival(seen, 100_000_000);
    }
    // A leader that has exited (pthread_exit(3)) ends in the restorer's code, which it must be out of. Its slot, if it has
    // one, is of the time when it was looked for.
    let pid = process::getpid();
    if pid == process::gettid()
        || threads::all().any(|slot| is_back(slot) && slot.tid.load(Ordering::Relaxed) == pid)
    {
        return;
    }
    loop {
        let status = procfs::thread_status(pid);
        if procfs::field(&status, "State:").is_none_or(|state| state.starts_with(b"Z")) {
            break;
        }
        state::pause(100_000);
    }
}

/// Puts back what is done with signals, and those that were pending.
fn put_back_signals(saved: &KernelState) {
    for (signal, &(handler, flags, restorer, mask)) in (1..).zip(&saved.actions) {
        let action = KernelSigaction { handler: handler as usize, flags, restorer: restorer as usize, mask };
        // SAFETY: the handlers are in the restored memory, where they were.
        let _ = unsafe { process::sigaction(signal, Some(&action)) };
    }
    put_back_pending(saved);
}

/// Puts back the process' half of the kernel's state; its signals are there, in whose place those of timers would be.
fn put_back(saved: &KernelState) {
    put_back_timers(saved);
    for (which, &(interval, value)) in saved.itimers.iter().enumerate() {
        // A periodic ITIMER_REAL whose signal is pending stands still until that is taken (setitimer(2) tells 0), and has no
        // interval where it is off (kernel/time/itimer.c, `do_setitimer`). The others go on, and keep theirs.
        let stands_still = value == 0 && which == libc::ITIMER_REAL as usize;
        let value = if stands_still { interval } else { value };
        let mut value = [interval / 1_000_000, interval % 1_000_000, value / 1_000_000, value % 1_000_000];
        // SAFETY: setitimer(2) reads struct itimerval, four words.
        let _ = unsafe { process::with(libc::SYS_setitimer, [which, 0, 0, 0, 0, 0], 1, &mut value) };
    }
    for command in (0..32).map(|bit| 1u32 << bit).filter(|command| saved.barriers & command != 0) {
        let _ = process::numbers(libc::SYS_membarrier, [command as usize, 0, 0, 0, 0]);
    }
    if saved.merges_memory {
        let _ = process::prctl(kernel_state::PR_SET_MEMORY_MERGE, [1, 0, 0, 0]);
    }
    if saved.refuses_writable_code != 0 {
        // Memory is as it was: nothing has to be made executable any more.
        let flags = saved.refuses_writable_code as usize;
        let _ = process::prctl(kernel_state::PR_SET_MDWE, [flags, 0, 0, 0]);
    }
    memory_policy::put_back(&saved.memory_policies);
    for context in &saved.aio {
        if aio::put_back(context).is_none() {
            let line = "stasis: kernel AIO (io_setup(2)) cannot be brought back: calls by its context fail with EINVAL\n";
            let _ = file::write(2, line.as_bytes());
        }
    }
    if saved.locks_future != 0 {
        // What is there is locked as it was.
        let _ = process::numbers(libc::SYS_mlockall, [saved.locks_future as usize, 0, 0, 0, 0]);
    }
}

fn put_back_pending(saved: &KernelState) {
    if saved.pending.is_empty() && saved.thread_pending.is_empty() {
        return;
    }
    let _room = signal_limit::Raised::limit();
    let pid = process::getpid();
    let shared: Vec<Siginfo> =
        saved.pending.iter().filter_map(|bytes| kernel_state::siginfo(bytes)).collect();
    kernel_state::queue_to_process(pid, &shared);
    for of_one in saved.thread_pending.chunk_by(|(tid, _), (next, _)| tid == next) {
        let slot = threads::all().find(|slot| slot.tid.load(Ordering::Relaxed) == of_one[0].0);
        let infos: Vec<Siginfo> =
            of_one.iter().filter_map(|(_, bytes)| kernel_state::siginfo(bytes)).collect();
        if let Some(slot) = slot {
            stop::queue(slot, &infos);
        }
    }
}

/// struct sigevent (64 bytes), as timer_create(2) reads it.
#[repr(C)]
struct Sigevent {
    value: u64,
    signal: i32,
    notify: i32,
    tid: i32,
    _pad: [i32; 11],
}

/// PR_TIMER_CREATE_RESTORE_IDS (linux/prctl.h): timer_create(2) takes the id from where it puts it (Linux 6.16).
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

fn put_back_timers(saved: &KernelState) {
    if saved.timers.is_empty() {
        return;
    }
    let choose = |on: usize| process::prctl(PR_TIMER_CREATE_RESTORE_IDS, [on, 0, 0, 0]).is_ok();
    let chooses = choose(1);
    for timer in &saved.timers {
        let due = saved.timers_due >> (timer.signal - 1).clamp(0, 63) & 1 != 0;
        put_back_timer(timer, due, chooses);
    }
    if chooses {
        choose(0);
    }
}

/// Makes a timer with the id that it had: `chooses`: the kernel lets one be chosen. Otherwise ids are handed out in ascending
/// order in a fresh process (kernel/time/posix-timers.c), so those in between are made and deleted.
fn create_timer(timer: &PosixTimer, chooses: bool) -> bool {
    let mut event = Sigevent {
        value: timer.value,
        signal: timer.signal,
        notify: timer.notify,
        tid: timer.tid,
        _pad: [0; 11],
    };
    // The number of attempts is bounded: an image is hostile input.
    for _ in 0..=1_000_000 {
        let mut id = if chooses { timer.id } else { -1 };
        let arguments = [timer.clock as usize, &raw mut event as usize, 0, 0, 0, 0];
        // SAFETY: timer_create(2) reads the event, and reads or fills in the id.
        if unsafe { process::with(libc::SYS_timer_create, arguments, 2, &mut id) }.is_err() {
            return false;
        }
        if id == timer.id {
            return true;
        }
        let _ = process::numbers(libc::SYS_timer_delete, [id as usize, 0, 0, 0, 0]);
        if id > timer.id {
            return false;
        }
    }
    false
}

/// `due`: the signal that it has for itself was pending.
fn put_back_timer(timer: &PosixTimer, due: bool, chooses: bool) {
    if !create_timer(timer, chooses) {
        // Whom it is to tell, or whose time it counts, has ended: it never expires, but it is there.
        let idle = PosixTimer { clock: libc::CLOCK_MONOTONIC, notify: libc::SIGEV_NONE, tid: 0, ..*timer };
        create_timer(&idle, chooses);
        return;
    }
    // Its signal was pending: it expires at once.
    let value = if due && timer.notify != libc::SIGEV_NONE { 1 } else { timer.value_ns };
    let (interval, value) = (sync::timespec(timer.interval_ns), sync::timespec(value));
    let mut setting = [interval, value];
    // SAFETY: timer_settime(2) reads struct itimerspec, two timespecs.
    let _ = unsafe {
        process::with(libc::SYS_timer_settime, [timer.id as usize, 0, 0, 0, 0, 0], 2, &mut setting)
    };
}
