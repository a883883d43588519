//! Checkpoints and restarts of computations of several processes.

use std::{fs, thread};

use nix::sys::signal::Signal;
use stasis_tests::{DEADLINE, Lab, Workload, lab::wait_all_ended, skip};

const TREE: Workload = Workload { program: "tree", arguments: &[] };

#[test]
fn a_tree_notices_natively_what_it_loses() {
    TREE.notices_what_is_lost();
}

#[test]
fn a_tree_goes_on_after_checkpoints() {
    TREE.goes_on_after_checkpoints();
}

#[test]
fn a_tree_comes_back_after_kill_and_restart() {
    TREE.comes_back(1);
}

#[test]
fn a_tree_comes_back_from_the_second_generation() {
    TREE.comes_back(2);
}

const CHILDREN: Workload = Workload { program: "children", arguments: &[] };

#[test]
fn children_that_execute_nothing_notice_natively_what_they_lose() {
    CHILDREN.notices_what_is_lost();
}

#[test]
fn children_that_execute_nothing_go_on_after_checkpoints() {
    CHILDREN.goes_on_after_checkpoints();
}

#[test]
fn children_that_execute_nothing_come_back_after_kill_and_restart() {
    CHILDREN.comes_back(1);
}

#[test]
fn children_that_execute_nothing_come_back_from_the_second_generation() {
    CHILDREN.comes_back(2);
}

/// Nobody but the list of births knows of it, and its computation goes on in it.
#[test]
fn a_daemon_that_executes_nothing_is_a_computation_when_all_others_have_ended() {
    const DAEMON: &str = "
import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
with open('ticks', 'w') as ticks:
    for tick in range(100000):
        ticks.write(f'{tick}\\n')
        ticks.flush()
        time.sleep(0.001)
";
    let lab = Lab::new();
    lab.launch(["python3", "-c", DAEMON]).expect_code(0);
    let ticks = lab.work().join("ticks");
    while fs::metadata(&ticks).map_or(0, |ticks| ticks.len()) < 100 {
        thread::yield_now();
    }
    let status = lab.json(["status"]);
    assert_eq!(status["processes"].as_array().unwrap().len(), 1, "{status}");
    lab.checkpoint(&["--kill"]);
    let size = fs::metadata(&ticks).unwrap().len();
    let restarted = lab.restart(["latest"]);
    restarted.wait_size(&ticks, size + 100);
    lab.run(["kill"]).expect_success();
    let _ = restarted.wait_exit();
    let lines = fs::read_to_string(&ticks).unwrap();
    let numbers: Vec<usize> = lines.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len()), "lines are missing or there twice");
}

/// A pipeline between parts of a script, with a job in the background, writing to a file.
const SCRIPT: &str = r#"
(for i in $(seq 1 40); do echo $i; sleep 0.05; done) | while read n; do echo "got $n"; done > lines &
jobs=$!
sleep 1000 &
sleeper=$!
until [ -s lines ]; do sleep 0.05; done
echo ready
wait $jobs
kill $sleeper
wait $sleeper
echo "slept $?"
echo ok
"#;

#[test]
fn a_script_with_a_pipeline_and_jobs_loses_no_line() {
    let lab = Lab::new();
    let running = lab.launch(["bash", "-c", SCRIPT]);
    running.wait_ready();
    lab.checkpoint_kill(running);
    let running = lab.restart(["latest"]);
    lab.wait_joined(&running);
    lab.checkpoint_kill(running);
    lab.restart(["latest"]).expect_ok();
    let lines = fs::read_to_string(lab.work().join("lines")).unwrap();
    let expected: String = (1..=40).map(|number| format!("got {number}\n")).collect();
    assert_eq!(lines, expected);
}

#[test]
fn the_second_of_two_restarts_at_once_has_its_own_namespace() {
    let lab = Lab::new();
    let running = TREE.launch(&lab);
    running.wait_ready();
    lab.checkpoint(&[]);
    let clone = lab.with_coordinator("clone.sock");
    let restarted = clone.restart(["latest"]);
    // A checkpoint waits for all of them.
    clone.wait_joined(&restarted);
    clone.checkpoint(&[]);
    let status = clone.json(["status"]);
    let processes = status["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 9, "{status}");
    assert!(processes.iter().all(|process| process["pid"] != process["real_pid"]), "{status}");
    restarted.expect_ok();
}

#[test]
fn one_in_a_namespace_of_its_own_is_checkpointed_when_its_coordinator_was_replaced() {
    let lab = Lab::new();
    let running = TREE.launch(&lab);
    running.wait_ready();
    lab.checkpoint(&[]);
    let clone = lab.with_coordinator("clone.sock");
    let restarted = clone.restart(["latest"]);
    clone.wait_joined(&restarted);
    // It waits for all of them.
    clone.checkpoint(&[]);
    for stop in [&["coordinator", "--stop"][..], &[]] {
        if stop.is_empty() {
            let coordinator = clone.coordinator();
            coordinator.signal(Signal::SIGKILL).unwrap();
            wait_all_ended(&[coordinator], DEADLINE);
        } else {
            clone.run(stop).expect_success();
        }
        clone.run(["coordinator"]).expect_success();
        clone.wait_joined(&restarted);
        clone.checkpoint(&[]);
    }
    restarted.expect_ok();
}

#[test]
fn programs_that_are_to_have_coordinators_of_their_own_do_when_all_are_launched_at_once() {
    let lab = Lab::new();
    let launches: Vec<_> = (0..4)
        .map(|_| {
            let lab = lab.clone();
            thread::spawn(move || {
                let outcome = lab.run(["--json", "launch", "--new", "--detach", "--", "sleep", "1000"]);
                serde_json::from_str::<serde_json::Value>(&outcome.expect_success().stdout).unwrap()
            })
        })
        .collect();
    let launched: Vec<_> = launches.into_iter().map(|launch| launch.join().unwrap()).collect();
    let mut addresses: Vec<&str> =
        launched.iter().map(|one| one["address"].as_str().expect("an address")).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 4, "{launched:?}");
    for address in addresses {
        let status = lab.json(["status", "--coord", address]);
        assert_eq!(status["processes"].as_array().map(Vec::len), Some(1), "{status}");
        lab.run(["kill", "--coord", address]).expect_success();
    }
}

