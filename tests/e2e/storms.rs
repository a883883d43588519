//! Programs that make, execute and end processes, threads, libraries and sockets all the time, while checkpoints are taken
//! at random moments: each of them is taken or refused by name, what the program does comes out right, and what was
//! taken comes back and does.

use std::{
    collections::hash_map::RandomState,
    fs,
    hash::{BuildHasher, Hasher},
    os::unix::fs::PermissionsExt,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use stasis_tests::{
    Lab, Launch, Running, Workload, compile::program, process::ProcessHandle, requirement::is_root,
    running::Files, skip,
};

const CHECKPOINTS: usize = 50;

/// A number below `limit`, another one each time.
fn random(limit: usize) -> usize {
    (RandomState::new().build_hasher().finish() % limit as u64) as usize
}

/// Waits for a moment that has nothing to do with what the program does.
fn some_time() {
    thread::sleep(Duration::from_micros(random(20_000) as u64));
}

/// What a program may be refused for that is met in the middle of something.
const PASSING: [&str; 4] = [
    // Its parent waits for it.
    "has the memory of pid",
    "changes its user no more",
    "ended, or executed another program",
    "joined while the others stood still",
];

/// Takes so many checkpoints while the program runs; those that were taken.
#[track_caller]
fn checkpoints(lab: &Lab, running: &Running, count: usize) -> Vec<String> {
    running.wait_ready();
    let mut taken = Vec::new();
    let mut refused = Vec::new();
    for _ in 0..count {
        some_time();
        let outcome = lab.try_checkpoint(&[]);
        if outcome.status.success() {
            taken.push(outcome.stdout.trim().to_owned());
        } else {
            assert!(PASSING.iter().any(|reason| outcome.stderr.contains(reason)), "{outcome}");
            refused.push(outcome.stderr);
        }
    }
    assert!(taken.len() > count / 2, "only {} were taken: {refused:#?}", taken.len());
    // Each is there, and none that was refused.
    let listed = lab.json(["list"]);
    let listed = listed.as_array().or_else(|| listed["checkpoints"].as_array()).expect("a list");
    assert_eq!(listed.len(), taken.len(), "{listed:?}");
    taken
}

/// Each of the checkpoints comes to the right end.
#[track_caller]
fn all_come_back(lab: &Lab, checkpoints: &[String], files: &Files) {
    for checkpoint in checkpoints {
        // What the one before has written to it.
        fs::write(&files.stdout, "ready\n").unwrap();
        lab.restart([checkpoint]).expect_ok();
    }
}

/// The program comes to the right end, and so do `restarts` of its checkpoints, the last one among them.
#[track_caller]
fn survives(launch: impl FnOnce(&Lab) -> Launch, count: usize, restarts: usize) {
    let lab = Lab::new();
    let running = launch(&lab).start();
    let mut taken = checkpoints(&lab, &running, count);
    let files = running.files().clone();
    running.expect_ok();
    while taken.len() > restarts {
        taken.remove(random(taken.len() - 1));
    }
    all_come_back(&lab, &taken, &files);
}

#[test]
fn a_storm_notices_natively_what_it_loses() {
    for program in ["storm", "library_churn", "pair_churn", "many", "lone_parent"] {
        Workload { program, arguments: &[] }.notices_what_is_lost();
    }
}

#[test]
fn each_checkpoint_of_a_storm_of_children_comes_back() {
    survives(|lab| lab.prepare([program("storm")]), CHECKPOINTS, CHECKPOINTS);
}

/// One that is another user than when it was asked may not connect to the store any more.
#[test]
fn a_storm_of_children_that_give_up_root() {
    if !is_root() {
        return skip("only root can be given up");
    }
    let launch = |lab: &Lab| {
        // Who has given it up must still reach its working directory.
        for directory in [lab.work().parent().expect("the lab's directory"), &lab.work()] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
                .expect("the lab's own directory");
        }
        lab.prepare([program("storm").as_os_str(), "users".as_ref()])
    };
    survives(launch, 10, 10);
}

/// What is made while a process that was alone is being stored is not of its checkpoint.
#[test]
fn a_process_that_is_alone_in_the_checkpoint_and_has_a_child_a_moment_later() {
    survives(|lab| lab.prepare([program("lone_parent")]), 20, 20);
}

