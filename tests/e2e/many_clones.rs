//! `stasis restart --clones N`: one checkpoint several times at once.

use std::{fs, os::unix::fs::FileExt, time::Duration};

use stasis_tests::{DEADLINE, Lab, Running, compile, lab::wait_all_ended, process::ProcessHandle};

/// Restarts several clones of what was launched last. Every mapping with a page in the checkpoint is one that they share.
#[track_caller]
fn clones(lab: &Lab, id: &str, count: &str, more: &[&str]) -> Running {
    let arguments = [&[id, "--clones", count], more].concat();
    lab.prepare_restart(arguments).environment("STASIS_LAZY_FROM", "1").start()
}

/// The lab as seen by way of the coordinators of clones, and the program that runs at each: the first is where the lab
/// itself has it, the others behind it.
#[track_caller]
fn each(lab: &Lab, running: &Running, numbers: std::ops::RangeInclusive<u32>) -> Vec<(Lab, ProcessHandle)> {
    let seen = |number| {
        let lab = match number {
            1 => lab.clone(),
            number => lab.with_coordinator(&format!("coord.sock.{number}")),
        };
        lab.wait_joined(running);
        let status = lab.json(["status"]);
        assert_eq!(status["processes"].as_array().map(Vec::len), Some(1), "{status}");
        let pid = status["processes"][0]["real_pid"].as_u64().expect("a pid");
        (lab, ProcessHandle::open(pid as u32).expect("the program is there"))
    };
    numbers.map(seen).collect()
}

/// From /proc/PID/smaps_rollup, in KiB. Pss counts a page that n processes have as one n-th.
#[track_caller]
fn kibibytes(process: &ProcessHandle, what: &str) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", process.pid());
    let content = fs::read_to_string(&path).expect("the program is there");
    let line = content.lines().find_map(|line| line.strip_prefix(what)).expect("a line of proc(5)");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// A program with 64 MiB. Told so, it says whether they are what they were, and ends so; when it gets SIGUSR1 it writes to all
/// of them first. All clones write to one file, from the same place on.
const HEAP: &str = "\
import hashlib, os, signal, sys, time
heap = bytearray(os.urandom(64 << 20))
expected = hashlib.sha256(heap).hexdigest()
def write(*_):
    global expected
    for page in range(0, len(heap), 4096):
        heap[page] ^= os.getpid() & 0xff
    expected = hashlib.sha256(heap).hexdigest()
    print('ok', flush=True)
signal.signal(signal.SIGUSR1, write)
print('ready', flush=True)
while not os.path.exists(os.environ['STASIS_TEST_GO']):
    time.sleep(0.01)
whole = hashlib.sha256(heap).hexdigest() == expected
print('ok' if whole else 'FAIL', flush=True)
sys.exit(not whole)
";

#[track_caller]
fn heap(lab: &Lab) -> String {
    let running = lab.launch(["python3", "-c", HEAP]);
    running.wait_ready();
    lab.checkpoint_kill(running)
}

#[test]
fn what_clones_read_they_share_and_what_they_write_is_their_own() {
    let lab = Lab::new();
    let id = heap(&lab);
    let running = clones(&lab, &id, "4", &[]);
    let clones = each(&lab, &running, 1..=4);
    let sum = |what| clones.iter().map(|(_, clone)| kibibytes(clone, what)).sum::<u64>();
    let one = kibibytes(&clones[0].1, "Rss:");
    assert!(one > 64 << 10 && sum("Pss:") * 2 <= one * 3, "{} KiB, of {one} for one", sum("Pss:"));
    // One of them writes. Nobody but it has what it wrote, and nobody keeps what the others do not have any more.
    let (writer_lab, writer) = &clones[1];
    let before = kibibytes(writer, "Private_Dirty:");
    writer.signal(nix::sys::signal::Signal::SIGUSR1).expect("it is there");
    running.wait_output("that it has written", |output| output.contains("ok\n"));
    let own = kibibytes(writer, "Private_Dirty:") - before;
    assert!(own >= 60 << 10, "{own} KiB");
    assert!(sum("Pss:") * 2 <= one * 5, "{} KiB, of {one} for one", sum("Pss:"));
    // Each is checkpointed as it is.
    let ids: Vec<String> = clones.iter().map(|(lab, _)| lab.checkpoint(&[])).collect();
    let shown = writer_lab.json(["show", &ids[1]]);
    assert_eq!(shown["checkpoint"]["parent"].as_str(), Some(&id[..]), "{shown}");
    // And only for what it has written since the restart.
    let shown = clones[0].0.json(["show", &ids[0]]);
    let process = &shown["checkpoint"]["processes"][0];
    let number = |key: &str| process[key].as_u64().unwrap_or_else(|| panic!("{key} in {process}"));
    if stasis_tests::kernel::has_wp_async() {
        assert!(number("pages_received") < number("pages") / 10, "{process}");
    }
    running.expect_ok();
    for id in &ids {
        lab.restart([id.as_str(), "--eager"]).expect_ok();
    }
}

