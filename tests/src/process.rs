//! Processes by pidfd: signalled and awaited without a pid that could meanwhile be another's.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

/// A process that is held by its pidfd.
#[derive(Debug)]
pub struct ProcessHandle {
    pid: u32,
    fd: OwnedFd,
}

impl ProcessHandle {
    /// Opens a process by its pid.
    ///
    /// # Errors
    /// What pidfd_open(2) says; `ESRCH` when there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { pid, fd })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// What pidfd_send_signal(2) says; `ESRCH` when the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: a null siginfo asks for the one that kill(2) would send.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until the process has ended; `false` when it has not after `deadline`.
    pub fn wait_ended(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if Instant::now() >= end => return false,
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return true,
                Err(errno) => panic!("poll on the pidfd of process {}: {errno}", self.pid),
            }
        }
    }

    /// `/proc/PID/comm`: empty when the process has ended.
    pub fn comm(&self) -> String {
        fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default().trim_end().to_owned()
    }

    /// Collects the process if it is a child of ours, so that no zombie stays.
    pub fn reap(&self) {
        // ECHILD: it was somebody else's child, who collects it.
        let _ = nix::sys::wait::waitid(
            nix::sys::wait::Id::PIDFd(self.fd.as_fd()),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOHANG,
        );
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes orphans children of this process, which then collects them: not every machine's pid 1 does
/// (a container's often is a plain program).
pub(crate) fn adopt_orphans() {
    nix::sys::prctl::set_child_subreaper(true).expect("prctl(PR_SET_CHILD_SUBREAPER)");
}

/// The environment of a process, as proc(5) shows it: empty for a kernel thread and a zombie. While a program is being
/// executed it looks empty as well (the new memory is there before its stack is, `begin_new_exec` in fs/exec.c, Linux 6.18):
/// that is waited out.
fn environment(pid: u32) -> Vec<u8> {
    loop {
        let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if !bytes.is_empty() || !is_being_executed(pid) {
            return bytes;
        }
        std::thread::yield_now();
    }
}

/// Whether a process has memory, but no environment in it yet, not even an empty one (`env_end` of proc_pid_stat(5)).
fn is_being_executed(pid: u32) -> bool {
    const ENV_END: usize = 51;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The third field is the first one behind the name.
    let env_end = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(ENV_END - 3));
    env_end.map(str::trim_end) == Some("0") && fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// The processes that carry `NAME=VALUE` in their environment.
pub(crate) fn with_environment(entry: &str) -> Vec<ProcessHandle> {
    let carries = |pid: u32| environment(pid).split(|byte| *byte == 0).any(|found| found == entry.as_bytes());
    let mut found = Vec::new();
    for item in fs::read_dir("/proc").expect("/proc can be read").flatten() {
        let Some(pid) = item.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Looked at again once it is held: the pid may have changed hands in between.
        if carries(pid)
            && let Ok(handle) = ProcessHandle::open(pid)
            && carries(pid)
        {
            found.push(handle);
        }
    }
    found
}

/// Ends every process with that environment entry, and those that they start meanwhile.
pub(crate) fn end_all_with_environment(entry: &str) {
    for _ in 0..100 {
        let found = with_environment(entry);
        if found.is_empty() {
            return;
        }
        for process in &found {
            let _ = process.signal(Signal::SIGKILL);
        }
        for process in &found {
            process.wait_ended(Duration::from_secs(10));
            process.reap();
        }
    }
    eprintln!("processes with {entry} in their environment go on appearing; some are left running");
}
