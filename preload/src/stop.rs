//! The stop signal and its handler: where every thread of the program stands during a checkpoint.
//!
//! The signal is number 33. glibc keeps 32 and 33 for itself (nptl: SIGCANCEL, SIGSETXID): its
//! sigaction(3) refuses them, sigfillset(3) leaves them out and sigprocmask(3) never blocks them, so
//! that a program can neither replace, block nor see the stop signal, and may use SIGUSR1, SIGUSR2
//! and every signal from SIGRTMIN to SIGRTMAX. glibc itself sends 33 by tgkill(2) (si_code
//! SI_TKILL) when a threaded program changes its ids; what is not ours is passed on to it.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use stasis_sys::{
    Result, file,
    process::{self, KernelSigaction, SA_RESTORER, Siginfo},
    rdfsbase, sync,
};

use crate::{
    arch::{self, Frame},
    confined, credentials, dormant, interrupted, memory_policy, restart, state,
    threads::{self, Slot, request},
    vdso, wrappers,
};

pub const SIGNAL: i32 = 33;

/// si_value of our stop signals; the coordinator sends the same to the threads of a process that
/// stands stopped.
const COOKIE: u64 = 0x57_a515;

/// si_value of the stop signals that the coordinator queues to the threads of a process that stands stopped
/// (cli/src/coordinator/stopped.rs): when it is continued, they must not get on before they are asked to stop.
const COOKIE_STOPPED: u64 = 0x57_a516;

/// si_value of the signal by which the coordinator has a dormant process make its checkpoint thread, and of the one for a
/// process that stands stopped (cli/src/coordinator/stopped.rs).
const COOKIE_CALL: u64 = 0x57_a517;
const COOKIE_CALL_STOPPED: u64 = 0x57_a518;

/// The handler that was installed before ours (glibc's), and its flags.
static CHAINED: AtomicUsize = AtomicUsize::new(0);

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// SA_ONSTACK where the handler has it.
static ON_STACK: AtomicU64 = AtomicU64::new(0);

/// Installs the handler where it is not installed; keeps the one it replaces to pass signals on to.
/// glibc installs its own at the first pthread_create(3) (nptl/pthread_create.c, `late_init`), so
/// this is called before each checkpoint.
pub fn install() -> Result<()> {
    let ours = KernelSigaction {
        handler: arch::handler as *const () as usize,
        flags: (libc::SA_SIGINFO | libc::SA_RESTART) as u64 | SA_RESTORER | ON_STACK.load(Ordering::Relaxed),
        restorer: arch::return_from_signal as *const () as usize,
        mask: u64::MAX,
    };
    // SAFETY: the handler passes on what is not its own and keeps to this crate's rules.
    let old = unsafe { process::sigaction(SIGNAL, None)? };
    if old.handler != ours.handler {
        CHAINED.store(old.handler, Ordering::Release);
    }
    if old.handler != ours.handler || old.flags != ours.flags {
        // SAFETY: as above.
        unsafe { process::sigaction(SIGNAL, Some(&ours))? };
    }
    INSTALLED.store(true, Ordering::Release);
    Ok(())
}

/// The same, with frames on alternate stacks from now on, or on the threads' own; see [`crate::alternate`].
pub fn install_for(alternate: bool) -> Result<()> {
    ON_STACK.store(if alternate { libc::SA_ONSTACK as u64 } else { 0 }, Ordering::Relaxed);
    install()
}

/// Whether the handler is the one that the kernel calls.
pub fn is_installed() -> bool {
    // SAFETY: asks only.
    let action = unsafe { process::sigaction(SIGNAL, None) };
    action.is_ok_and(|action| action.handler == arch::handler as *const () as usize)
}

/// [`install`], where the handler had been installed; nothing is to be done in a process that is not checkpointed.
pub fn install_again() -> Result<()> {
    if INSTALLED.load(Ordering::Acquire) { install() } else { Ok(()) }
}

/// The stop signal as a set.
pub const SET: u64 = 1 << (SIGNAL - 1);

