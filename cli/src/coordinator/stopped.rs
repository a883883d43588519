//! A process that a signal stopped (SIGSTOP, or ^Z): none of its threads runs, the checkpoint thread
//! neither, so it cannot answer.
//!
//! It is continued, but its program must not get on meanwhile: the signal by which the library stops
//! threads is queued to each of them first, and the kernel delivers pending signals before a continued
//! thread returns to its program.

use std::{io, mem, os::fd::OwnedFd, time::Duration};

use stasis_protocol::coordinator::ToProcess;
use tokio::time::{Instant, sleep};

use super::{computation::Member, log};
use crate::process::{self, Pidfd};

/// The signal that stops a program's threads. glibc keeps 32 and 33 for itself (nptl/internal-signals.h:
/// SIGCANCEL, SIGSETXID) and lets no program use them.
pub const STOP_SIGNAL: i32 = 33;

/// Tells the library that the process stood stopped: its threads wait in the handler for the checkpoint to begin
/// (preload/src/stop.rs). Also tells our stop signal from glibc's own use of the same number.
const STOP_VALUE: i32 = 0x57_A516;

/// Has a dormant process make its checkpoint thread; the second, one that stands stopped, whose thread that gets it then
/// waits like the others (preload/src/dormant.rs).
const CALL_VALUE: i32 = 0x57_A517;
const CALL_STOPPED_VALUE: i32 = 0x57_A518;

/// The name (comm) of the library's own thread, which must run.
pub const CHECKPOINT_THREAD: &str = "stasis-ckpt";

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

/// Waits until a process that stood stopped, and is restarted or was continued for a checkpoint, has stopped itself, and its parent
/// knows: nobody may go on before, who might continue it too early. (A shell continues jobs only of which it knows that they stand.)
pub async fn await_stop(real_pid: u32) {
    let until = Instant::now() + STOP_DEADLINE;
    while !process::has_stopped(real_pid) {
        if process::state(real_pid).is_none() {
            return;
        }
        if Instant::now() >= until {
            log::line(format_args!(
                "process {real_pid} was to stop itself, and has not after {STOP_DEADLINE:?}"
            ));
            return;
        }
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
        stop_when_continued(member.real_pid, thread.tid, STOP_VALUE)?;
    }
    member.send_beside(message, beside)?;
    member.pidfd.signal(libc::SIGCONT).map_err(|error| format!("it cannot be continued: {error}"))
}

fn stop_when_continued(pid: u32, tid: u32, value: i32) -> Result<(), String> {
    match queue(pid, Some(tid), value) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(format!("it stands stopped, and thread {tid}: {error}"))
        }
        _ => Ok(()),
    }
}

/// Has a process that may be dormant make its checkpoint thread, which says hello. Whether it stood stopped: then it has been
/// continued, and its threads wait for the checkpoint.
///
/// # Errors
/// Why it cannot be called.
pub fn call(real_pid: u32, pidfd: &Pidfd) -> Result<bool, String> {
    if !process::is_stopped(real_pid) {
        return match queue(real_pid, None, CALL_VALUE) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error.to_string()),
            _ => Ok(false),
        };
    }
    let threads = process::threads(real_pid).map_err(|error| error.to_string())?;
    if threads.iter().any(|thread| thread.name == CHECKPOINT_THREAD) {
        // It is about to join, when somebody continues it.
        return Ok(false);
    }
    for thread in &threads {
        let value = if thread.tid == real_pid { CALL_STOPPED_VALUE } else { STOP_VALUE };
        stop_when_continued(real_pid, thread.tid, value)?;
    }
    pidfd.signal(libc::SIGCONT).map_err(|error| format!("it cannot be continued: {error}"))?;
    Ok(true)
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

/// Queues the stop signal to a process or to one of its threads.
fn queue(pid: u32, tid: Option<u32>, value: i32) -> io::Result<()> {
    let info = QueuedSignal {
        signo: STOP_SIGNAL,
        errno: 0,
        code: libc::SI_QUEUE,
        _alignment: 0,
        pid: std::process::id() as i32,
        uid: nix::unistd::getuid().as_raw(),
        value: value as u64,
        _rest: [0; 12],
    };
    // SAFETY: the kernel reads one siginfo_t, which `info` is as large as (checked above).
    let result = unsafe {
        match tid {
            Some(tid) => libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                pid,
                tid,
                libc::c_long::from(STOP_SIGNAL),
                &raw const info,
            ),
            None => libc::syscall(
                libc::SYS_rt_sigqueueinfo,
                pid,
                libc::c_long::from(STOP_SIGNAL),
                &raw const info,
            ),
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
