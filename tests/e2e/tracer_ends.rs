//! Where the tracer runs, a refusal says who has the other end of a connection that leads out of the computation.

use std::{net::TcpListener, os::unix::net::UnixListener, process, time::Instant};

use stasis_tests::{DEADLINE, Lab, Tracer};

/// Connects to each of its arguments, a path or a port, and waits.
const CONNECTS: &str = "
import socket, sys, time
kept = []
for to in sys.argv[1:]:
    if to.startswith('/'):
        kept.append(socket.socket(socket.AF_UNIX))
        kept[-1].connect(to)
    else:
        kept.append(socket.create_connection(('127.0.0.1', int(to))))
print('ready', flush=True)
time.sleep(1000)
";

/// Accepts one connection at the path or port that is its argument, and keeps it.
const ACCEPTS: &str = "
import socket, sys, time
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('ready', flush=True)
kept = listener.accept()
time.sleep(1000)
";

#[test]
fn a_program_of_this_machine_is_named() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let path = lab.work().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port().to_string();
    let running = lab.launch(["python3", "-c", CONNECTS, path.to_str().unwrap(), &port]);
    running.wait_ready();
    let _kept = (unix.accept().unwrap(), tcp.accept().unwrap());
    // This test, which has both other ends.
    let whose = format!("in pid {} (", process::id());
    let outcome = lab.try_checkpoint(&[]);
    let text = format!("{}{}", outcome.stdout, outcome.stderr);
    assert_eq!(text.matches(&whose).count(), 2, "{text}");
    outcome.expect_refusal(&["the other end of the connection is outside the checkpoint", &whose]);
    lab.run(["kill"]).expect_success();
}

#[test]
fn another_computation_is_named() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap().port();
    let at = port.to_string();
    let other = lab.with_coordinator("coord.sock.2");
    let server = other.launch(["python3", "-c", ACCEPTS, &at]);
    server.wait_ready();
    let client = lab.launch(["python3", "-c", CONNECTS, &at]);
    client.wait_ready();
    // Accepted, when the listener's queue is empty again.
    let begun = Instant::now();
    loop {
        let outcome = lab.try_checkpoint(&[]);
        let text = format!("{}{}", outcome.stdout, outcome.stderr);
        if text.contains("in the computation at unix:") && text.contains("coord.sock.2") {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{outcome}");
    }
    other.run(["kill"]).expect_success();
    lab.run(["kill"]).expect_success();
}