/// To be called by a thread that is about to end the process or its program, and with it the checkpoint thread: waits until
/// the store has what was copied, and is not stopped any more from then on. The signal mask that it had.
pub fn leave() -> u64 {
    loop {
        let before = process::block(SET);
        // The child of a vfork(2) keeps its parent's thread waiting, and has no checkpoint thread to lose.
        if !state::is_storing() || !dormant::is_own() {
            return before;
        }
        process::sigmask(before);
        if !state::await_stored() {
            return process::block(SET);
        }
    }
}

/// Sends the stop signal to one thread.
pub fn send(pid: i32, tid: i32) -> Result<()> {
    process::queue_to_thread(pid, tid, SIGNAL, &Siginfo::queued(SIGNAL, libc::SI_QUEUE, COOKIE))
}

/// Called by [`arch::handler`].
pub extern "C" fn handle(signal: i32, info: *mut Siginfo, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel gives a siginfo_t to a handler with SA_SIGINFO.
    let (code, value) = unsafe { ((*info).code(), (*info).value()) };
    // SAFETY: as above.
    if interrupted::is_expiry(unsafe { &*info }) {
        // SAFETY: this is the handler's own third argument.
        let mut frame = unsafe { Frame::new(context) };
        if !interrupted::expired(&mut frame) {
            let interruption = interrupted::suspend(&mut frame, None);
            interrupted::resume(&mut frame, &interruption, false);
        }
        return;
    }
    if code == credentials::SI_CODE {
        // SAFETY: as above.
        credentials::told(unsafe { &*info });
        return;
    }
    let mut stops = true;
    match u64::from(value) {
        _ if code != libc::SI_QUEUE => return pass_on(signal, info, context),
        COOKIE => {}
        COOKIE_STOPPED => await_stop(),
        // The coordinator had not seen the filter when it called: calls that are not allowed would end the program.
        COOKIE_CALL | COOKIE_CALL_STOPPED if confined::has(confined::FILTERS) => return,
        COOKIE_CALL => stops = dormant::called(),
        COOKIE_CALL_STOPPED => {
            stops = dormant::called();
            if stops {
                await_stop();
            }
        }
        _ => return pass_on(signal, info, context),
    }
    // SAFETY: this is the handler's own third argument.
    let mut frame = unsafe { Frame::new(context) };
    if !stops || !state::is_stopping() {
        // A signal that came too late for its checkpoint has interrupted a call all the same.
        let interruption = interrupted::suspend(&mut frame, None);
        interrupted::resume(&mut frame, &interruption, false);
        return;
    }
    let stopped_at = sync::monotonic_ns();
    if state::is_stopping_continued() {
        drop_further_stops();
    }
    let Some(slot) = threads::claim(process::gettid()) else { return };
    if runs_on(slot, &mut frame) {
        return;
    }
    slot.stopped_at.store(stopped_at, Ordering::Relaxed);
    describe(slot, &frame);
    let interruption = interrupted::suspend(&mut frame, Some(slot));
    let restarted = arch::park(slot);
    if restarted {
        restart::thread_arrived(slot);
    }
    interrupted::resume(&mut frame, &interruption, restarted);
}

/// Whether the thread is to leave the vDSO before it is stopped, not where it stood stopped by a signal; to let one go on that it has
/// made; or to come to the system call of a read(2), whose events may be taken from it. Not for ever.
fn runs_on(slot: &Slot, frame: &mut Frame<'_>) -> bool {
    let pc = frame.pc();
    let is_inside = vdso::holds(pc);
    slot.in_vdso.store(is_inside.into(), Ordering::Relaxed);
    /// It is never there for long; one that does nothing but make threads is met there time and again.
    const OFTEN: u32 = 1000;
    let leaves_vdso = is_inside && state::is_stopping_outside() && !vdso::is_urgent();
    let reads = wrappers::read::begins(pc) && !frame.at_system_call() && !frame.behind_system_call();
    let goes_on = slot.ran_on.load(Ordering::Relaxed) < OFTEN && (wrappers::threads::creates(pc) || reads);
    if !leaves_vdso && !goes_on {
        return false;
    }
    slot.ran_on.fetch_add(1, Ordering::Relaxed);
    // Its functions make system calls, too.
    let interruption = interrupted::suspend(frame, None);
    slot.state.store(threads::state::RUNS_ON, Ordering::Release);
    state::arrive_to_run_on();
    interrupted::resume(frame, &interruption, false);
    true
}

