//! Standing in for the program: whoever started `stasis restart` sees it stop, go on and end as the program
//! does, and signals sent to it reach the program.

use std::{io, os::fd::AsFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, killpg, raise, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, getpgid, getpgrp, tcsetpgrp},
};

use super::{namespace::Change, running::Child, terminal};
use crate::failure::ExitCode;

/// Waits for the program's end; the exit code is the program's.
///
/// # Errors
/// When the program cannot be waited for.
pub fn stand_in(mut child: Child) -> anyhow::Result<ExitCode> {
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    let mut signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        while let Change::Status(status) = change(&child)? {
            if libc::WIFEXITED(status) {
                take_terminal(&child);
                return Ok(ExitCode(libc::WEXITSTATUS(status) as u8));
            }
            if libc::WIFSIGNALED(status) {
                take_terminal(&child);
                end_by(libc::WTERMSIG(status));
            }
            stopped(&mut child, libc::WSTOPSIG(status));
        }
        wait(&signals, &child)?;
        pass_on(&mut signals, &child)?;
    }
}

/// What has become of the program since it was last asked. Does not wait.
fn change(child: &Child) -> io::Result<Change> {
    if let Some(init) = &child.init {
        return init.change();
    }
    loop {
        let mut status = 0;
        // Whoever has ended: orphans of the computation are children of this process.
        // SAFETY: waitpid(2) writes one word.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) } {
            0 => return Ok(Change::None),
            -1 => return Err(io::Error::last_os_error()),
            changed if changed == child.pid.as_raw() => return Ok(Change::Status(status)),
            _ => {}
        }
    }
}

/// Stopped from the terminal (Ctrl-Z): the shell is to see its job stop. So it is where the program stood stopped at the
/// checkpoint, and stops again by SIGSTOP. One that somebody stops by SIGSTOP later is continued by them.
fn stopped(child: &mut Child, signal: i32) {
    let stops_again =
        std::mem::take(&mut child.stood_stopped) && signal == libc::SIGSTOP && terminal::is_job();
    if !stops_again && ![libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal) {
        return;
    }
    take_terminal(child);
    let _ = raise(Signal::SIGSTOP);
    take_continue();
    // A shell continues the group of `stasis restart`. Once only: what the terminal stops in between is to stay so.
    if let Some(group) = child.terminal {
        give_terminal(group);
        let _ = killpg(group, Signal::SIGCONT);
    }
    let group = getpgid(Some(child.pid)).ok();
    let is_continued = group == child.terminal || group == Some(getpgrp()) && terminal::is_job();
    if group.is_none() || !is_continued {
        let _ = child.handle.signal(libc::SIGCONT);
    }
}

/// Takes the SIGCONT that has ended a stop: it is passed on with that.
fn take_continue() {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the set is plain data, initialized by sigemptyset(3); sigtimedwait(2) reads it and the time-out.
    unsafe {
        let mut only = std::mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, libc::SIGCONT);
        libc::sigtimedwait(&raw const only, std::ptr::null_mut(), &raw const at_once);
    }
}

/// Waits for a signal or for news. A child of ours that changes is a signal, SIGCHLD.
fn wait(signals: &SignalFd, child: &Child) -> nix::Result<()> {
    let mut ready = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    ready.extend(child.init.as_ref().map(|init| PollFd::new(init.channel(), PollFlags::POLLIN)));
    match poll(&mut ready, PollTimeout::NONE) {
        Err(error) if error != Errno::EINTR => Err(error),
        _ => Ok(()),
    }
}

/// Passes on what has come. What the terminal sends goes to the whole foreground group, so the program has it
/// already (si_code SI_KERNEL, sigaction(2)), unless it has a group of its own.
fn pass_on(signals: &mut SignalFd, child: &Child) -> nix::Result<()> {
    while let Some(info) = signals.read_signal()? {
        let signal = info.ssi_signo as i32;
        let from_terminal = info.ssi_code == libc::SI_KERNEL;
        if signal != libc::SIGCHLD && (!from_terminal || child.terminal.is_some()) {
            // A realtime signal keeps its number, not its value. The program may have ended just now.
            let _ = child.handle.signal(signal);
        }
    }
    Ok(())
}

fn give_terminal(group: Pid) {
    if let Ok(terminal) = std::fs::File::open("/dev/tty") {
        let _ = tcsetpgrp(&terminal, group);
    }
}

fn take_terminal(child: &Child) {
    if child.terminal.is_some()
        && let Ok(terminal) = std::fs::File::open("/dev/tty")
    {
        let _ = tcsetpgrp(&terminal, getpgrp());
    }
}

/// Ends this process by the signal that ended the program.
fn end_by(signal: i32) -> ! {
    // By numbers: realtime signals have no name in nix. SIGKILL has no action to set, and cannot be blocked.
    // SAFETY: the default action is sound for any signal, and the set is initialized by sigemptyset(3).
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
        let mut only = std::mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut());
    }
    std::process::exit(128 + signal)
}