#[test]
fn a_shell_that_executes_programs_in_a_loop() {
    const LOOP: &str = r#"
echo ready
i=0; sum=0
while [ $i -lt 100 ] || [ ! -e "$STASIS_TEST_GO" ]; do
    i=$((i + 1))
    /bin/true || echo "FAIL: true, $?"
    case $(date +%Y) in 20??) ;; *) echo "FAIL: date" ;; esac
    (exit 3); [ $? = 3 ] || echo "FAIL: a subshell"
    sum=$((sum + $(echo $i | cat)))
done
[ $sum = $((i * (i + 1) / 2)) ] || { echo "FAIL: the sum is $sum"; exit 1; }
echo ok
"#;
    survives(|lab| lab.prepare(["bash", "-c", LOOP]), CHECKPOINTS, 5);
}

#[test]
fn a_program_that_executes_itself_in_a_loop() {
    survives(|lab| lab.prepare([program("exec_itself")]), CHECKPOINTS, 5);
}

#[test]
fn threads_that_come_and_go() {
    survives(|lab| lab.prepare([program("thread_churn")]), CHECKPOINTS, 5);
}

#[test]
fn libraries_that_are_loaded_and_unloaded() {
    survives(|lab| lab.prepare([program("library_churn")]), CHECKPOINTS, 5);
}

#[test]
fn pairs_of_sockets_that_are_made_and_closed() {
    survives(|lab| lab.prepare([program("pair_churn")]), CHECKPOINTS, 5);
}

#[test]
fn five_hundred_processes_in_one_computation() {
    let lab = Lab::new();
    let running = lab.launch([program("many")]);
    running.wait_ready();
    lab.checkpoint(&[]);
    assert_eq!(lab.json(["status"])["processes"].as_array().map(Vec::len), Some(500));
    lab.checkpoint_kill(running);
    lab.restart(["latest"]).expect_ok();
}

/// Eight children write to 2 MiB each all the time, and their parent waits for them.
const WRITERS: &str = "
import os, time
for child in range(8):
    if os.fork() == 0:
        data = bytearray(os.urandom(1 << 20) * 2)
        while True:
            for at in range(0, len(data), 4096): data[at] = (data[at] + 1) % 256
            time.sleep(0.01)
print('ready', flush=True)
for child in range(8):
    assert os.wait()[1] == 9
print('ok', flush=True)
";

/// The pids here of the processes but the first.
fn children(lab: &Lab) -> Vec<u32> {
    let status = lab.json(["status"]);
    let processes = status["processes"].as_array().expect("a list of processes");
    let first = processes.iter().filter_map(|process| process["pid"].as_u64()).min();
    let others = processes.iter().filter(|process| process["pid"].as_u64() != first);
    others.map(|process| process["real_pid"].as_u64().expect("a pid") as u32).collect()
}

/// The checkpoint is one of all others, or is refused and names who is missing; they run on, and are there at the next one.
#[test]
fn processes_that_are_killed_while_a_checkpoint_is_taken() {
    let lab = Lab::new();
    let running = lab.launch(["python3", "-c", WRITERS]);
    running.wait_ready();
    lab.checkpoint(&[]);
    let mut taken = 1;
    for killed in 1..=6 {
        let all = children(&lab);
        let victim = ProcessHandle::open(all[random(all.len())]).expect("it runs");
        let asking = thread::spawn({
            let lab = lab.clone();
            move || lab.try_checkpoint(&[])
        });
        thread::sleep(Duration::from_micros(random(40_000) as u64));
        victim.signal(Signal::SIGKILL).unwrap();
        let outcome = asking.join().unwrap();
        if outcome.status.success() {
            taken += 1;
        } else {
            outcome.expect_refusal(&[&victim.pid().to_string()]);
        }
        assert!(victim.wait_ended(stasis_tests::DEADLINE));
        assert_eq!(children(&lab).len(), 8 - killed);
        lab.checkpoint(&[]);
        taken += 1;
    }
    let listed = lab.json(["list"]);
    let listed = listed.as_array().or_else(|| listed["checkpoints"].as_array()).expect("a list");
    assert_eq!(listed.len(), taken, "{listed:?}");
    lab.checkpoint_kill(running);
    let running = lab.restart(["latest"]);
    lab.wait_joined(&running);
    lab.checkpoint(&[]);
    let left = children(&lab);
    assert_eq!(left.len(), 2);
    for pid in left {
        ProcessHandle::open(pid).and_then(|child| child.signal(Signal::SIGKILL)).expect("it runs");
    }
    running.expect_ok();
}
