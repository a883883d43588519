//! Bringing every thread of the program to a stop, in bounded time.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::Ordering;

use stasis_protocol::coordinator::Refusal;
use stasis_sys::{Errno, file, process, sync};

use crate::{
    alternate,
    interrupted::call,
    procfs, signal_limit, stacks,
    state::{self, Stop},
    stop,
    threads::{self, Slot},
    vdso,
};

/// When no thread has come to a stop for so long, in nanoseconds, one that has not is named and the checkpoint given up:
/// where many share a processor, the last of them comes to run late.
const DEADLINE: u64 = 3_000_000_000;

/// How long to wait for arrivals before looking whether threads have ended meanwhile.
const LOOK_AGAIN: u64 = 2_000_000;

/// Stands for "all threads are stopped"; [`Quiet::release`] lets them go on.
pub struct Quiet {
    /// The threads that stand in the stop handler.
    pub tids: Vec<i32>,
    /// Threads that have ended but wait to be the last (a leader after pthread_exit(3)).
    pub exited: Vec<i32>,
    /// CLOCK_MONOTONIC when the first stop signal was sent, in nanoseconds.
    pub since: u64,
    /// The same when the last of them had stopped: from then on nobody ran.
    pub complete: u64,
}

impl Quiet {
    /// Lets the threads go on; how long they stood, in microseconds.
    pub fn release(self) -> u64 {
        state::release();
        (sync::monotonic_ns() - self.since) / 1000
    }
}

/// Stops every thread but the calling one. Where the process stood stopped by a signal, the coordinator has
/// queued a stop signal to each of its threads before it continued them.
///
/// # Errors
/// A refusal that names the thread that could not be stopped; all run again then.
pub fn quiesce(stop: Stop) -> Result<Quiet, Refusal> {
    let pid = process::getpid();
    let own = process::gettid();
    let mut present = Vec::new();
    list(own, &mut present);
    stacks::provide(present.len());
    // SAFETY: no thread is stopped between checkpoints.
    let room = unsafe { threads::clear(present.len()) };
    room.and_then(|()| call::provide(present.len())).map_err(|error| Refusal {
        what: format!("pid {pid}"),
        reason: format!("there is no memory for the state of its {} threads: {error}", present.len()),
        remedy: "raise its limit of address space (ulimit -v), if it has one, or free memory".into(),
    })?;
    // The signal goes out after all threads were looked at: what follows is the pause.
    let actions = alternate::Actions::ask();
    let mut on_alternate = Vec::new();
    for &tid in &present {
        if actions.want_alternate(observe(tid)) {
            on_alternate.push(tid);
        }
    }
    // Those only when all others have their frames: an action is the process'.
    let mut later = if on_alternate.len() == present.len() { Vec::new() } else { on_alternate.clone() };
    later.sort_unstable();
    install(!on_alternate.is_empty() && later.is_empty())?;
    let since = sync::monotonic_ns();
    vdso::begin(since);
    state::start_stopping(stop);
    let mut signalled: Vec<i32> = Vec::with_capacity(present.len());
    let (mut looked_at, mut raised) = (Vec::with_capacity(present.len()), None);
    let (mut last_seen, mut last_arrival) = (state::arrivals(), since);
    loop {
        let (seen, ran_on) = (state::arrivals(), state::running_on());
        if core::mem::replace(&mut last_seen, seen) != seen {
            last_arrival = sync::monotonic_ns();
        }
        for &tid in &present {
            if later.binary_search(&tid).is_ok() {
                continue;
            }
            if let Err(at) = signalled.binary_search(&tid) {
                let mut sent = stop::send(pid, tid);
                if sent == Err(Errno(libc::EAGAIN)) && raised.is_none() {
                    raised = signal_limit::Raised::limit();
                    sent = stop::send(pid, tid);
                }
                match sent {
                    Ok(()) => signalled.insert(at, tid),
                    Err(Errno(libc::EAGAIN)) => {
                        state::release();
                        return Err(too_many_signals(pid, tid));
                    }
                    // It has ended.
                    Err(_) => {}
                }
            }
        }
        let (mut waiting, mut exited) = (None, Vec::new());
        for &tid in present.iter().filter(|tid| later.binary_search(tid).is_err()) {
            let slot = threads::claim(tid);
            match slot.map_or(0, |slot| slot.state.load(Ordering::Acquire)) {
                threads::state::STOPPED => continue,
                threads::state::RUNS_ON => {
                    if let Some(slot) = slot {
                        stop_again(slot);
                    }
                }
                _ if is_zombie(tid) => {
                    exited.push(tid);
                    continue;
                }
                _ => {}
            }
            waiting = Some(tid);
        }
        if waiting.is_none() && !later.is_empty() {
            later.clear();
            if let Err(refusal) = install(true) {
                state::release();
                return Err(refusal);
            }
            continue;
        }
        if waiting.is_some() {
            let count = state::arrivals();
            let more_come = count == seen || count.wrapping_sub(seen) < present.len() as u32;
            // Who runs on comes no more unless it is asked to.
            if more_come && state::running_on() == ran_on {
                state::await_arrival(count, LOOK_AGAIN);
            }
        }
        // A thread that was stopped may have made another just before, and a list that is read while a thread ends may lack
        // others (fs/proc/base.c, `next_tid`): only one that holds those who were seen to stand, nobody else, ends the search.
        core::mem::swap(&mut looked_at, &mut present);
        list(own, &mut present);
        if waiting.is_none() && present == looked_at {
            present.retain(|tid| !exited.contains(tid));
            return Ok(Quiet { tids: present, exited, since, complete: sync::monotonic_ns() });
        }
        if sync::monotonic_ns() - last_arrival > DEADLINE
            && let Some(tid) = waiting
        {
            let refusal = explain(pid, tid);
            state::release();
            return Err(refusal);
        }
    }
}

