//! A checkpoint, from the request to its end.

use std::{sync::atomic::Ordering, time::Duration};

use stasis_protocol::coordinator::{End, FromProcess, Phase, Refusal, ToProcess};

use crate::peers::{Coordinator, FakeProcess, finish, spawn_player};

#[test]
fn a_checkpoint_is_what_the_process_dumped_and_the_store_committed() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let checkpoint = coordinator.start_json(&["checkpoint", "--label", "here"]);
    let (token, hold) = process.expect_checkpoint();
    assert!(!hold);
    process.phase(token, Phase::Checking);
    process.phase(token, Phase::Storing);
    process.dump(token);
    let (code, report) = finish(checkpoint);
    assert_eq!(code, 0, "{report}");
    assert_eq!(process.receive(), Some(ToProcess::Committed { token, kill: false }));
    assert_eq!(report["id"], "0000000000000001");
    assert_eq!(report["label"], "here");
    assert_eq!(report["size_bytes"], 256 * 4096);
    assert_eq!(report["pause_us"], 850);
    assert_eq!(report["processes"][0]["command"], "fake process");
    let (_, status) = coordinator.json(&["status"]);
    assert_eq!(status["checkpoints_taken"], 1);
    assert_eq!(status["last_checkpoint"], report["id"]);
    assert_eq!(status["computation"], report["computation"]);
    assert_eq!(status["processes"][0]["phase"], "running");
    assert_eq!(status["processes"][0]["tracker"], "wp-async");
}

#[test]
fn each_checkpoint_goes_on_from_the_one_before() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let mut last = serde_json::Value::Null;
    for _ in 0..3 {
        let checkpoint = coordinator.start_json(&["checkpoint"]);
        let (token, _) = process.expect_checkpoint();
        process.dump(token);
        let (_, report) = finish(checkpoint);
        assert_eq!(report["parent"], last);
        last = report["id"].clone();
        process.receive();
    }
}

#[test]
fn a_request_while_a_checkpoint_runs_waits_for_its_turn() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let first = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    let second = coordinator.start_json(&["checkpoint"]);
    // Status is answered meanwhile.
    process.phase(token, Phase::Snapshotting);
    loop {
        let (_, status) = coordinator.json(&["status"]);
        if status["processes"][0]["phase"] == "snapshotting" {
            break;
        }
    }
    process.dump(token);
    assert_eq!(process.receive(), Some(ToProcess::Committed { token, kill: false }));
    let (next, _) = process.expect_checkpoint();
    assert_ne!(next, token);
    process.dump(next);
    let (first, second) = (finish(first), finish(second));
    assert_eq!((first.0, second.0), (0, 0));
    assert_eq!(second.1["parent"], first.1["id"]);
}

#[test]
fn what_a_process_refuses_is_told_by_name() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let checkpoint = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    let refusal = |what: &str| Refusal { what: what.into(), reason: "r".into(), remedy: "m".into() };
    process.send(&FromProcess::Refused { token, refusals: vec![refusal("fd 5"), refusal("fd 6")] });
    let (code, report) = finish(checkpoint);
    assert_eq!(code, 4);
    assert_eq!(report["error"]["kind"], "refused");
    assert_eq!(report["error"]["refusals"][1]["what"], "fd 6");
    assert_eq!(process.receive(), Some(ToProcess::Abandoned { token }));
    assert_eq!(*coordinator.store.discarded.lock().unwrap(), [token]);
    drop(process);
    coordinator.assert_well();
}

#[test]
fn a_store_that_cannot_commit_abandons_the_checkpoint_and_the_next_one_works() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    coordinator.store.full.store(true, Ordering::SeqCst);
    let checkpoint = coordinator.start_json(&["checkpoint", "--kill"]);
    let (token, hold) = process.expect_checkpoint();
    assert!(hold);
    process.dump(token);
    assert_eq!(process.receive(), Some(ToProcess::Abandoned { token }));
    let (code, report) = finish(checkpoint);
    assert_eq!(code, 4);
    assert!(report["error"]["message"].as_str().unwrap().contains("full"), "{report}");
    coordinator.store.full.store(false, Ordering::SeqCst);
    drop(process);
    coordinator.assert_well();
}

#[test]
fn a_computation_without_a_process_is_refused() {
    let coordinator = Coordinator::start();
    let (code, report) = coordinator.json(&["checkpoint"]);
    assert_eq!(code, 4);
    assert!(report["error"]["message"].as_str().unwrap().contains("has no process"), "{report}");
}

