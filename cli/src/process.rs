//! What the kernel tells of a process, and a handle on one that outlives the reuse of its pid.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{getsockopt, sockopt::PeerPidfd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// The state letter of /proc/PID/stat (proc(5)); `None` when there is no such process.
pub fn state(pid: u32) -> Option<char> {
    state_in(&format!("/proc/{pid}/stat"))
}

/// Whether a process is about to end, but has not yet become a zombie: it has let go of its memory, and so of its program, or has
/// been killed. Then each of its threads has SIGKILL pending (kernel/signal.c, `complete_signal`) until it sees that; the one that
/// had a connection may have closed it before the first has seen it.
pub fn is_ending(pid: u32) -> bool {
    /// PF_EXITING, PF_SIGNALED (include/linux/sched.h), in the seventh field behind the command (proc(5)).
    const GOING: u64 = 0x4 | 0x400;
    let flags = || fields_in(&format!("/proc/{pid}/stat"))?.split(' ').nth(6)?.parse::<u64>().ok();
    let is_killed = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"))?.trim();
        Some(u64::from_str_radix(pending, 16).ok()? & 1 << (libc::SIGKILL - 1) != 0)
    };
    fs::read_link(format!("/proc/{pid}/exe")).is_err()
        // Seen in this order: the one is set when the other is taken.
        || is_killed().unwrap_or(true)
        || flags().is_none_or(|flags| flags & GOING != 0)
}

/// The files that a process has mapped, by what comes last in their paths.
///
/// # Errors
/// /proc/PID/maps cannot be read.
pub fn mapped_files(pid: u32) -> io::Result<Vec<String>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let name = |line: &str| {
        let shown = line.rsplit_once('/')?.1;
        Some(shown.strip_suffix(" (deleted)").unwrap_or(shown).to_owned())
    };
    Ok(maps.lines().filter_map(name).collect())
}

/// Whether a signal stopped the process. Its state letter is its first thread's, which may have ended
/// before the others.
pub fn is_stopped(pid: u32) -> bool {
    match state(pid) {
        Some('Z') => thread_states(pid).is_ok_and(|mut states| states.any(|state| state == 'T')),
        state => state == Some('T'),
    }
}

/// Whether every thread of the process has stopped: its parent is told only then (signal.c, `task_participate_group_stop`).
pub fn has_stopped(pid: u32) -> bool {
    is_stopped(pid)
        && thread_states(pid).is_ok_and(|mut states| states.all(|state| matches!(state, 'T' | 'Z' | 'X')))
}

fn thread_states(pid: u32) -> io::Result<impl Iterator<Item = char>> {
    let states = threads(pid)?.into_iter();
    Ok(states.filter_map(move |thread| state_in(&format!("/proc/{pid}/task/{}/stat", thread.tid))))
}

fn state_in(path: &str) -> Option<char> {
    fields_in(path)?.chars().next()
}

/// What proc(5) tells behind a process' command in /proc/PID/stat.
fn fields_in(path: &str) -> Option<String> {
    // The command's name is in parentheses and may hold any byte, parentheses included.
    let stat = fs::read(path).ok()?;
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(name_end + 2..).map(|fields| String::from_utf8_lossy(fields).into_owned())
}

/// The effective user of a process: the directory's owner, whether or not the process is dumpable (proc(5)).
pub fn user(pid: u32) -> Option<u32> {
    Some(fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

/// Whether a process has a handler for a signal (proc(5), SigCgt).
pub fn catches(pid: u32, signal: i32) -> bool {
    signals(pid, &["SigCgt:"]) & 1 << (signal - 1) != 0
}

/// Whether a process has a file mapped whose name this is; as it was started, which may have been replaced since. Unknown
/// where it may not be looked at.
pub fn has_mapped(pid: u32, file: &str) -> Option<bool> {
    mapped_files(pid).ok().map(|files| files.iter().any(|name| name == file))
}

/// Whether a process has more seccomp filters than one that it would have inherited them from.
pub fn is_filtered_beyond(pid: u32, other: u32) -> bool {
    filters(pid) > filters(other)
}

/// How many seccomp filters a process' first thread has, a container's included; the strict mode counts as one.
fn filters(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let number = |name| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    // Filters are counted since Linux 5.9.
    number("Seccomp:").filter(|&mode| mode != 0).map_or(0, |_| number("Seccomp_filters:").unwrap_or(1).max(1))
}

/// The union of sets of signals of /proc/PID/status; bits are counted from signal 1 (proc(5)).
fn signals(pid: u32, names: &[&str]) -> u64 {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    let set = |name: &&str| {
        let set = status.lines().find_map(|line| line.strip_prefix(name));
        set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
    };
    names.iter().map(set).fold(0, |all, set| all | set)
}

/// A process' pid in its own namespace.
pub fn own_pid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    own_pid_in(&status)
}

/// status tells the pids in all namespaces, from ours to the process' own (proc(5), NSpid).
fn own_pid_in(status: &str) -> Option<u32> {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_whitespace().last()?.parse().ok()
}

/// The parent of a process; `None` where that is not to be seen from here.
pub fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().filter(|&parent| parent != 0)
}

/// What two processes may have together (kcmp(2)).
#[derive(Clone, Copy)]
pub enum Shared {
    Memory = 1,
    /// The table of descriptors.
    Files = 2,
    /// Working and root directory, umask.
    Directory = 3,
}

/// Whether they have it together, as far as the kernel says so (CONFIG_KCMP), and to whom may ask.
pub fn shares(one: u32, other: u32, what: Shared) -> bool {
    // SAFETY: kcmp(2) of these kinds takes numbers.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, what as i32, 0, 0) == 0 }
}

