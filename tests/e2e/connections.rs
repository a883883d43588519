//! Connections between the processes of a computation, and to the outside.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::Duration,
};

use stasis_tests::{Lab, Workload};

/// Waits until so many processes have joined.
#[track_caller]
fn wait_for(lab: &Lab, processes: usize) {
    let begun = std::time::Instant::now();
    while lab.json(["status"])["processes"].as_array().map_or(0, Vec::len) != processes {
        assert!(begun.elapsed() < Duration::from_secs(60), "not all of {processes} processes have joined");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sixteen processes that send each other messages all the time lose none over a hundred checkpoints and some restarts.
#[track_caller]
fn ring(kind: &'static str, restarts: usize) {
    const CHECKPOINTS: usize = 100;
    let lab = Lab::new();
    let mut running = Workload { program: "ring", arguments: vec![kind].leak() }.launch(&lab);
    running.wait_ready();
    for _ in 0..restarts {
        wait_for(&lab, 17);
        for _ in 0..CHECKPOINTS / restarts - 1 {
            lab.checkpoint(&[]);
        }
        lab.checkpoint_kill(running);
        running = lab.restart(["latest"]);
    }
    wait_for(&lab, 17);
    running.expect_ok();
}

macro_rules! rings {
    ($($name:ident: $kind:literal, $restarts:literal;)*) => {$(
        #[test]
        fn $name() {
            ring($kind, $restarts);
        }
    )*};
}

mod a_ring_of_processes_loses_nothing {
    use super::ring;

    rings! {
        over_pipes: "pipe", 10;
        over_fifos: "fifo", 10;
        over_socket_pairs: "pair", 10;
        over_unix_sockets: "unix", 10;
        over_abstract_unix_sockets: "abstract", 10;
        over_unix_datagrams: "datagram", 10;
        over_unix_packets: "packets", 10;
        over_tcp: "tcp4", 10;
        over_tcp_and_ipv6: "tcp6", 10;
        over_udp: "udp", 10;
    }
}

#[test]
fn a_ring_notices_a_message_that_changed() {
    Workload { program: "ring", arguments: &["pair", "4"] }.notices_what_is_lost();
}

#[test]
fn a_connection_to_the_outside_is_refused_or_reset_as_the_user_says() {
    let lab = Lab::new();
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = outside.local_addr().unwrap().port().to_string();
    let port: &'static str = port.leak();
    let running = Workload { program: "client", arguments: vec![port].leak() }.launch(&lab);
    let (mut peer, _) = outside.accept().unwrap();
    peer.write_all(b"before").unwrap();
    running.wait_ready();
    lab.try_checkpoint(&[]).expect_refusal(&["outside the checkpoint", "--external-sockets=close"]);
    lab.try_checkpoint(&["--external-sockets=keep"]).expect_success();
    peer.write_all(b"!").unwrap();
    let outcome = lab.try_checkpoint(&["--kill", "--external-sockets=close"]);
    outcome.expect_success();
    running.wait_exit();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let found = peer.read(&mut [0; 8]).map_err(|error| error.kind());
    assert_eq!(found, Err(std::io::ErrorKind::ConnectionReset), "what the peer finds");
    lab.restart(["latest"]).expect_ok();
}
