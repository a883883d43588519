//! What the programs see.

use std::collections::{BTreeMap, BTreeSet};

use stasis_protocol::tracer::What;
use stasis_tests::Tracer;
use tempfile::TempDir;

use crate::{Python, client::Client, tracer};

/// A program that waits to be told to go on, in computation 7 of a tracer; nothing where none can be had.
struct Computation7 {
    tracer: Tracer,
    client: Client,
    python: Python,
    _directory: TempDir,
}

impl Computation7 {
    fn running(script: &str) -> Option<Self> {
        let (tracer, directory) = tracer(&[])?;
        let python = Python::start(0, script);
        let mut client = Client::connect(&tracer);
        client.register(7, python.pid());
        Some(Self { tracer, client, python, _directory: directory })
    }
}

fn end(pid: u32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
}

#[test]
fn of_ten_thousand_short_lived_processes_no_event_is_lost() {
    const COUNT: usize = 10_000;
    let script = format!(
        "import os\nprint('ready', flush=True)\ninput()\nfor i in range({COUNT}):\n if os.fork() == 0: os._exit(i % 7)\n os.wait()"
    );
    let Some(mut computation) = Computation7::running(&script) else { return };
    let Computation7 { tracer, python, .. } = &mut computation;
    let mut watcher = Client::connect(tracer);
    watcher.watch(Some(7));
    python.go();
    let (mut made, mut ended) = (BTreeMap::new(), BTreeMap::new());
    loop {
        let event = watcher.event();
        match event.what {
            What::Fork { child, .. } => {
                assert_eq!(event.pid, python.pid());
                *made.entry(child).or_insert(0) += 1;
            }
            What::Exit { .. } if event.pid == python.pid() => break,
            What::Exit { status, .. } => {
                assert!(status >> 8 < 7);
                *ended.entry(event.pid).or_insert(0) += 1;
            }
            What::Thread { .. } | What::Exec { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(made.values().sum::<usize>(), COUNT);
    assert_eq!(made, ended, "who began has ended, as often");
    assert_eq!(Client::connect(tracer).tasks(7), []);
}

#[test]
fn whatever_way_a_process_is_made_it_is_tracked_before_it_runs() {
    // A child, a grandchild whose parent ends, one made by vfork, and one in a session of its own; by system calls that libc
    // knows nothing of a sister (CLONE_PARENT) and a child.
    let script = "
import ctypes, os, signal, struct, subprocess, time
print('ready', flush=True)
input()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
    os._exit(0)
os.wait()
children = [subprocess.Popen(['/bin/sleep', '1000']), subprocess.Popen(['/bin/busybox', 'sleep', '1000'])]
call = ctypes.CDLL(None).syscall
CLONE, CLONE3, CLONE_PARENT = 56, 435, 0x8000
arguments = ctypes.create_string_buffer(struct.pack('11Q', 0, 0, 0, 0, signal.SIGCHLD, *[0] * 6))
if call(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    signal.pause()
if call(CLONE3, arguments, 88) == 0:
    signal.pause()
print('made', flush=True)
input()
";
    let Some(mut computation) = Computation7::running(script) else { return };
    let Computation7 { client, python, .. } = &mut computation;
    python.go();
    assert_eq!(python.line(), "made");
    let tasks = client.tasks(7);
    let commands: Vec<&str> = tasks.iter().map(|task| task.command.as_str()).collect();
    assert_eq!(tasks.len(), 6, "{commands:?}");
    for task in tasks.iter().filter(|task| task.pid != python.pid()) {
        assert!(!task.registered && !task.found, "{task:?}");
        assert_eq!(task.ns_pid, task.pid);
        end(task.pid);
    }
    let strangers = tasks.iter().filter(|task| task.pid != python.pid() && task.creator != python.pid());
    assert_eq!(strangers.count(), 1, "the grandchild's maker has ended: {tasks:?}");
}

#[test]
fn threads_are_told_from_processes_and_an_exec_in_one_ends_none() {
    // A thread that is not the first executes: it becomes the process, whose pid stays.
    let script = "
import os, threading, time
print('ready', flush=True)
input()
threading.Thread(target=lambda: os.execv('/bin/sleep', ['sleep', '1000'])).start()
time.sleep(1000)
";
    let Some(mut computation) = Computation7::running(script) else { return };
    let Computation7 { tracer, client, python, .. } = &mut computation;
    let mut watcher = Client::connect(tracer);
    watcher.watch(None);
    python.go();
    let mut threads = BTreeSet::new();
    let (file, thread) = loop {
        match watcher.event().what {
            What::Thread { tid, .. } => {
                threads.insert(tid);
            }
            What::Exec { file, thread, secure, .. } => {
                assert!(!secure);
                break (file, thread);
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(file, "/bin/sleep");
    assert!(thread.is_some_and(|thread| threads.contains(&thread)), "{thread:?} of {threads:?}");
    let tasks = client.tasks(7);
    assert_eq!(tasks.len(), 1, "{tasks:?}");
    assert_eq!((tasks[0].pid, tasks[0].command.as_str()), (python.pid(), "sleep"));
    assert!(tasks[0].executed && tasks[0].registered);
}

#[test]
fn a_process_is_known_in_its_own_pid_namespace_too() {
    let script = "
import subprocess
print('ready', flush=True)
input()
child = subprocess.Popen(['unshare', '--pid', '--fork', '--kill-child', 'sh', '-c', 'echo made; sleep 1000; true'])
child.wait()
";
    let Some(mut computation) = Computation7::running(script) else { return };
    let Computation7 { client, python, .. } = &mut computation;
    python.go();
    assert_eq!(python.line(), "made");
    let tasks = client.tasks(7);
    let shell = tasks.iter().find(|task| task.command == "sh").unwrap_or_else(|| panic!("{tasks:?}"));
    assert_eq!(shell.ns_pid, 1);
    assert_ne!(shell.pid, 1);
    end(shell.pid);
}