/// Calls the handler that was there before, as the kernel would.
fn pass_on(signal: i32, info: *mut Siginfo, context: *mut libc::ucontext_t) {
    let chained = CHAINED.load(Ordering::Acquire);
    if chained > 1 {
        // SAFETY: glibc's handler for this signal, with SA_SIGINFO.
        let chained: extern "C" fn(i32, *mut Siginfo, *mut libc::ucontext_t) =
            unsafe { core::mem::transmute(chained) };
        chained(signal, info, context);
    }
}

/// Keeps a thread of a process that is continued for a checkpoint from getting on before that begins. The SIGCONT
/// that continued it is pending behind this signal (a thread's own come before its process', kernel/signal.c,
/// `dequeue_signal`), and the checkpoint thread takes it when it is asked for the checkpoint.
fn await_stop() {
    /// In nanoseconds; then whoever continued the process is not there any more.
    const PATIENCE: u64 = 10_000_000_000;
    state::await_stopping(PATIENCE);
}

/// Takes the stop signals that are pending for the calling thread behind the one that it handles: one of an earlier
/// checkpoint may have come first, and the coordinator's for this one, met after it, would wait for another.
fn drop_further_stops() {
    while let Some(info) = process::take_pending(1 << (SIGNAL - 1)) {
        let cookies = COOKIE..=COOKIE_CALL_STOPPED;
        let ours = info.code() == libc::SI_QUEUE && cookies.contains(&u64::from(info.value()));
        if !ours {
            // glibc's; it waits for as long as all signals are blocked here.
            let _ = process::queue_to_thread(process::getpid(), process::gettid(), SIGNAL, &info);
            return;
        }
    }
}

/// Asks the kernel for what only the thread itself can ask.
fn describe(slot: &Slot, frame: &Frame<'_>) {
    let (fs, gs) = rdfsbase().unwrap_or_default();
    slot.fs_base.store(fs, Ordering::Relaxed);
    slot.gs_base.store(gs, Ordering::Relaxed);
    slot.mask.store(frame.mask(), Ordering::Relaxed);

    let (mut head, mut len) = (0u64, 0u64);
    let pointers = [0, &raw mut head as usize, &raw mut len as usize, 0, 0, 0];
    // SAFETY: get_robust_list(2) writes two words.
    unsafe { stasis_sys::raw(libc::SYS_get_robust_list, pointers) };
    slot.robust_head.store(head, Ordering::Relaxed);
    slot.robust_len.store(len, Ordering::Relaxed);

    const PR_GET_TID_ADDRESS: i32 = 40;
    let mut clear_tid = 0u64;
    let _ = process::prctl(PR_GET_TID_ADDRESS, [&raw mut clear_tid as usize, 0, 0, 0]);
    slot.clear_tid.store(clear_tid, Ordering::Relaxed);
    let mut pdeathsig = 0i32;
    let _ = process::prctl(libc::PR_GET_PDEATHSIG, [&raw mut pdeathsig as usize, 0, 0, 0]);
    slot.pdeathsig.store(pdeathsig as u32, Ordering::Relaxed);
    let slack = process::prctl(libc::PR_GET_TIMERSLACK, [0; 4]).unwrap_or(0);
    slot.timer_slack.store(slack as u64, Ordering::Relaxed);
    let mut name = [0u64; 2];
    let _ = process::prctl(libc::PR_GET_NAME, [name.as_mut_ptr() as usize, 0, 0, 0]);
    slot.name[0].store(name[0], Ordering::Relaxed);
    slot.name[1].store(name[1], Ordering::Relaxed);
    const SECBIT_KEEP_CAPS: u32 = 1 << 4;
    const SECBIT_KEEP_CAPS_LOCKED: u32 = 1 << 5;
    let bits = process::prctl(libc::PR_GET_SECUREBITS, [0; 4]).unwrap_or(0) as u32;
    let kept = bits & SECBIT_KEEP_CAPS;
    slot.keep_capabilities.store((kept != 0).into(), Ordering::Relaxed);
    let bits = if bits & SECBIT_KEEP_CAPS_LOCKED == 0 { bits & !kept } else { bits };
    slot.securebits.store(bits, Ordering::Relaxed);
    let mce_kill =
        process::prctl(libc::PR_MCE_KILL_GET, [0; 4]).unwrap_or(libc::PR_MCE_KILL_DEFAULT as usize);
    slot.mce_kill.store(mce_kill as u32, Ordering::Relaxed);
    slot.personality.store(personality(), Ordering::Relaxed);
    let mut tsc = libc::PR_TSC_ENABLE;
    let _ = process::prctl(libc::PR_GET_TSC, [&raw mut tsc as usize, 0, 0, 0]);
    slot.tsc.store(tsc as u32, Ordering::Relaxed);
    for (kind, kept) in slot.speculation.iter().enumerate() {
        kept.store(speculation(kind), Ordering::Relaxed);
    }
    memory_policy::describe(slot);
    describe_rseq(slot, fs);
}

