//! Programs that go on while their ids are taken, or by users who may not ask for ids: each in a pid namespace of
//! its own.

use std::{
    fs::{self, File},
    io::{PipeReader, Read, pipe},
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use stasis_tests::{
    DEADLINE, Lab, Nobody, Running, compile, process::ProcessHandle, requirement::is_root, running::Files,
    skip,
};

/// `tests/programs/counter.c`: 300 steps of 10 ms; the last lines tell whether any of 4 MiB was lost.
const COUNTER: [&str; 2] = ["300", "4"];

/// A counter that writes to a pipe: a file would be shared by all that are restarted.
fn counter(lab: &Lab) -> (Running, PipeReader) {
    let (output, stdout) = pipe().unwrap();
    let program = compile::program("counter");
    let command = [program.to_str().unwrap()].into_iter().chain(COUNTER);
    (lab.prepare(command).stdout(stdout).start(), output)
}

/// What an undisturbed run prints.
#[track_caller]
fn undisturbed(lab: &Lab) -> String {
    let program = compile::program("counter");
    let running = lab.native([program.to_str().unwrap()].into_iter().chain(COUNTER)).start();
    let stdout = running.files().stdout.clone();
    running.expect_code(0);
    fs::read_to_string(stdout).unwrap()
}

/// `stasis restart ID` with an output of its own.
#[track_caller]
fn restart(lab: &Lab, id: &str, name: &str) -> Running {
    let file = |extension: &str| lab.work().join(format!("{name}.{extension}"));
    let files = Files { stdout: file("stdout"), stderr: file("stderr"), go: file("go") };
    let stdout = File::create(&files.stdout).unwrap();
    lab.prepare_restart([id]).stdout(stdout).continuing(&files).start()
}

/// Waits for the end; the output must be what was missing.
#[track_caller]
fn ends_as(running: Running, expected: &str) {
    let stdout = running.files().stdout.clone();
    running.expect_code(0);
    let output = fs::read_to_string(stdout).unwrap();
    assert!(output.ends_with("\nok\n") && expected.ends_with(&output), "{output}");
}

/// The pids of the one process that a coordinator has: for itself, and here. Waits until it has joined.
#[track_caller]
fn pids(lab: &Lab, running: &Running) -> (u64, u64) {
    lab.wait_joined(running);
    of_status(&lab.json(["status"])).expect("a process")
}

fn of_status(status: &serde_json::Value) -> Option<(u64, u64)> {
    let process = &status["processes"][0];
    Some((process["pid"].as_u64()?, process["real_pid"].as_u64()?))
}

/// The program of a restart.
#[track_caller]
fn program(lab: &Lab, running: &Running) -> ProcessHandle {
    ProcessHandle::open(pids(lab, running).1 as u32).expect("the program is there")
}

#[test]
fn three_restarts_of_one_checkpoint_at_once() {
    let lab = Lab::new();
    let expected = undisturbed(&lab);
    let (running, _output) = counter(&lab);
    let pid = u64::from(running.pid());
    let id = lab.checkpoint_kill(running);
    let labs = ["one", "two", "three"].map(|name| (lab.with_coordinator(name), name));
    let restarted = labs.each_ref().map(|(lab, name)| restart(lab, &id, name));
    let found = [0, 1, 2].map(|at| pids(&labs[at].0, &restarted[at]));
    assert!(found.iter().all(|(own, _)| *own == pid), "{found:?}");
    let mut here = found.map(|(_, here)| here);
    here.sort_unstable();
    assert!(here[0] != here[1] && here[1] != here[2], "{here:?}");
    for running in restarted {
        ends_as(running, &expected);
    }
}

#[test]
fn a_restart_beside_the_original_disturbs_neither() {
    let lab = Lab::new();
    let expected = undisturbed(&lab);
    let (original, mut output) = counter(&lab);
    lab.wait_joined(&original);
    let id = lab.checkpoint(&[]);
    let elsewhere = lab.with_coordinator("elsewhere");
    let restarted = restart(&elsewhere, &id, "restarted");
    let (pid, here) = pids(&elsewhere, &restarted);
    assert_eq!(pid, u64::from(original.pid()));
    assert_ne!(here, pid);
    ends_as(restarted, &expected);
    original.expect_code(0);
    let mut printed = String::new();
    output.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, expected);
}

#[test]
fn a_program_in_a_namespace_is_checkpointed_and_restarted_again() {
    let lab = Lab::new();
    let expected = undisturbed(&lab);
    let (original, _output) = counter(&lab);
    lab.wait_joined(&original);
    let id = lab.checkpoint(&[]);
    let elsewhere = lab.with_coordinator("elsewhere");
    let pid = u64::from(original.pid());
    let second = restart(&elsewhere, &id, "second");
    // The third goes on in the file that the second had for its output.
    let files = second.files().clone();
    assert_ne!(pids(&elsewhere, &second), (pid, pid));
    let id = elsewhere.checkpoint_kill(second);
    let third = elsewhere.prepare_restart([&id]).continuing(&files).start();
    assert_ne!(pids(&elsewhere, &third), (pid, pid));
    let id = elsewhere.checkpoint_kill(third);
    // Now its pid becomes free: the last one is here again.
    original.expect_code(0);
    let last = elsewhere.prepare_restart([&id]).continuing(&files).start();
    assert_eq!(pids(&elsewhere, &last), (pid, pid));
    ends_as(last, &expected);
}