#[test]
fn processes_meet_before_each_step_and_the_first_to_join_is_the_first_of_the_record() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let mut player = spawn_player(&coordinator);
    let checkpoint = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    let none = Vec::new;
    process.send(&FromProcess::Ready {
        token,
        ends: none(),
        objects: Vec::new(),
        children: Vec::new(),
        receives: false,
    });
    assert_eq!(process.receive(), Some(ToProcess::Stop { token }));
    process.send(&FromProcess::Stopped { token, children: Vec::new(), late: None });
    assert_eq!(
        process.receive(),
        Some(ToProcess::Capture { token, elsewhere: Vec::new(), present: Vec::new() })
    );
    let captured = FromProcess::Captured {
        token,
        ends: none(),
        sharable: Vec::new(),
        objects: Vec::new(),
        uncopied: Vec::new(),
        received: Vec::new(),
    };
    process.send(&captured);
    assert_eq!(process.receive(), Some(ToProcess::Resume { token }));
    process.dump(token);
    let (code, report) = finish(checkpoint);
    assert_eq!(code, 0, "{report}");
    let pids: Vec<_> =
        report["processes"].as_array().unwrap().iter().map(|process| &process["pid"]).collect();
    assert_eq!(pids, [std::process::id(), player.id()], "{report}");
    player.kill().unwrap();
    player.wait().unwrap();
}

#[test]
fn an_end_whose_other_end_nobody_has_is_refused_before_anything_is_stopped() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let checkpoint = coordinator.start_json(&["checkpoint"]);
    let refusal = Refusal { what: "fd 5".into(), reason: "leads outside".into(), remedy: "close it".into() };
    let ends = vec![End { has: 1, wants: 2, refusal: Some(refusal), socket: false, terminal: None }];
    // It may have been between two steps at first: whose other end is missing is looked at twice.
    for _ in 0..2 {
        let (token, _) = process.expect_checkpoint();
        let ends = ends.clone();
        process.send(&FromProcess::Ready {
            token,
            ends,
            objects: Vec::new(),
            children: Vec::new(),
            receives: false,
        });
        assert_eq!(process.receive(), Some(ToProcess::Abandoned { token }));
    }
    let (code, report) = finish(checkpoint);
    assert_eq!(code, 4);
    assert_eq!(report["error"]["refusals"][0]["what"], "fd 5", "{report}");
}

#[test]
fn a_killed_process_has_ended_when_the_command_returns() {
    let coordinator = Coordinator::start();
    let mut player = spawn_player(&coordinator);
    let (code, report) = coordinator.json(&["checkpoint", "--kill"]);
    assert_eq!(code, 0, "{report}");
    assert!(player.try_wait().unwrap().is_some());
}

#[test]
fn a_stopped_process_is_checkpointed() {
    let coordinator = Coordinator::start();
    let mut player = spawn_player(&coordinator);
    let pid = nix::unistd::Pid::from_raw(player.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    let (code, report) = coordinator.json(&["checkpoint"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["processes"][0]["tracker"], "was stopped");
    player.kill().unwrap();
    player.wait().unwrap();
}

#[test]
fn ticks_that_come_during_a_checkpoint_are_counted_and_skipped() {
    let coordinator = Coordinator::start_with(&["--interval", "0.02"]);
    let mut process = FakeProcess::join(&coordinator);
    let (token, _) = process.expect_checkpoint();
    loop {
        let (_, status) = coordinator.json(&["status"]);
        if status["interval_ticks_skipped"].as_u64().unwrap() >= 3 {
            break;
        }
    }
    process.dump(token);
    assert_eq!(process.receive(), Some(ToProcess::Committed { token, kill: false }));
    // And they go on.
    process.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_ne!(process.expect_checkpoint().0, token);
}

#[test]
fn list_and_log_tell_what_the_store_keeps() {
    let coordinator = Coordinator::start();
    coordinator.assert_well();
    coordinator.assert_well();
    let (code, list) = coordinator.json(&["list"]);
    assert_eq!(code, 0);
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["taken"], "1970-01-01T00:00:01.000Z");
    let (_, log) = coordinator.json(&["log"]);
    assert_eq!(log[0]["id"], list[1]["id"]);
    let text = coordinator.command(&["list"]).output().unwrap();
    assert!(text.status.success());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("ID ") && text.lines().count() == 3, "{text}");
}