/// The calling thread's execution domain.
pub fn personality() -> u32 {
    const ASK: usize = 0xffff_ffff;
    process::numbers(libc::SYS_personality, [ASK, 0, 0, 0, 0]).unwrap_or(0) as u32
}

/// PR_GET_SPECULATION_CTRL of the calling thread, for one kind of misfeature (linux/prctl.h, PR_SPEC_*).
pub fn speculation(kind: usize) -> u32 {
    process::prctl(libc::PR_GET_SPECULATION_CTRL, [kind, 0, 0, 0]).unwrap_or(0) as u32
}

/// RSEQ_SIG on x86 (linux/rseq.h; glibc sysdeps/unix/sysv/linux/x86/bits/rseq.h).
pub const RSEQ_SIGNATURE: usize = 0x5305_3053;

/// rseq(2) has no way to ask; but registering what is registered already fails with EBUSY, and with
/// EINVAL where something else is (kernel/rseq.c). glibc registers at `__rseq_offset` from the thread
/// pointer (2.35).
fn describe_rseq(slot: &Slot, thread_pointer: u64) {
    let Some((offset, len)) = restart::glibc_rseq() else { return };
    let address = thread_pointer.wrapping_add_signed(offset);
    const RSEQ_FLAG_UNREGISTER: usize = 1;
    for len in [len.max(32), 32] {
        let arguments = [address as usize, len as usize, 0, RSEQ_SIGNATURE, 0];
        match process::numbers(libc::SYS_rseq, arguments) {
            Err(error) if error.0 == libc::EBUSY => {
                slot.rseq.store(address, Ordering::Relaxed);
                slot.rseq_len.store(len, Ordering::Relaxed);
                return;
            }
            Ok(_) => {
                let arguments = [address as usize, len as usize, RSEQ_FLAG_UNREGISTER, RSEQ_SIGNATURE, 0];
                let _ = process::numbers(libc::SYS_rseq, arguments);
                return;
            }
            Err(_) => {}
        }
    }
}

/// Called by [`arch::park`] with the thread's registers saved.
pub extern "C" fn parked(slot: &Slot) {
    let ticket = state::release_ticket();
    slot.state.store(threads::state::STOPPED, Ordering::Release);
    state::arrive();
    state::await_release(ticket, || answer(slot));
}

