//! Whose the other ends are.

use std::net::TcpListener;

use stasis_protocol::tracer::{OtherEnd, What};

use crate::{NOBODY, Python, client::Client, tracer};

/// A pair, a connection inside, one to a listener outside, and a child that has some of it.
const CONNECTED: &str = "
import os, socket, signal
print('ready', flush=True)
port = int(input())
a, b = socket.socketpair()
listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(); listener.set_inheritable(True)
inside = socket.create_connection(listener.getsockname())
waiting = socket.create_connection(listener.getsockname())
accepted, _ = listener.accept()
six = socket.socket(socket.AF_INET6); six.bind(('::1', 0)); six.listen()
inside6 = socket.create_connection(six.getsockname()[:2])
accepted6, _ = six.accept()
outside = socket.create_connection(('127.0.0.1', port))
pid = os.fork()
if pid == 0:
    a.close()
    signal.pause()
b.close()
print(pid, a.fileno(), inside.fileno(), waiting.fileno(), outside.fileno(), listener.fileno(), inside6.fileno(), flush=True)
input()
os.kill(pid, 9)
print('ended', flush=True)
";

#[test]
fn connections_are_told_by_where_their_other_ends_are() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut python = Python::start(NOBODY, CONNECTED);
    let mut client = Client::connect_as(&tracer, NOBODY);
    client.register(7, python.pid());
    let mut watcher = Client::connect_as(&tracer, NOBODY);
    watcher.watch(Some(7));
    python.say(&outside.local_addr().unwrap().port().to_string());
    let line = python.line();
    let told: Vec<u32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
    let [child, pair, inside, waiting, elsewhere, listener, inside6] = told[..] else { panic!("{line}") };
    let accepted = outside.accept().unwrap();

    let connections = client.connections(7);
    let parent = python.pid();
    let other = |fd: u32| {
        let found = connections.iter().find(|connection| connection.pid == parent && connection.fd == fd);
        &found.unwrap_or_else(|| panic!("fd {fd} of {connections:#?}")).other
    };
    assert!(matches!(other(pair), OtherEnd::Inside { pid, .. } if *pid == child), "{:?}", other(pair));
    assert!(matches!(other(inside), OtherEnd::Inside { pid, .. } if *pid == parent), "{:?}", other(inside));
    assert!(matches!(other(inside6), OtherEnd::Inside { pid, .. } if *pid == parent), "{:?}", other(inside6));
    assert_eq!(other(waiting), &OtherEnd::Inside { pid: 0, inode: 0 }, "nobody has accepted it");
    assert_eq!(other(listener), &OtherEnd::None);
    // This process is root's: which one it is, is not nobody's business.
    assert_eq!(other(elsewhere), &OtherEnd::Host { pid: None });
    Client::connect(&tracer).register(8, std::process::id());
    let again = client.connections(7);
    let found = again.iter().find(|connection| connection.pid == parent && connection.fd == elsewhere);
    assert_eq!(found.unwrap().other, OtherEnd::Computation { computation: None });
    drop(accepted);

    let mut states = Vec::new();
    let port = format!(":{}", outside.local_addr().unwrap().port());
    while !states.ends_with(&[1]) {
        if let What::Tcp { new, remote, .. } = watcher.event().what
            && remote.ends_with(&port)
        {
            states.push(new);
        }
    }
    assert_eq!(states, [2, 1], "sent, and established");
    python.go();
    assert_eq!(python.line(), "ended");
}
