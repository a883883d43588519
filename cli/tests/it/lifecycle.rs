//! How coordinators come and go.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use stasis_protocol::coordinator::{ClientReply, ClientRequest, ToProcess};

use crate::peers::{Coordinator, FakeProcess, STASIS, finish, spawn_player};

#[test]
fn it_goes_away_when_nobody_is_there() {
    let mut coordinator = Coordinator::start_with(&["--idle-seconds", "0.3"]);
    let process = FakeProcess::join(&coordinator);
    assert_eq!(coordinator.json(&["status"]).0, 0);
    drop(process);
    assert!(coordinator.wait().success());
    assert!(!coordinator.socket().exists());
    assert_eq!(coordinator.json(&["status"]).0, 3);
}

#[test]
fn a_command_without_a_coordinator_exits_with_3() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(STASIS)
        .args(["status", "--json", "--coord"])
        .arg(format!("unix:{}/none", directory.path().display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["error"]["kind"], "no-coordinator");
}

#[test]
fn sigterm_ends_it_and_the_processes_run_on() {
    let mut coordinator = Coordinator::start();
    let mut player = spawn_player(&coordinator);
    kill(Pid::from_raw(coordinator.pid() as i32), Signal::SIGTERM).unwrap();
    assert!(coordinator.wait().success());
    assert!(!coordinator.socket().exists());
    // It ends by itself when it has read the end of its connection, not by a signal.
    assert_eq!(player.wait().unwrap().signal(), None);
}