/// Does what the checkpoint thread asks of this thread. The kernel lets nobody but the thread itself (or, for
/// the process, its leader) queue a signal as it was: with si_code SI_USER, SI_TKILL or the kernel's own
/// (kernel/signal.c, `do_rt_sigqueueinfo`).
pub fn answer(slot: &Slot) {
    let (pid, tid) = (process::getpid(), slot.tid.load(Ordering::Relaxed));
    let given = || {
        let signals = slot.signals.load(Ordering::Relaxed) as *const Siginfo;
        // SAFETY: the checkpoint thread's, which waits until the request is answered.
        unsafe { core::slice::from_raw_parts(signals, slot.signal_count.load(Ordering::Relaxed)) }
    };
    match slot.request.load(Ordering::Acquire) {
        request::TAKE => {
            let taken = process::take_pending(slot.request_set.load(Ordering::Relaxed));
            note(slot, &taken.unwrap_or(Siginfo([0; 128])));
        }
        request::QUEUE => {
            for info in given() {
                let _ = process::queue_to_thread(pid, tid, info.signal(), info);
            }
        }
        request::QUEUE_TO_PROCESS => {
            for info in given() {
                let _ = process::queue_to_process(pid, info.signal(), info);
            }
        }
        request::DESCRIPTOR_FLAGS => {
            let fd = slot.request_set.load(Ordering::Relaxed) as i32;
            let flags = file::fcntl(fd, libc::F_GETFD, 0).map_or(u64::MAX, |flags| flags as u64);
            slot.request_set.store(flags, Ordering::Relaxed);
        }
        _ => return,
    }
    slot.request.store(0, Ordering::Release);
    state::arrive();
}

fn note(slot: &Slot, info: &Siginfo) {
    for (to, from) in slot.siginfo.iter().zip(info.0.as_chunks::<8>().0) {
        to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
    }
}

/// Has a thread that waits do something, and waits until it is done; whether it is. To be asked of those alone that stand in
/// the stop handler ([`waits`]): what does not answer will not.
fn ask(slot: &Slot, what: u32) -> bool {
    /// In nanoseconds.
    const PATIENCE: u64 = 3_000_000_000;
    slot.request.store(what, Ordering::Release);
    let until = sync::monotonic_ns() + PATIENCE;
    loop {
        let seen = state::arrivals();
        if slot.request.load(Ordering::Acquire) == 0 {
            return true;
        }
        if sync::monotonic_ns() > until {
            return slot.request.compare_exchange(what, 0, Ordering::AcqRel, Ordering::Acquire) != Ok(what);
        }
        state::nudge();
        state::await_arrival(seen, 1_000_000);
    }
}

/// Whether a thread stands in the stop handler.
pub fn waits(slot: &Slot) -> bool {
    matches!(slot.state.load(Ordering::Acquire), threads::state::STOPPED | threads::state::ARRIVED)
}

/// Has a thread queue signals to itself.
pub fn queue(slot: &Slot, signals: &[Siginfo]) {
    ask_to_queue(slot, request::QUEUE, signals);
}

/// Has the leader queue signals to the process.
pub fn queue_to_process(leader: &Slot, signals: &[Siginfo]) {
    ask_to_queue(leader, request::QUEUE_TO_PROCESS, signals);
}

fn ask_to_queue(slot: &Slot, what: u32, signals: &[Siginfo]) {
    slot.signals.store(signals.as_ptr() as usize, Ordering::Relaxed);
    slot.signal_count.store(signals.len(), Ordering::Relaxed);
    ask(slot, what);
}

/// F_GETFD of a descriptor of the program's table, asked by a stopped thread.
pub fn descriptor_flags(slot: &Slot, fd: i32) -> Option<i32> {
    slot.request_set.store(fd as u64, Ordering::Relaxed);
    if !ask(slot, request::DESCRIPTOR_FLAGS) {
        return None;
    }
    i32::try_from(slot.request_set.load(Ordering::Relaxed)).ok()
}

/// Has a stopped thread take one signal of `set` that is pending: signals to a thread alone come
/// before those to its process (kernel/signal.c, `dequeue_signal`).
pub fn take_one_of(slot: &Slot, set: u64) -> Option<Siginfo> {
    slot.request_set.store(set, Ordering::Relaxed);
    if !ask(slot, request::TAKE) {
        return None;
    }
    let mut info = [0u8; 128];
    for (to, from) in info.as_chunks_mut::<8>().0.iter_mut().zip(&slot.siginfo) {
        *to = from.load(Ordering::Relaxed).to_ne_bytes();
    }
    let info = Siginfo(info);
    (info.signal() != 0).then_some(info)
}