#[test]
fn a_restart_with_a_coordinator_of_its_own_leaves_the_original_alone() {
    let lab = Lab::new();
    let running = TREE.launch(&lab);
    running.wait_ready();
    let id = lab.checkpoint(&[]);
    let restarted = lab.json(["restart", &id, "--new", "--detach"]);
    let coordinator = restarted["coordinator"].as_str().expect("an address");
    assert_eq!(lab.json(["status", "--coord", coordinator])["processes"].as_array().map(Vec::len), Some(9));
    assert_eq!(lab.json(["status"])["processes"].as_array().map(Vec::len), Some(9));
    lab.run(["kill", "--coord", coordinator]).expect_success();
    running.expect_ok();
}

/// What the processes of a computation have of anonymous memory, in KiB, each page that several share counted once in all.
#[track_caller]
fn anonymous_kib(lab: &Lab) -> u64 {
    let status = lab.json(["status"]);
    let processes = status["processes"].as_array().expect("a list of processes");
    let proportional = |process: &serde_json::Value| {
        let path = format!("/proc/{}/smaps_rollup", process["real_pid"]);
        let rollup = fs::read_to_string(path).expect("a process that runs");
        let line =
            rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).expect("its anonymous memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    processes.iter().map(proportional).sum()
}

/// A server that forks its workers when it has read its data has one copy of them, and no checkpoint makes more.
#[test]
fn what_forked_processes_share_stays_shared() {
    const FORKS: &str = "
import os, time
data = os.urandom(1 << 20) * 64
ends = os.pipe()
for child in range(4):
    if os.fork() == 0: break
else:
    child = None
if child is None:
    for child in range(4): os.read(ends[0], 1)
    print('ready', flush=True)
else:
    os.write(ends[1], b'x')
time.sleep(1000)
";
    let lab = Lab::new();
    let running = lab.launch(["python3", "-c", FORKS]);
    running.wait_ready();
    let before = anonymous_kib(&lab);
    assert!((64 << 10..128 << 10).contains(&before), "{before} KiB");
    for _ in 0..3 {
        lab.checkpoint(&[]);
    }
    // What each has written meanwhile, and its library for itself; not 64 MiB for each.
    let after = anonymous_kib(&lab);
    assert!(after < before + (32 << 10), "{before} KiB, then {after}");
    lab.run(["kill"]).expect_success();
    running.wait_exit();
}

/// The slices of time that a process' threads ask for in nanoseconds (sched_getattr(2), since Linux 6.12): those of the checkpoint
/// thread, and of all others.
fn slices(pid: u32) -> (Vec<u64>, Vec<u64>) {
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let tid: i32 = task.file_name().to_str().unwrap().parse().unwrap();
        // SAFETY: plain numbers.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::sched_attr>();
        // SAFETY: sched_getattr(2) fills in at most `size` bytes of the structure.
        let asked = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attributes, size, 0) };
        assert_eq!(asked, 0, "thread {tid}");
        let is_own = fs::read_to_string(task.path().join("comm")).unwrap() == "stasis-ckpt\n";
        if is_own { &mut own } else { &mut others }.push(attributes.sched_runtime);
    }
    (own, others)
}

/// Else each round of a checkpoint takes as long as all that compute have their turn.
#[test]
fn those_who_are_waited_for_take_short_turns_and_nobody_else_does() {
    const SHORT: u64 = 100_000;
    let (_, usual) = slices(std::process::id());
    if usual[0] == 0 {
        return skip("slices of time that threads ask for (Linux 6.12)");
    }
    let lab = Lab::new();
    let mut running = lab.launch(["sh", "-c", "sleep 1000 & sleep 1000; :"]);
    for _ in 0..2 {
        lab.wait_joined(&running);
        while lab.json(["status"])["processes"].as_array().unwrap().len() < 3 {
            assert!(!running.has_ended());
        }
        lab.checkpoint(&[]);
        for process in lab.json(["status"])["processes"].as_array().unwrap() {
            let (own, others) = slices(process["real_pid"].as_u64().unwrap() as u32);
            assert_eq!(own, [SHORT], "{process}");
            assert!(others.iter().all(|slice| *slice == usual[0]), "{others:?} of {process}");
        }
        let served = lab.processes("stasis-store").into_iter().chain([lab.coordinator()]);
        for server in served {
            let (_, of_server) = slices(server.pid());
            assert!(of_server.iter().all(|slice| *slice == SHORT), "{of_server:?} of {}", server.comm());
        }
        lab.checkpoint_kill(running);
        running = lab.restart(["latest"]);
    }
}