#[test]
fn kill_ends_every_process() {
    let coordinator = Coordinator::start();
    let mut players = [spawn_player(&coordinator), spawn_player(&coordinator)];
    let (code, report) = coordinator.json(&["kill"]);
    assert_eq!((code, &report["processes"]), (0, &2.into()));
    for player in &mut players {
        assert_eq!(player.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    assert_eq!(coordinator.json(&["kill"]).1["processes"], 0);
}

#[test]
fn a_second_one_for_the_same_socket_is_refused() {
    let coordinator = Coordinator::start();
    let output = coordinator.command(&["coordinator", "--foreground"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("listens"));
    assert_eq!(coordinator.json(&["status"]).1["coordinator_pid"], coordinator.pid());
}

#[test]
fn of_many_starters_one_starts_it_and_all_find_it() {
    let directory = tempfile::tempdir().unwrap();
    let command = |args: &[&str]| {
        let mut command = Command::new(STASIS);
        command
            .args(args)
            .args(["--json", "--store", "/nowhere", "--coord"])
            .arg(format!("unix:{}/c", directory.path().display()))
            .stdout(Stdio::piped());
        command
    };
    let starters: Vec<_> = (0..8).map(|_| command(&["coordinator"]).spawn().unwrap()).collect();
    let reports: Vec<_> = starters.into_iter().map(finish).collect();
    assert!(reports.iter().all(|report| *report == reports[0]), "{reports:?}");
    assert_eq!(reports[0].0, 0);
    assert!(command(&["coordinator", "--stop"]).status().unwrap().success());
    assert!(!directory.path().join("c").exists());
}

#[test]
fn a_socket_left_by_a_killed_one_is_taken_over() {
    let mut coordinator = Coordinator::start();
    kill(Pid::from_raw(coordinator.pid() as i32), Signal::SIGKILL).unwrap();
    coordinator.wait();
    assert!(coordinator.socket().exists());
    assert_eq!(coordinator.json(&["status"]).0, 3);
    let (code, _) = coordinator.json(&["coordinator"]);
    assert_eq!(code, 0);
    coordinator.assert_well();
    assert!(coordinator.command(&["coordinator", "--stop"]).status().unwrap().success());
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c");
    std::fs::write(&path, "precious").unwrap();
    let output = Command::new(STASIS)
        .args(["coordinator", "--store", "/nowhere", "--coord"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn the_computation_keeps_its_name_over_execve_and_loses_it_with_its_last_process() {
    let coordinator = Coordinator::start();
    let computation = || coordinator.json(&["status"]).1["computation"].clone();
    let process = FakeProcess::join(&coordinator);
    let first = computation();
    drop(process);
    // The same process comes back, as after execve(2).
    let process = FakeProcess::join(&coordinator);
    assert_eq!(computation(), first);
    drop(process);
    let mut player = spawn_player(&coordinator);
    assert_ne!(computation(), first);
    player.kill().unwrap();
    player.wait().unwrap();
}

#[test]
fn a_restarted_process_goes_on_from_its_checkpoint() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join_as(coordinator.connect(), Some("00000000000000aa"));
    // Nobody else is waited for.
    assert_eq!(process.receive(), Some(ToProcess::Go));
    let checkpoint = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    process.dump(token);
    assert_eq!(finish(checkpoint).1["parent"], "00000000000000aa");
    assert_eq!(process.receive(), Some(ToProcess::Committed { token, kill: false }));
}

/// An id that no other test's coordinator has.
fn computation() -> String {
    format!("{:016x}", std::process::id())
}

#[test]
fn resuming_gives_a_restarted_process_its_computation_back_and_no_other() {
    let coordinator = Coordinator::start();
    let resume = |checkpoint: &str| {
        let request = ClientRequest::Resume {
            computation: computation(),
            checkpoint: checkpoint.into(),
            processes: vec![std::process::id()],
        };
        coordinator.request(&request)
    };
    assert!(matches!(resume("00000000000000aa"), ClientReply::Done { .. }));
    let restarted = FakeProcess::join_as(coordinator.connect(), Some("00000000000000aa"));
    let reply = coordinator.request(&ClientRequest::AwaitProcesses { processes: 1 });
    assert_eq!(reply, ClientReply::Done { count: 1 });
    assert_eq!(coordinator.json(&["status"]).1["computation"], computation());
    // It is running here, so nothing else may take its place.
    assert!(matches!(resume("00000000000000bb"), ClientReply::Refused(_)));
    drop(restarted);
    let mut player = spawn_player(&coordinator);
    assert_ne!(coordinator.json(&["status"]).1["computation"], computation());
    player.kill().unwrap();
    player.wait().unwrap();
}

/// What `stasis restart` announces.
fn resume(processes: &[u32]) -> ClientRequest {
    ClientRequest::Resume {
        computation: computation(),
        checkpoint: "00000000000000aa".into(),
        processes: processes.to_vec(),
    }
}

#[test]
fn one_of_two_restarts_at_once_is_refused_and_what_it_would_have_restarted_may_come_later() {
    let coordinator = Coordinator::start();
    let (mut first, mut second) = (coordinator.client(), coordinator.client());
    assert!(matches!(first.request(&resume(&[1000])), ClientReply::Done { .. }));
    let ClientReply::Refused(refusals) = second.request(&resume(&[1000])) else { panic!("both are let in") };
    assert!(refusals[0].to_string().contains("another restart"), "{refusals:?}");
    // It has failed, or was killed.
    drop(first);
    while matches!(second.request(&resume(&[std::process::id()])), ClientReply::Refused(_)) {}
    let mut restarted = FakeProcess::join_as(coordinator.connect(), Some("00000000000000aa"));
    assert_eq!(restarted.receive(), Some(ToProcess::Go));
    assert_eq!(coordinator.json(&["status"]).1["computation"], computation());
}

#[test]
fn what_is_launched_after_a_restart_that_failed_waits_for_nobody() {
    let coordinator = Coordinator::start();
    assert!(matches!(coordinator.request(&resume(&[1000, 1001])), ClientReply::Done { .. }));
    let begun = std::time::Instant::now();
    coordinator.assert_well();
    assert!(begun.elapsed().as_secs() < 5, "it waited for {:?}", begun.elapsed());
    assert_ne!(coordinator.json(&["status"]).1["computation"], computation());
}

#[test]
fn whoever_waits_for_a_process_is_told_that_it_joined_or_ended() {
    let coordinator = Coordinator::start();
    let mut player = spawn_player(&coordinator);
    let wait = |real_pid| coordinator.request(&ClientRequest::AwaitProcess { real_pid });
    assert_eq!(wait(player.id()), ClientReply::Done { count: 1 });
    player.kill().unwrap();
    player.wait().unwrap();
    assert!(matches!(wait(player.id()), ClientReply::Refused(_)));
}
