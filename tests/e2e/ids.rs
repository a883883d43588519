//! The ids that a program remembers, wherever it goes on: `tests/programs/ids.c` asks every call and file that takes or tells one,
//! and looks that no new child gets one that it has seen before.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, PipeReader, Read, pipe},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use stasis_tests::{
    DEADLINE, Lab, Nobody, Running, compile, lab::binary, requirement::is_root, running::Files, skip,
};

/// A program that writes to a pipe: a file would be shared by all that are restarted.
struct Original {
    running: Running,
    output: BufReader<PipeReader>,
}

#[track_caller]
fn launch(lab: &Lab) -> Original {
    let (output, stdout) = pipe().unwrap();
    // By this name its processes are found.
    let program = lab.work().join("ids");
    fs::copy(compile::program("ids"), &program).unwrap();
    let running = lab.prepare([program]).stdout(stdout).start();
    let mut output = BufReader::new(output);
    wait_ready(&mut output);
    Original { running, output }
}

#[track_caller]
fn wait_ready(output: &mut BufReader<PipeReader>) {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
}

/// `stasis restart ID` with an output of its own; what tells it to go on is the original's.
#[track_caller]
fn restart(lab: &Lab, id: &str, name: &str, go: &Files) -> Running {
    let file = |extension: &str| lab.work().join(format!("{name}.{extension}"));
    let files = Files { stdout: file("stdout"), stderr: file("stderr"), go: go.go.clone() };
    let stdout = File::create(&files.stdout).unwrap();
    let running = lab.prepare_restart([id]).stdout(stdout).continuing(&files).start();
    lab.wait_joined(&running);
    running
}

/// Whether the program's processes are in no other pid namespace than this one.
#[track_caller]
fn is_here(lab: &Lab) -> bool {
    let processes = lab.processes("ids");
    assert!(!processes.is_empty());
    processes.iter().all(|process| {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it is there");
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("a field of proc(5)");
        ids.split_whitespace().count() == 1
    })
}

/// Takes a checkpoint with `--kill`, after which all ids are free: this process has adopted the orphans.
#[track_caller]
fn checkpoint_kill(lab: &Lab, running: Running) -> String {
    lab.wait_joined(&running);
    let processes = lab.processes("ids");
    let id = lab.checkpoint_kill(running);
    for process in processes {
        assert!(process.wait_ended(DEADLINE));
        process.reap();
    }
    // The program's own child that has ended has no environment to be known by.
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
    id
}

/// Checkpoint, end and restart of a restarted program, whose output is a file that it opens again.
#[track_caller]
fn go_round(lab: &Lab, running: Running) -> Running {
    let files = running.files().clone();
    let id = checkpoint_kill(lab, running);
    let running = lab.prepare_restart([&id]).continuing(&files).start();
    lab.wait_joined(&running);
    running
}

/// A process with this id, until it is dropped.
struct Occupied(Pid);

impl Occupied {
    #[track_caller]
    fn new(pid: i32) -> Self {
        // SAFETY: plain numbers.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.set_tid = (&raw const pid) as u64;
        arguments.set_tid_size = 1;
        // SAFETY: the child has memory of its own, and does nothing in it.
        unsafe {
            let made = libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments));
            if made == 0 {
                loop {
                    libc::pause();
                }
            }
            assert_eq!(made, i64::from(pid), "{}", std::io::Error::last_os_error());
        }
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Goes on where the ids are free, or somebody else has that of the first process, and is checkpointed and restarted there.
#[track_caller]
fn goes_on_in_the_third_generation(are_free: bool) {
    if !is_root() {
        return skip("only root may ask for ids");
    }
    let lab = Lab::new();
    let Original { mut running, output: _pipe } = launch(&lab);
    let files = running.files().clone();
    let first = checkpoint_kill(&lab, running);
    let pid = lab.json(["show", &first])["images"][0]["pid"].as_i64().expect("a pid") as i32;
    let _occupied = (!are_free).then(|| Occupied::new(pid));
    running = restart(&lab, &first, "first", &files);
    for _ in 0..2 {
        assert_eq!(is_here(&lab), are_free);
        running = go_round(&lab, running);
    }
    assert_eq!(is_here(&lab), are_free);
    running.expect_ok();
}

#[test]
fn are_right_where_they_are_free_in_the_third_generation() {
    goes_on_in_the_third_generation(true);
}

#[test]
fn are_right_where_somebody_else_has_them_in_the_third_generation() {
    goes_on_in_the_third_generation(false);
}

#[test]
fn are_right_beside_the_original_and_in_two_restarts_at_once() {
    let lab = Lab::new();
    let Original { running: original, mut output } = launch(&lab);
    let id = lab.checkpoint(&[]);
    let labs = ["one", "two"].map(|name| (lab.with_coordinator(name), name));
    let restarted = labs.each_ref().map(|(lab, name)| restart(lab, &id, name, original.files()));
    for (lab, _) in &labs {
        assert!(!is_here(lab));
    }
    original.go();
    for running in restarted {
        running.expect_ok();
    }
    original.expect_code(0);
    let mut printed = String::new();
    output.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "ok\n");
}

#[test]
fn are_right_where_fewer_were_given() {
    if !is_root() {
        return skip("only root makes a pid namespace");
    }
    // What a reboot does: ids begin anew. These are about to be given to others than those that the program remembers by them.
    let lab = Lab::new();
    let Original { running, output: _pipe } = launch(&lab);
    let files = running.files().clone();
    let id = checkpoint_kill(&lab, running);
    let images = lab.json(["show", &id])["images"].take();
    let greatest =
        images.as_array().unwrap().iter().map(|image| image["pid"].as_u64().unwrap()).max().unwrap();
    let files = Files { stdout: lab.work().join("new.stdout"), ..files };
    let stdout = File::create(&files.stdout).unwrap();
    let restart = format!(
        "echo {} > /proc/sys/kernel/ns_last_pid && exec {} restart {id}",
        greatest + 100,
        binary("stasis").display()
    );
    let elsewhere = lab.with_coordinator("elsewhere");
    let words = ["unshare", "--pid", "--ipc", "--fork", "--mount-proc", "sh", "-c", &restart];
    let running = elsewhere.native(words).stdout(stdout).start();
    File::create(&files.go).unwrap();
    running.expect_code(0);
    assert_eq!(fs::read_to_string(&files.stdout).unwrap(), "ok\n");
}

#[test]
fn are_right_for_who_may_not_ask_for_them() {
    if !is_root() {
        return skip("only root becomes another user");
    }
    let nobody = Nobody::new(&["ids"]);
    let program = nobody.binaries.join("ids");
    let (running, [output, _errors_of_the_original]) =
        nobody.start(&["launch", "--", program.to_str().unwrap()]);
    let go = running.files().go.clone();
    let mut output = BufReader::new(output);
    wait_ready(&mut output);
    nobody.pids(&running);
    nobody.checkpoint_kill(running);
    let (running, [mut printed_then, _errors]) = nobody.start(&["restart"]);
    let (own, here) = nobody.pids(&running);
    assert_ne!(own, here, "in a namespace");
    File::create(go).unwrap();
    let status = running.wait_exit();
    let mut printed = String::new();
    printed_then.read_to_string(&mut printed).unwrap();
    assert!(status.success() && printed == "ok\n", "{status}: {printed}");
}
