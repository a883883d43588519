//! A process that a client means, by a descriptor: a pid may be another process' by the time that it is looked at.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What is known of the process that a pidfd means.
pub struct Subject {
    pub pid: u32,
    pub start_ticks: u64,
    /// Real, effective, saved, and of the file system.
    pub users: [u32; 4],
}

/// # Errors
/// When the descriptor is no pidfd, or its process is gone, or is in a pid namespace that cannot be seen from here.
pub fn subject(pidfd: &OwnedFd) -> io::Result<Subject> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .ok_or_else(|| io::Error::other("the descriptor is no pidfd"))?;
    let pid: u32 = pid.trim().parse().map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    if pid == 0 {
        return Err(io::Error::other("the process is in a pid namespace that cannot be seen from here"));
    }
    let malformed = || io::Error::other("/proc tells nothing of the process");
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let start_ticks = start_ticks(&stat).ok_or_else(malformed)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let users = users(&status).ok_or_else(malformed)?;
    // It still is that process, so all of it was told of it.
    if has_ended(pidfd.as_fd()) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(Subject { pid, start_ticks, users })
}

/// Field 22; the name in parentheses may hold any byte, parentheses included (proc(5)).
fn start_ticks(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn users(status: &str) -> Option<[u32; 4]> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let users: Vec<u32> = line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    users.try_into().ok()
}

/// Whether the process of a pidfd has ended; it may still be a zombie.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut events = [PollFd::new(pidfd, PollFlags::POLLIN)];
    poll(&mut events, PollTimeout::ZERO) != Ok(0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use super::*;

    fn open(pid: u32) -> OwnedFd {
        // SAFETY: pidfd_open(2) takes integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(fd >= 0);
        // SAFETY: a new descriptor that nobody else owns.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    }

    #[test]
    fn a_process_is_known_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = open(child.id());
        let known = subject(&pidfd).unwrap();
        assert_eq!(known.pid, child.id());
        assert!(known.start_ticks > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(subject(&pidfd).is_err());
    }

    #[test]
    fn what_is_no_pidfd_is_nobody() {
        let null: OwnedFd = fs::File::open("/dev/null").unwrap().into();
        assert!(subject(&null).is_err());
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_moves_no_field() {
        let stat = b"12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_ticks(stat), Some(4711));
    }
}
