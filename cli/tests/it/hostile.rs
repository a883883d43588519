//! Peers that break the rules: only they suffer.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use stasis_protocol::{
    VERSION,
    coordinator::{ClientReply, ClientRequest, FromProcess, Hello, Outside, Phase, Role, ToProcess},
    wire,
};

use crate::peers::{Coordinator, FakeProcess, finish, receive};

/// Reads until the coordinator drops the connection.
fn assert_dropped(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn garbage_instead_of_a_greeting_is_dropped() {
    let coordinator = Coordinator::start();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[1, 0, 0, 0, 0xff], &[0; 4]] {
        let mut stream = coordinator.connect();
        stream.write_all(garbage).unwrap();
        assert_dropped(&mut stream);
    }
    coordinator.assert_well();
}

#[test]
fn garbage_after_a_greeting_is_dropped() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    process.stream.write_all(&[2, 0, 0, 0, 0xff, 0xff]).unwrap();
    assert_dropped(&mut process.stream);
    let mut client = coordinator.connect();
    client.write_all(&wire::frame(&Hello { version: VERSION, role: Role::Client }).unwrap()).unwrap();
    assert!(matches!(receive(&mut client), Some(ClientReply::Welcome { .. })));
    client.write_all(&[2, 0, 0, 0, 0xff, 0xff]).unwrap();
    assert_dropped(&mut client);
    coordinator.assert_well();
}

#[test]
fn half_a_message_stops_nobody_else() {
    let coordinator = Coordinator::start();
    let greeting = wire::frame(&Hello { version: VERSION, role: Role::Client }).unwrap();
    let mut halves = Vec::new();
    for len in 1..greeting.len() {
        let mut stream = coordinator.connect();
        stream.write_all(&greeting[..len]).unwrap();
        halves.push(stream);
    }
    coordinator.assert_well();
    for mut stream in halves {
        stream.shutdown(Shutdown::Write).unwrap();
        assert_dropped(&mut stream);
    }
    coordinator.assert_well();
}

#[test]
fn another_version_is_told_ours_and_dropped() {
    let coordinator = Coordinator::start();
    let mut client = coordinator.connect();
    client.write_all(&wire::frame(&Hello { version: VERSION + 1, role: Role::Client }).unwrap()).unwrap();
    assert!(matches!(receive(&mut client), Some(ClientReply::Welcome { version: VERSION, .. })));
    assert_dropped(&mut client);
    let mut process = coordinator.connect();
    let role = Role::Process { pid: 1, argv: Vec::new(), restarted_from: None, stops: false, epoch: 0 };
    process.write_all(&wire::frame(&Hello { version: VERSION + 1, role }).unwrap()).unwrap();
    assert!(matches!(receive(&mut process), Some(ToProcess::Welcome { version: VERSION, .. })));
    assert_dropped(&mut process);
    let (_, status) = coordinator.json(&["status"]);
    assert_eq!(status["processes"].as_array().unwrap().len(), 0);
}

#[test]
fn a_process_that_vanishes_in_the_middle_is_named() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let checkpoint = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    process.phase(token, Phase::Snapshotting);
    drop(process);
    let (code, report) = finish(checkpoint);
    assert_eq!(code, 4);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
    // The process itself runs on: it is this test.
    assert!(message.contains("has left the computation and runs on"), "{message}");
    assert_eq!(*coordinator.store.discarded.lock().unwrap(), [token]);
    coordinator.assert_well();
}

#[test]
fn a_process_that_never_answers_is_named_and_told() {
    let coordinator = Coordinator::start_with(&["--deadline-seconds", "0.2"]);
    let mut process = FakeProcess::join(&coordinator);
    let checkpoint = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    let (code, report) = finish(checkpoint);
    assert_eq!(code, 4);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.contains("did not get on in time while being asked"), "{message}");
    assert_eq!(process.receive(), Some(ToProcess::Abandoned { token }));
    // What it says too late is not taken for an answer to the next one.
    let checkpoint = coordinator.start_json(&["checkpoint"]);
    let (next, _) = process.expect_checkpoint();
    process.dump(token);
    process.phase(next, Phase::Checking);
    process.dump(next);
    assert_eq!(finish(checkpoint).0, 0);
    assert_eq!(process.receive(), Some(ToProcess::Committed { token: next, kill: false }));
}

#[test]
fn a_process_that_hangs_in_a_phase_is_named_with_the_phase() {
    let coordinator = Coordinator::start_with(&["--deadline-seconds", "0.2"]);
    let mut process = FakeProcess::join(&coordinator);
    let checkpoint = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    process.phase(token, Phase::Quiescing);
    let (code, report) = finish(checkpoint);
    assert_eq!(code, 4);
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.contains("while stopping its threads"), "{message}");
}

#[test]
fn a_flood_of_phases_does_not_stop_others() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let mut flood = Vec::new();
    for token in 0..20_000 {
        flood.extend(wire::frame(&FromProcess::Phase { token, phase: Phase::Storing }).unwrap());
    }
    process.stream.write_all(&flood).unwrap();
    assert_eq!(coordinator.json(&["status"]).0, 0);
    drop(process);
    coordinator.assert_well();
}

#[test]
fn a_client_that_vanishes_leaves_its_checkpoint_to_its_end() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let mut checkpoint = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    checkpoint.kill().unwrap();
    checkpoint.wait().unwrap();
    process.dump(token);
    assert_eq!(process.receive(), Some(ToProcess::Committed { token, kill: false }));
    assert_eq!(coordinator.store.kept.lock().unwrap().len(), 1);
}

#[test]
fn a_client_that_vanishes_while_it_waits_asks_for_nothing() {
    let coordinator = Coordinator::start();
    let mut process = FakeProcess::join(&coordinator);
    let first = coordinator.start_json(&["checkpoint"]);
    let (token, _) = process.expect_checkpoint();
    let mut client = coordinator.connect();
    client.write_all(&wire::frame(&Hello { version: VERSION, role: Role::Client }).unwrap()).unwrap();
    assert!(matches!(receive(&mut client), Some(ClientReply::Welcome { .. })));
    let kill = ClientRequest::Checkpoint {
        kill: true,
        label: None,
        without: Vec::new(),
        outside: Outside::default(),
    };
    client.write_all(&wire::frame(&kill).unwrap()).unwrap();
    drop(client);
    // Comes after the vanishing in the coordinator's queue.
    assert_eq!(coordinator.json(&["status"]).0, 0);
    process.dump(token);
    assert_eq!(finish(first).0, 0);
    assert_eq!(process.receive(), Some(ToProcess::Committed { token, kill: false }));
    let last = coordinator.start_json(&["checkpoint"]);
    let (token, hold) = process.expect_checkpoint();
    assert!(!hold, "the request of the client that went away was carried out");
    process.dump(token);
    assert_eq!(finish(last).0, 0);
}