/// The children of a process that have not ended (proc(5), /proc/pid/task/tid/children).
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .filter(|&child| !matches!(state(child), None | Some('Z' | 'X')))
        .collect()
}

/// Whether a SIGSTOP is on its way to the process: sent, and not acted upon yet.
pub fn is_about_to_stop(pid: u32) -> bool {
    // To a thread, or to the process.
    signals(pid, &["SigPnd:", "ShdPnd:"]) & 1 << (libc::SIGSTOP - 1) != 0
}

/// What a state letter means to people.
pub fn state_name(state: char) -> &'static str {
    match state {
        'R' => "running",
        'S' => "sleeping",
        'D' => "in an uninterruptible wait",
        'T' => "stopped by a signal",
        't' => "stopped by a debugger",
        'Z' => "a zombie",
        'X' | 'x' => "dead",
        'I' => "idle",
        _ => "in an unknown state",
    }
}

/// Resident and swapped-out memory in bytes; 0 when it cannot be told.
pub fn memory(pid: u32) -> u64 {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    let kibibytes = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
    };
    (kibibytes("VmRSS:") + kibibytes("VmSwap:")) << 10
}

/// The name (comm) of a process, which may be another user's.
pub fn name(pid: u32) -> Option<String> {
    name_in(Path::new(&format!("/proc/{pid}")))
}

fn name_in(directory: &Path) -> Option<String> {
    let name = fs::read(directory.join("comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// A thread, by its id and its name (comm).
#[derive(Debug)]
pub struct Thread {
    pub tid: u32,
    pub name: String,
}

/// The threads that a process has now.
///
/// # Errors
/// When /proc/PID/task cannot be read: the process is gone, or is not ours to look at.
pub fn threads(pid: u32) -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A thread that ended since it was listed needs nothing of us.
        let Some(name) = name_in(&entry.path()) else { continue };
        threads.push(Thread { tid, name });
    }
    Ok(threads)
}

/// The pid here of the process that `relative`, by its pid here, knows as `pid`; `None` when there is none.
pub fn real_pid(pid: u32, relative: u32) -> Option<u32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let theirs = namespace(&relative.to_string()).ok()?;
    if namespace("self").is_ok_and(|ours| ours == theirs) {
        return state(pid).map(|_| pid);
    }
    let is_it = |other: &u32| {
        own_pid(*other) == Some(pid) && namespace(&other.to_string()).is_ok_and(|other| other == theirs)
    };
    let entries = fs::read_dir("/proc").ok()?;
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(is_it)
}

/// pidfd_open(2)'s descriptor.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// The process `pid`, which must not have been waited for.
    ///
    /// # Errors
    /// ESRCH when there is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open reads nothing but its two integer arguments.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a new descriptor that nobody else owns; pidfds are close-on-exec.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// The process that connected `socket`; `pid` is the one that SO_PEERCRED tells.
    ///
    /// # Errors
    /// When it is gone, or is in a pid namespace that cannot be seen from here.
    pub fn of_peer(socket: &impl AsFd, pid: u32) -> io::Result<Self> {
        match getsockopt(socket, PeerPidfd) {
            Ok(fd) => Ok(Self(fd)),
            // Linux before 6.5. The pid may in theory have been reused since connect(2).
            Err(nix::Error::ENOPROTOOPT) => Self::open(pid),
            Err(error) => Err(error.into()),
        }
    }

    /// # Errors
    /// ESRCH when the process has been waited for.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: a null siginfo is allowed (pidfd_send_signal(2)); no memory is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether the process has ended (it may still be a zombie).
    pub fn has_ended(&self) -> bool {
        let mut poll = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Returns when the process has ended. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated or watched.
    pub async fn ended(&self) -> io::Result<()> {
        // One descriptor can be in the runtime's epoll set once only.
        let own = self.0.try_clone()?;
        // SAFETY: the AsyncFd owns the descriptor, and an OwnedFd stays the same and open until it is dropped.
        let watched = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?;
        watched.readable().await.map(|_| ())
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_killed_is_ending_before_it_lets_go_of_its_memory() {
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        // It stops on its way out of a signal's delivery, in front of all that ends (kernel/exit.c, `do_exit`).
        let (nowhere, options) = (std::ptr::null_mut::<libc::c_void>(), libc::PTRACE_O_TRACEEXIT);
        // SAFETY: ptrace(2) with numbers only.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, nowhere, options as usize) };
        assert_eq!(seized, 0, "{}", io::Error::last_os_error());
        assert!(!is_ending(pid));
        Pidfd::open(pid).unwrap().signal(libc::SIGKILL).unwrap();
        let mut status = 0;
        // SAFETY: writes the status.
        assert_eq!(unsafe { libc::waitpid(pid as i32, &raw mut status, 0) }, pid as i32);
        assert!(libc::WIFSTOPPED(status));
        assert!(fs::read_link(format!("/proc/{pid}/exe")).is_ok() && is_ending(pid));
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_CONT, pid, nowhere, nowhere) };
        child.wait().unwrap();
        assert!(is_ending(pid));
    }

    #[test]
    fn a_process_is_seen_until_it_ends() {
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pidfd = Pidfd::open(child.id()).unwrap();
        assert!(!pidfd.has_ended());
        assert!(matches!(state(child.id()), Some('S' | 'R' | 'D')));
        assert_eq!(threads(child.id()).unwrap().len(), 1);
        pidfd.signal(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(pidfd.has_ended());
        assert_eq!(state(child.id()), None);
        assert!(pidfd.signal(libc::SIGKILL).is_err());
    }
}
