//! Checkpoints and restarts of computations of several processes.

use std::fs;

use stasis_tests::{Lab, Workload};

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
