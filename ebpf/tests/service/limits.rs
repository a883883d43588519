//! What one user may have of it.

use stasis_protocol::tracer::{Limits, Reply, Request, What};

use crate::{NOBODY, Python, client::Client, tracer};

const CHILDREN: &str = "
import os, signal
print('ready', flush=True)
input()
children = []
for i in range(8):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    children.append(pid)
print('made', flush=True)
input()
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print('ended', flush=True)
input()
";

fn limits(client: &mut Client) -> Limits {
    match client.ask(&Request::Tasks { computation: None }) {
        Reply::Tasks { limits, .. } => limits,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_user_has_so_many_tracked_processes_and_is_told_of_the_others() {
    let Some((tracer, _directory)) = tracer(&["--user-tasks", "5"]) else { return };
    let mut python = Python::start(NOBODY, CHILDREN);
    let mut client = Client::connect_as(&tracer, NOBODY);
    client.register(7, python.pid());
    let mut watcher = Client::connect_as(&tracer, NOBODY);
    watcher.watch(None);
    python.go();
    assert_eq!(python.line(), "made");
    let (mut forks, mut refused) = (0, 0);
    while forks + refused < 8 {
        match watcher.event().what {
            What::Fork { .. } => forks += 1,
            What::Refused { .. } => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((forks, refused), (4, 4));
    let told = limits(&mut client);
    assert_eq!((told.tasks, told.limit), (5, 5));
    assert!(told.refused >= 4, "{told:?}");
    // Others have their own.
    let mut other = Python::start(0, CHILDREN);
    let mut root = Client::connect(&tracer);
    root.register(8, other.pid());
    other.go();
    assert_eq!(other.line(), "made");
    assert_eq!(limits(&mut root).tasks, 5);
    // It comes back when they end.
    python.go();
    assert_eq!(python.line(), "ended");
    assert_eq!(limits(&mut client).tasks, 1);
    other.go();
    assert_eq!(other.line(), "ended");
}