#[test]
fn clones_of_clones_are_computations_of_their_own() {
    let lab = Lab::new();
    let id = heap(&lab);
    let first = clones(&lab, &id, "2", &[]);
    let seen = each(&lab, &first, 1..=2);
    let computation = |lab: &Lab| lab.json(["status"])["computation"].as_str().map(str::to_owned);
    assert_ne!(computation(&seen[0].0), computation(&seen[1].0));
    let id = seen[1].0.checkpoint(&[]);
    // Beside those that run: the next addresses are taken.
    let second = clones(&lab, &id, "2", &["--lazy"]);
    let more = each(&lab, &second, 3..=4);
    let programs: Vec<u32> = seen.iter().chain(&more).map(|(_, program)| program.pid()).collect();
    assert!((1..programs.len()).all(|at| !programs[..at].contains(&programs[at])), "{programs:?}");
    more[0].0.run(["kill"]).expect_success();
    assert!(more[0].1.wait_ended(DEADLINE) && !more[1].1.wait_ended(Duration::ZERO));
    first.expect_ok();
    // The status of the first one that did not end well, here by SIGKILL.
    second.expect_code(128 + 9);
}

#[test]
fn either_all_clones_run_or_none() {
    const LISTENS: &str = "\
import socket, time
listener = socket.create_server(('127.0.0.1', 0))
print('ready', flush=True)
time.sleep(1000)
";
    let lab = Lab::new();
    let running = lab.launch(["python3", "-c", LISTENS]);
    running.wait_ready();
    let id = lab.checkpoint_kill(running);
    // There is one such port.
    let outcome = lab.run(["restart", &id, "--clones", "3", "--detach"]);
    assert_eq!((outcome.code(), &outcome.stdout[..]), (4, ""), "{outcome}");
    assert!(outcome.stderr.contains("127.0.0.1"), "{outcome}");
    wait_all_ended(&lab.processes("python3"), DEADLINE);
}

#[test]
fn a_damaged_page_is_named_before_any_clone_is_made() {
    let lab = Lab::new();
    let id = heap(&lab);
    for pack in fs::read_dir(lab.store().join("packs")).expect("the store's packs") {
        let path = pack.expect("an entry").path();
        let file = fs::OpenOptions::new().write(true).open(&path).expect("a pack");
        let len = file.metadata().expect("a file").len();
        file.write_all_at(b"damaged", len / 2 / 4096 * 4096).expect("a write");
    }
    let outcome = lab.run(["restart", &id, "--clones", "2", "--detach"]);
    assert_eq!(outcome.code(), 5, "{outcome}");
    assert!(outcome.stderr.contains("damaged") && outcome.stderr.contains("stasis verify"), "{outcome}");
}

/// Twice the program, both of which find everything as it was.
#[track_caller]
fn twice(name: &str) {
    let lab = Lab::new();
    let running = lab.launch([compile::program(name)]);
    running.wait_ready();
    let id = lab.checkpoint_kill(running);
    clones(&lab, &id, "2", &[]).expect_ok();
}

macro_rules! programs {
    ($($name:ident),* $(,)?) => {
        mod two_of {
            $(#[test]
            fn $name() {
                super::twice(stringify!($name));
            })*
        }
    };
}

programs! {
    allocates, brk_heap, guards, heap, huge_pages, madvise, mremap, mutexes, pipes, reserve, robust, rseq, shared_memory,
    signal_masks, sparse, stack, threads, tree,
}
