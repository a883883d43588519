//! The service's own beginning and end.

use std::{collections::BTreeSet, fs, process::Command};

use nix::sys::signal::Signal;
use stasis_protocol::tracer::{Reply, Request, What};

use crate::{Python, client::Client, tracer};

/// Makes processes all the time; keeps every tenth.
const LOAD: &str = "
import os, signal, sys
print('ready', flush=True)
input()
signal.signal(signal.SIGTERM, lambda *a: None)
kept = []
for i in range(6000):
    pid = os.fork()
    if pid == 0:
        if i % 10 == 0:
            signal.pause()
        os._exit(0)
    if i % 10 == 0:
        kept.append(pid)
    else:
        os.waitpid(pid, 0)
    if i % 600 == 599:
        print(i, flush=True)
print(' '.join(map(str, kept)), flush=True)
input()
for pid in kept:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print('ended', flush=True)
input()
";

#[test]
fn killed_and_started_again_under_load_it_loses_no_process() {
    let Some((mut tracer, _directory)) = tracer(&[]) else { return };
    let mut python = Python::start(0, LOAD);
    Client::connect(&tracer).register(7, python.pid());
    python.go();
    for round in 0..10 {
        python.line();
        // Killed, or told to start again; once it is away for a while.
        tracer.end(if round % 2 == 0 { Signal::SIGKILL } else { Signal::SIGHUP });
        if round == 4 {
            continue_until(&mut python);
        }
        tracer.start_again();
        assert!(tracer.greeting.starts_with("took over"), "{}", tracer.greeting);
    }
    let kept: BTreeSet<u32> = python.line().split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(kept.len(), 600);
    let mut client = Client::connect(&tracer);
    let tracked: BTreeSet<u32> =
        client.tasks(7).into_iter().map(|task| task.pid).filter(|&pid| pid != python.pid()).collect();
    assert_eq!(tracked, kept);
    python.go();
    assert_eq!(python.line(), "ended");
    assert_eq!(client.tasks(7).len(), 1, "the first one alone");
}

/// The program has to do something while nobody reads what the kernel writes.
fn continue_until(python: &mut Python) {
    let used = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        // utime and stime, counted without the state letter.
        fields[10] + fields[11]
    };
    let begun = used(python.pid());
    while used(python.pid()) < begun + 5 {
        std::thread::yield_now();
    }
}

#[test]
fn another_version_takes_over_what_is_tracked() {
    let Some((mut tracer, directory)) = tracer(&[]) else { return };
    let script = "
import os, signal
print('ready', flush=True)
input()
pid = os.fork()
if pid == 0:
    signal.pause()
print('made', flush=True)
input()
os.kill(pid, 9)
os.wait()
print('ended', flush=True)
input()
";
    let mut python = Python::start(0, script);
    let mut client = Client::connect(&tracer);
    client.register(7, python.pid());
    let before = client.tasks(7);
    tracer.end(Signal::SIGKILL);
    let pinned = |tracer: &stasis_tests::Tracer| fs::read_dir(tracer.pin()).unwrap().count();
    assert_eq!(pinned(&tracer), 1);
    // Other programs, which happen to do the same: whatever follows an ELF file's sections is nobody's.
    let object = directory.path().join("other.bpf.o");
    let mut bytes = fs::read(stasis_tests::lab::binary("stasis-tracer.bpf.o")).unwrap();
    bytes.push(0);
    fs::write(&object, bytes).unwrap();
    tracer.start_again_with(&["--object", object.to_str().unwrap()]);
    assert!(tracer.greeting.starts_with("loaded"), "{}", tracer.greeting);
    assert_eq!(pinned(&tracer), 1, "the other version's are gone");
    assert_eq!(Client::connect(&tracer).tasks(7), before);
    python.go();
    assert_eq!(python.line(), "made");
    assert_eq!(Client::connect(&tracer).tasks(7).len(), 2, "what it makes is tracked");
    python.go();
    assert_eq!(python.line(), "ended");
    assert_eq!(Client::connect(&tracer).tasks(7).len(), 1);
}

