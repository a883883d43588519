//! Processes that outlive those who started them: collected here, because not every machine's pid 1
//! does it, and a test run must leave neither processes nor zombies.

use std::{fs, io};

/// Makes this process the one that orphans below it are given to (prctl(2), PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// What prctl says.
pub fn adopt() -> io::Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes an integer and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends every child of this process and collects it, until there is none; to be called when no command is
/// running. Returns those that were still alive, as `pid (name)`.
pub fn end_all() -> Vec<String> {
    let mut left_behind = Vec::new();
    loop {
        collect(libc::WNOHANG);
        let children = children();
        if children.is_empty() {
            return left_behind;
        }
        for pid in children {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            left_behind.push(format!("{pid} ({})", name.trim_end()));
            // SAFETY: kill touches no memory. A child that is not collected keeps its pid.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            // What it had started itself becomes a child of this process now: the loop looks again.
            collect_one(pid);
        }
    }
}

fn collect(flags: libc::c_int) {
    // SAFETY: a null status is allowed (wait(2)).
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), flags) } > 0 {}
}

fn collect_one(pid: libc::pid_t) {
    // SAFETY: a null status is allowed (wait(2)).
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

/// The children of every thread of this process (proc(5), /proc/pid/task/tid/children).
fn children() -> Vec<libc::pid_t> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|pid| pid.parse::<libc::pid_t>().ok()));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_a_command_leaves_behind_is_named_and_ended() {
        adopt().unwrap();
        // The shell ends; its child and its child's child stay.
        let mut shell = Command::new("sh")
            .args(["-c", "sh -c 'sleep 1000 & exec sleep 1000' >/dev/null 2>&1 & exit 0"])
            .spawn()
            .unwrap();
        assert!(shell.wait().unwrap().success());
        let ended = end_all();
        assert!(!ended.is_empty());
        assert!(children().is_empty());
    }
}
