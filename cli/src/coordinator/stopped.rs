//! A process that a signal stopped (SIGSTOP, or ^Z): none of its threads runs, the checkpoint thread
//! neither, so it cannot answer.
//!
//! It is continued, but its program must not get on meanwhile: the signal by which the library stops
//! threads is queued to each of them first, and the kernel delivers pending signals before a continued
//! thread returns to its program.

use std::{io, mem, os::fd::OwnedFd, time::Duration};

use stasis_protocol::coordinator::ToProcess;
use tokio::time::{Instant, sleep};

use super::computation::Member;
use crate::process;

/// The signal that stops a program's threads. glibc keeps 32 and 33 for itself (nptl/internal-signals.h:
/// SIGCANCEL, SIGSETXID) and lets no program use them.
const STOP_SIGNAL: i32 = 33;

/// Tells the library that the process stood stopped: its threads wait in the handler for the checkpoint to begin
/// (preload/src/stop.rs). Also tells our stop signal from glibc's own use of the same number.
const STOP_VALUE: i32 = 0x57_A516;

/// The name (comm) of the library's own thread, which must run.
const CHECKPOINT_THREAD: &str = "stasis-ckpt";

/// How long a process may take to act upon a SIGSTOP; on a busy machine it must first be scheduled.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// How often it is looked at: nothing tells of the stops of processes that are not our children.
const LOOK: Duration = Duration::from_millis(1);

/// Waits until a SIGSTOP that was sent to a process before has been acted upon: whoever says
/// `kill -STOP` and then `stasis checkpoint` means a stopped process.
pub async fn settle(real_pid: u32) {
    let until = Instant::now() + STOP_DEADLINE;
    while process::is_about_to_stop(real_pid) && !process::is_stopped(real_pid) && Instant::now() < until {
        sleep(LOOK).await;
    }
}

/// Waits until a restarted process that stood stopped has stopped itself: nobody may go on before, who might continue it
/// too early.
pub async fn await_stop(real_pid: u32) {
    let until = Instant::now() + STOP_DEADLINE;
    while !process::is_stopped(real_pid) && process::state(real_pid).is_some() && Instant::now() < until {
        sleep(LOOK).await;
    }
}

/// Sends `message`, and a descriptor, to a process that stands stopped and continues it, in such a way that only
/// its checkpoint thread runs.
///
/// # Errors
/// Why it cannot be done; the process still stands stopped.
pub fn wake(member: &Member, message: &ToProcess, beside: Option<OwnedFd>) -> Result<(), String> {
    let threads = process::threads(member.real_pid)
        .map_err(|error| format!("its threads cannot be listed: {error}"))?;
    if !threads.iter().any(|thread| thread.name == CHECKPOINT_THREAD) {
        return Err("it stands stopped by a signal and has no checkpoint thread".into());
    }
    for thread in threads.iter().filter(|thread| thread.name != CHECKPOINT_THREAD) {
        match queue_stop(member.real_pid, thread.tid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(format!("it stands stopped, and thread {}: {error}", thread.tid)),
            Ok(()) => {}
        }
    }
    member.send_beside(message, beside)?;
    member.pidfd.signal(libc::SIGCONT).map_err(|error| format!("it cannot be continued: {error}"))
}

/// siginfo_t as the kernel lays it out for SI_QUEUE (rt_sigqueueinfo(2)).
#[repr(C)]
struct QueuedSignal {
    signo: i32,
    errno: i32,
    code: i32,
    _alignment: i32,
    pid: i32,
    uid: u32,
    /// union sigval: sival_int is its first four bytes.
    value: u64,
    _rest: [u64; 12],
}

const _: () = assert!(mem::size_of::<QueuedSignal>() == mem::size_of::<libc::siginfo_t>());

/// Queues the stop signal to a thread.
fn queue_stop(pid: u32, tid: u32) -> io::Result<()> {
    let info = QueuedSignal {
        signo: STOP_SIGNAL,
        errno: 0,
        code: libc::SI_QUEUE,
        _alignment: 0,
        pid: std::process::id() as i32,
        uid: nix::unistd::getuid().as_raw(),
        value: STOP_VALUE as u64,
        _rest: [0; 12],
    };
    // SAFETY: the kernel reads one siginfo_t, which `info` is as large as (checked above).
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            pid as libc::pid_t,
            tid as libc::pid_t,
            STOP_SIGNAL,
            &raw const info,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