#[test]
fn records_that_find_no_room_are_counted_and_made_good() {
    const THREADS: u64 = 40_000;
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let mut client = Client::connect(&tracer);
    client.register(7, std::process::id());
    let mut watcher = Client::connect(&tracer);
    watcher.watch(Some(7));
    let service = nix::unistd::Pid::from_raw(tracer.pid() as i32);
    nix::sys::signal::kill(service, Signal::SIGSTOP).unwrap();
    for _ in 0..THREADS {
        std::thread::spawn(|| {}).join().unwrap();
    }
    nix::sys::signal::kill(service, Signal::SIGCONT).unwrap();
    let (mut threads, mut lost, mut others) = (0, 0, 0);
    loop {
        let event = watcher.event();
        match event.what {
            What::Thread { .. } => threads += 1,
            What::Lost { events } => lost += events,
            What::Present { .. } => {
                assert_eq!(event.pid, std::process::id());
                break;
            }
            // Other tests in the same process (cargo test) make processes.
            _ => others += 1,
        }
    }
    assert!(lost > 0, "there was room for {THREADS} records");
    assert!(threads + lost + others >= THREADS, "{threads} + {lost} + {others}");
    let Reply::State(state) = client.ask(&Request::State) else { panic!("no state") };
    assert_eq!(state.dropped, lost);
}

#[test]
fn when_it_ends_nothing_is_left_behind() {
    let Some((mut tracer, _directory)) = tracer(&[]) else { return };
    assert!(tracer.pin().exists() && tracer.socket().exists());
    let before = programs(&tracer);
    assert_eq!(before.len(), 4, "three for tasks and one for sockets are attached: {before:?}");
    tracer.end(Signal::SIGTERM);
    assert!(!tracer.pin().exists() && !tracer.socket().exists());
    // The kernel frees them a moment later, and tells nobody.
    let end = std::time::Instant::now() + stasis_tests::DEADLINE;
    loop {
        let listed = bpftool(&["prog", "list"]);
        let is_left = |id: &&u64| listed.lines().any(|line| line.starts_with(&format!("{id}: ")));
        let Some(left) = before.iter().find(is_left) else { break };
        assert!(std::time::Instant::now() < end, "{left} is left: {listed}");
    }
}

/// The programs that are attached by links pinned in this tracer's directory, as bpftool tells.
fn programs(tracer: &stasis_tests::Tracer) -> Vec<u64> {
    let directory = fs::read_dir(tracer.pin()).unwrap().next().unwrap().unwrap().path();
    ["newtask", "exec", "exit", "tcp_state"]
        .iter()
        .map(|name| {
            let pinned = directory.join(name);
            let link = bpftool(&["link", "show", "pinned", &pinned.display().to_string()]);
            assert!(link.contains("prog "), "{link}");
            let id = link.split_whitespace().skip_while(|word| *word != "prog").nth(1).unwrap();
            let program = bpftool(&["prog", "show", "id", id]);
            assert!(program.contains(&format!("name {name} ")), "{program}");
            id.parse().unwrap()
        })
        .collect()
}

fn bpftool(arguments: &[&str]) -> String {
    let output = Command::new("/usr/sbin/bpftool").args(arguments).output().expect("bpftool is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_it_keeps_is_one_capability_and_few_system_calls() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let status = fs::read_to_string(format!("/proc/{}/status", tracer.pid())).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_string();
    // CAP_CHECKPOINT_RESTORE is number 40.
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(set), "0000010000000000", "{set}");
    }
    assert_eq!(field("CapAmb:"), "0000000000000000");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("NoNewPrivs:"), "1");
}

#[test]
fn without_pids_to_give_it_keeps_no_capability_at_all() {
    let Some((tracer, _directory)) = tracer(&["--no-pids"]) else { return };
    let status = fs::read_to_string(format!("/proc/{}/status", tracer.pid())).unwrap();
    assert!(status.contains("CapPrm:\t0000000000000000"), "{status}");
    Client::connect(&tracer).register(7, std::process::id());
}

#[test]
fn a_second_one_is_refused_where_one_runs() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let output = Command::new(stasis_tests::lab::binary("stasis-tracer"))
        .arg("--runtime")
        .arg(tracer.socket().parent().unwrap())
        .arg("--pin")
        .arg(tracer.pin())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another tracer runs here"));
    Client::connect(&tracer);
}
