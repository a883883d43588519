//! A program that stands stopped by SIGSTOP: it is checkpointed as it stands, and comes back as it stood.

use std::{fs, thread, time::Duration};

use nix::sys::signal::Signal;
use stasis_tests::{Lab, Running, Workload, process::ProcessHandle, workload::wait_joined};

const PROGRAM: Workload = Workload { program: "stopped", arguments: &[] };

/// The state letter in /proc/PID/stat (proc(5)).
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the program is there");
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state")
}

/// The kernel tells nobody but the parent of a stop, and `stasis restart` may be the parent: so this looks.
#[track_caller]
fn wait_stopped(pid: u32) {
    for _ in 0..5000 {
        if state(pid) == 'T' {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("process {pid} is in state {}, not stopped", state(pid));
}

#[track_caller]
fn launch_and_stop(lab: &Lab) -> Running {
    let running = PROGRAM.launch(lab);
    running.wait_ready();
    running.signal(Signal::SIGSTOP);
    wait_stopped(running.pid());
    running
}

#[track_caller]
fn continue_process(pid: u32) {
    ProcessHandle::open(pid).and_then(|process| process.signal(Signal::SIGCONT)).expect("SIGCONT is sent");
}

/// Killed and restarted it stands stopped, and continued it goes on.
#[track_caller]
fn comes_back_stopped(lab: &Lab, running: Running) {
    lab.checkpoint_kill(running);
    let running = lab.restart(["latest"]);
    let pid = wait_joined(lab);
    wait_stopped(pid);
    continue_process(pid);
    running.expect_ok();
}

#[test]
fn the_program_notices_natively_when_sigcont_is_lost() {
    PROGRAM.notices_what_is_lost_with(|running| {
        running.signal(Signal::SIGSTOP);
        wait_stopped(running.pid());
        running.signal(Signal::SIGCONT);
    });
}

#[test]
fn it_is_still_stopped_after_checkpoints() {
    let lab = Lab::new();
    let running = launch_and_stop(&lab);
    for _ in 0..5 {
        lab.checkpoint(&[]);
        wait_stopped(running.pid());
    }
    continue_process(running.pid());
    running.expect_ok();
}

#[test]
fn it_comes_back_stopped_after_kill_and_restart() {
    let lab = Lab::new();
    let running = launch_and_stop(&lab);
    comes_back_stopped(&lab, running);
}

/// The signal comes before the library's own thread has run at all: the process has said who it is nevertheless.
#[test]
fn one_that_stops_itself_at_once_is_checkpointed_and_comes_back() {
    for _ in 0..5 {
        let lab = Lab::new();
        let running = lab.launch(["/bin/sh", "-c", "kill -STOP $$; echo ok"]);
        wait_stopped(running.pid());
        lab.checkpoint(&[]);
        wait_stopped(running.pid());
        comes_back_stopped(&lab, running);
    }
}

#[test]
fn one_that_has_given_up_root_is_checkpointed_as_it_stands() {
    let lab = Lab::new();
    let running = Workload { program: "drop_root", arguments: &[] }.launch(&lab);
    running.wait_ready();
    running.signal(Signal::SIGSTOP);
    wait_stopped(running.pid());
    lab.checkpoint(&[]);
    wait_stopped(running.pid());
    continue_process(running.pid());
    running.expect_ok();
}

/// Stopped at any moment of a checkpoint, and of one that follows it at once, it is taken as it stands or as it runs, and goes on
/// when it is continued.
#[test]
fn it_may_be_stopped_and_continued_while_checkpoints_are_taken() {
    let lab = Lab::new();
    let running = Workload { program: "stopped_now_and_then", arguments: &[] }.launch(&lab);
    running.wait_ready();
    for _ in 0..60 {
        lab.checkpoint(&[]);
    }
    running.expect_ok();
}