fn install(alternate: bool) -> Result<(), Refusal> {
    stop::install_for(alternate).map_err(|error| Refusal {
        what: format!("pid {}", process::getpid()),
        reason: format!("the handler of the stop signal cannot be installed: {error}"),
        remedy: "report this".into(),
    })
}

fn too_many_signals(pid: i32, tid: i32) -> Refusal {
    Refusal {
        what: format!("pid {pid}, thread {tid}"),
        reason:
            "no more signals may be queued for this user (RLIMIT_SIGPENDING), so it cannot be asked to stop"
                .into(),
        remedy: "raise the limit (ulimit -i), or let the program take signals that are queued for it".into(),
    }
}

/// Stops a thread that was met in the vDSO a moment ago.
fn stop_again(slot: &Slot) {
    /// To be told that it runs on takes longer than the vDSO's functions, unless both share a processor: then it would have been
    /// interrupted before it got on. In nanoseconds.
    const MOMENT: u64 = 20_000;
    if slot.ran_on.load(Ordering::Relaxed) > 2 {
        state::pause(MOMENT);
    }
    let tid = slot.tid.load(Ordering::Relaxed);
    slot.state.store(0, Ordering::Release);
    observe(tid);
    let _ = stop::send(process::getpid(), tid);
}

/// The tids of this process but one.
fn list(own: i32, tids: &mut Vec<i32>) {
    tids.clear();
    let _ = procfs::numbered_entries(c"/proc/self/task", |tid| {
        if tid != own {
            tids.push(tid);
        }
    });
}

/// Notes the system call that a thread is blocked in, if it is (proc(5), /proc/pid/syscall): the
/// signal frame does not hold its number. Its stack pointer there.
fn observe(tid: i32) -> Option<u64> {
    let slot = threads::claim(tid)?;
    let none = u64::MAX;
    slot.call.store(none, Ordering::Relaxed);
    let mut content = [0u8; 256];
    let path = path!("/proc/self/task/{tid}/syscall");
    let fd = procfs::open(path.as_c_str()).ok()?;
    let len = file::read(fd, &mut content).unwrap_or(0);
    let _ = file::close(fd);
    let mut words = procfs::words(content[..len].trim_ascii());
    let nr = words.next().and_then(procfs::decimal)?;
    let mut values = [0u64; 8];
    for value in &mut values {
        *value = words.next().and_then(procfs::hex)?;
    }
    for (to, value) in slot.call_arguments.iter().zip(values) {
        to.store(value, Ordering::Relaxed);
    }
    slot.call_sp.store(values[6], Ordering::Relaxed);
    slot.call_pc.store(values[7], Ordering::Relaxed);
    slot.call.store(nr, Ordering::Release);
    Some(values[6])
}

fn is_zombie(tid: i32) -> bool {
    procfs::field(&procfs::thread_status(tid), "State:").is_some_and(|state| state.starts_with(b"Z"))
}

/// Why a thread could not be stopped.
fn explain(pid: i32, tid: i32) -> Refusal {
    let status = procfs::thread_status(tid);
    let text = |key| String::from_utf8_lossy(procfs::field(&status, key).unwrap_or(b"?")).into_owned();
    let what = format!("pid {pid}, thread {tid} ({})", text("Name:"));
    let blocked = procfs::field(&status, "SigBlk:").and_then(procfs::hex).unwrap_or(0);
    let (reason, remedy) = if blocked & 1 << (stop::SIGNAL - 1) != 0 {
        (
            format!("it blocks signal {} by a raw system call, and so cannot be stopped", stop::SIGNAL),
            "let the program block signals by sigprocmask(3) or pthread_sigmask(3)".into(),
        )
    } else {
        (
            format!(
                "it did not come to a stop within {} s; it is in state {}",
                DEADLINE / 1_000_000_000,
                text("State:")
            ),
            "try again when the system call it waits in has returned".into(),
        )
    };
    Refusal { what, reason, remedy }
}