#[test]
fn a_kill_ends_the_computation_that_was_named_and_no_other() {
    let lab = Lab::new();
    let (original, _output) = counter(&lab);
    lab.wait_joined(&original);
    let id = lab.checkpoint(&[]);
    let elsewhere = lab.with_coordinator("elsewhere");
    let restarted = restart(&elsewhere, &id, "restarted");
    pids(&elsewhere, &restarted);
    elsewhere.run(["kill"]).expect_success();
    assert_eq!(restarted.wait_exit().signal(), Some(libc::SIGKILL));
    original.expect_code(0);
}

/// `tests/programs/session.c` beside its original, in a namespace.
fn session_beside_its_original() -> (Lab, Running, Running) {
    let lab = Lab::new();
    let original = lab.prepare([compile::program("session")]).environment("SESSION_EXIT", "7").start();
    original.wait_ready();
    let id = lab.checkpoint(&[]);
    let elsewhere = lab.with_coordinator("elsewhere");
    // Its output is the same file as the original's.
    let restarted = elsewhere.prepare_restart([&id]).continuing(original.files()).start();
    let (pid, here) = pids(&elsewhere, &restarted);
    assert_ne!(pid, here);
    (elsewhere, original, restarted)
}

#[test]
fn signals_and_the_exit_status_pass_through_a_restart_in_a_namespace() {
    let (_lab, original, restarted) = session_beside_its_original();
    restarted.signal(Signal::SIGUSR1);
    restarted.wait_line("user signal 1");
    restarted.signal(Signal::SIGINT);
    restarted.wait_line("interrupt 1");
    restarted.go();
    restarted.expect_code(7);
    original.expect_code(7);
}

#[test]
fn death_by_a_signal_passes_through_a_restart_in_a_namespace() {
    let (_lab, _original, restarted) = session_beside_its_original();
    restarted.signal(Signal::SIGTERM);
    assert_eq!(restarted.wait_exit().signal(), Some(libc::SIGTERM));
}

/// Waits until a process stands stopped, or does not. Nobody but its parent is told of that.
#[track_caller]
fn wait_stopped(pid: u32, stopped: bool) {
    let begun = Instant::now();
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
        let is_stopped = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'));
        if is_stopped == stopped {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "process {pid}: {stat}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stop_from_the_terminal_passes_through_a_restart_in_a_namespace() {
    let (lab, _original, restarted) = session_beside_its_original();
    let program = program(&lab, &restarted);
    program.signal(Signal::SIGTSTP).unwrap();
    wait_stopped(program.pid(), true);
    wait_stopped(restarted.pid(), true);
    restarted.signal(Signal::SIGCONT);
    wait_stopped(program.pid(), false);
    restarted.go();
    restarted.expect_code(7);
}

#[test]
fn the_program_outlives_a_restart_command_that_is_killed() {
    let (lab, _original, restarted) = session_beside_its_original();
    let program = program(&lab, &restarted);
    let go = restarted.files().go.clone();
    restarted.signal(Signal::SIGKILL);
    assert_eq!(restarted.wait_exit().signal(), Some(libc::SIGKILL));
    assert!(!program.wait_ended(Duration::ZERO));
    lab.checkpoint(&[]);
    File::create(go).unwrap();
    assert!(program.wait_ended(DEADLINE));
}

/// A line of /proc/PID/status.
#[track_caller]
fn status_field(pid: u32, name: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of proc(5)");
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_user_without_privileges_launches_checkpoints_and_restarts() {
    if !is_root() {
        return skip("only root becomes another user");
    }
    let nobody = Nobody::new(&["counter"]);
    let lab = &nobody.lab;
    let expected = undisturbed(lab);
    let counter = nobody.binaries.join("counter");
    let launch = ["launch", "--", counter.to_str().unwrap(), COUNTER[0], COUNTER[1]];
    let (running, _pipes) = nobody.start(&launch);
    let pid = running.pid();
    assert_eq!(nobody.pids(&running), (pid.into(), pid.into()));
    let before = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "Uid:", "Gid:", "Groups:"]
        .map(|name| (name, status_field(pid, name)));
    nobody.checkpoint_kill(running);
    for _generation in 0..2 {
        let (running, _pipes) = nobody.start(&["restart"]);
        let here = nobody.pids(&running).1 as u32;
        // Its pid is free by now, and it may not ask for it: it has it in a namespace.
        assert_eq!(status_field(here, "NSpid:"), [here.to_string(), pid.to_string()]);
        for (name, value) in &before {
            assert_eq!(status_field(here, name), *value, "{name}");
        }
        nobody.checkpoint_kill(running);
    }
    ends_as(lab.native(nobody.command("stasis", &["restart"])).start(), &expected);
}
