//! Standing in for the program: whoever started `stasis restart` sees it stop, go on and end as the program
//! does, and signals sent to it reach the program.

use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, raise, sigaction, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpgrp, tcsetpgrp},
};

use super::spawn::Child;
use crate::failure::ExitCode;

/// Waits for the program's end; the exit code is the program's.
///
/// # Errors
/// When the child cannot be waited for.
pub fn stand_in(child: Child) -> anyhow::Result<ExitCode> {
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    if child.owns_terminal {
        give_terminal(child.pid);
    }
    loop {
        match waitpid(child.pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED))? {
            WaitStatus::Exited(_, code) => {
                take_terminal(&child);
                return Ok(ExitCode(code as u8));
            }
            WaitStatus::Signaled(_, signal, _) => {
                take_terminal(&child);
                end_by(signal);
            }
            // Stopped from the terminal (Ctrl-Z): the shell is to see its job stop. A program that somebody stops by
            // SIGSTOP is continued by them.
            WaitStatus::Stopped(_, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) => {
                take_terminal(&child);
                let _ = raise(Signal::SIGSTOP);
                if child.owns_terminal {
                    give_terminal(child.pid);
                }
                let _ = kill(child.pid, Signal::SIGCONT);
                continue;
            }
            _ => {}
        }
        pass_on(&all, &child);
    }
}

/// Waits for one signal and passes it on. What the terminal sends goes to the whole foreground group, so
/// the program has it already (si_code SI_KERNEL, sigaction(2)), unless it has a group of its own.
fn pass_on(all: &SigSet, child: &Child) {
    // SAFETY: siginfo_t is plain data, filled in by sigwaitinfo(2).
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: waits for one of a set of blocked signals.
    let signal = unsafe { libc::sigwaitinfo(all.as_ref(), &mut info) };
    if signal <= 0 || signal == libc::SIGCHLD {
        return;
    }
    let from_terminal = info.si_code == libc::SI_KERNEL;
    if !from_terminal || child.owns_terminal {
        // SAFETY: kill(2) takes numbers; a realtime signal keeps its number, not its value.
        unsafe { libc::kill(child.pid.as_raw(), signal) };
    }
}

fn give_terminal(pid: Pid) {
    if let Ok(terminal) = std::fs::File::open("/dev/tty") {
        let _ = tcsetpgrp(&terminal, pid);
    }
}

fn take_terminal(child: &Child) {
    if child.owns_terminal
        && let Ok(terminal) = std::fs::File::open("/dev/tty")
    {
        let _ = tcsetpgrp(&terminal, getpgrp());
    }
}

/// Ends this process by the signal that ended the program.
fn end_by(signal: Signal) -> ! {
    let default = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::SigDfl,
        nix::sys::signal::SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the default action is sound for any signal.
    let _ = unsafe { sigaction(signal, &default) };
    let _ = raise(signal);
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None);
    std::process::exit(128 + signal as i32)
}
