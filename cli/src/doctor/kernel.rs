//! What the kernel tells and allows: the state that only it knows, and pids of one's choice.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use nix::{
    sys::{
        signal::{SigmaskHow, sigprocmask},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

use super::Finding;
use crate::{
    context::Context,
    process::Pidfd,
    restart::{namespace, session::Session},
    tracer,
};

/// linux/prctl.h
const PR_GET_TID_ADDRESS: i32 = 40;

const NEEDS_NAMESPACES: &str = "user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone) and a \
     /proc of which nothing is hidden (container engines hide parts)";

const NEEDS_CONFIG: &str = "a kernel with CONFIG_CHECKPOINT_RESTORE, as all distributions have";

pub fn release() -> Finding {
    match nix::sys::utsname::uname() {
        Ok(name) => Finding::Works(format!(
            "{} {} {}",
            name.sysname().to_string_lossy(),
            name.release().to_string_lossy(),
            name.machine().to_string_lossy()
        )),
        Err(error) => Finding::missing(format!("uname: {error}"), "is this Linux?"),
    }
}

/// Where a thread's id is cleared at its end, which pthread_join waits for.
pub fn tid_address() -> Finding {
    let mut address: *mut i32 = ptr::null_mut();
    // SAFETY: PR_GET_TID_ADDRESS writes one pointer (prctl(2)).
    let result = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut address) };
    match result {
        0 if !address.is_null() => Finding::Works("PR_GET_TID_ADDRESS".into()),
        0 => Finding::missing("PR_GET_TID_ADDRESS tells nothing", NEEDS_CONFIG),
        _ => Finding::missing(format!("PR_GET_TID_ADDRESS: {}", io::Error::last_os_error()), NEEDS_CONFIG),
    }
}

/// Makes a POSIX timer and looks for it.
pub fn timers() -> Finding {
    match list_own_timer() {
        Ok(true) => Finding::Works("/proc/PID/timers".into()),
        Ok(false) => Finding::missing("/proc/self/timers does not show a timer that is there", NEEDS_CONFIG),
        Err(error) => Finding::missing(format!("/proc/self/timers: {error}"), NEEDS_CONFIG),
    }
}

fn list_own_timer() -> io::Result<bool> {
    // SAFETY: sigevent is integers and a union of such; zero is a valid value of it.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_NONE;
    let mut timer: libc::timer_t = ptr::null_mut();
    // SAFETY: reads one sigevent and writes one timer_t.
    if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let listed = fs::read_to_string("/proc/self/timers");
    // SAFETY: the timer was made above and is deleted once.
    unsafe { libc::timer_delete(timer) };
    Ok(listed?.contains("ID:"))
}

/// Takes a descriptor out of a child.
pub fn pidfd_getfd() -> Finding {
    match descriptor_of_child() {
        Ok(()) => Finding::Works("took a descriptor out of a child".into()),
        Err(error) => Finding::missing(
            format!("pidfd_getfd: {error}"),
            "Linux 5.6 or later; in a container, a seccomp profile that allows it and ptrace (Docker: --cap-add SYS_PTRACE)",
        ),
    }
}

fn descriptor_of_child() -> io::Result<()> {
    let null = File::open("/dev/null")?;
    // SAFETY: this process has one thread; the child makes two system calls.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            nix::unistd::pause();
            // SAFETY: takes an integer.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    let taken = (|| {
        let pidfd = Pidfd::open(child.as_raw() as u32)?;
        // SAFETY: pidfd_getfd(2) takes integers only.
        let fd =
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_fd().as_raw_fd(), null.as_raw_fd(), 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        Ok(())
    })();
    nix::sys::signal::kill(child, nix::sys::signal::SIGKILL)?;
    waitpid(child, None)?;
    taken
}

/// Makes a process with a pid of our choice, as restart does; else, asks the tracer, and tries the namespaces in which that is
/// allowed to everybody.
pub fn set_tid(context: &Context) -> Finding {
    let denied = match choose_pid() {
        Ok(pid) => return Finding::Works(format!("clone3 gave the pid {pid} that was asked for")),
        Err(error) => error,
    };
    if context.address().and_then(|address| tracer::of_ids(&address)).is_ok() {
        return Finding::Works(format!("clone3 with set_tid: {denied}; the tracer gives them instead"));
    }
    match namespaces() {
        Finding::Works(how) => Finding::falls(
            format!("clone3 with set_tid: {denied}; {how}, which takes its place"),
            "for the same pids without a namespace, CAP_CHECKPOINT_RESTORE, or the tracer",
        ),
        _ => Finding::missing(
            format!("clone3 with set_tid: {denied}"),
            format!("CAP_CHECKPOINT_RESTORE, or {NEEDS_NAMESPACES}"),
        ),
    }
}

fn choose_pid() -> io::Result<Pid> {
    // The pid of a child that has been waited for is free; somebody else may be faster.
    let mut last = io::Error::from_raw_os_error(libc::EEXIST);
    for _ in 0..8 {
        let free = in_child(|| 0)?.0;
        match namespace::clone3(0, Some(free.as_raw())) {
            Ok(0) => namespace::exit(),
            Ok(pid) => {
                let pid = Pid::from_raw(pid);
                waitpid(pid, None)?;
                return Ok(pid);
            }
            Err(error) => last = error,
        }
        if last.raw_os_error() != Some(libc::EEXIST) {
            break;
        }
    }
    Err(last)
}

/// Makes a process with a pid of our choice in a pid namespace, as restart does where pids are in use.
pub fn namespaces() -> Finding {
    let user = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let denied = match enter_namespace(None) {
        Ok(()) => return Finding::Works("made a pid namespace".into()),
        Err(error) => error,
    };
    match enter_namespace(Some(user)) {
        Ok(()) => Finding::Works("made a pid namespace in a user namespace".into()),
        Err(error) => Finding::falls(
            format!("{denied:#}; {error:#}: a checkpoint is restarted while its pids are free only"),
            NEEDS_NAMESPACES,
        ),
    }
}

fn enter_namespace(user: Option<(u32, u32)>) -> anyhow::Result<()> {
    const PID: i32 = 1000;
    let after = namespace::After { id: PID, remembered_from: None, limit: None };
    let request = namespace::Request { pid: PID, after, user, ipc: false, session: Session::Same };
    let before = namespace::hold_signals()?;
    let tried = namespace::try_one(&request);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    tried
}

/// Runs `body` in a child; returns the child's pid, which is free again, and what `body` returned.
fn in_child(body: impl FnOnce() -> i32) -> io::Result<(Pid, i32)> {
    // SAFETY: this process has one thread, so the child may do whatever this one may.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = body();
            // SAFETY: takes an integer.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, code) => Ok((child, code)),
            status => Err(io::Error::other(format!("{status:?}"))),
        },
    }
}
