//! What a program touches first after a restart comes first at the next one.

use std::fs;

use stasis_tests::{Lab, Running};

/// A program with 64 MiB. Told so, it reads a tenth of their pages, at random but always the same; then it waits until
/// what told it so is gone.
const TOUCHES: &str = "\
import hashlib, os, random, time
heap = os.urandom(64 << 20)
pages = random.Random(5).sample(range(len(heap) >> 12), len(heap) >> 12)[:len(heap) // 40960]
go = os.environ['STASIS_TEST_GO']
touch = lambda: hashlib.sha256(bytes(heap[page << 12] for page in pages)).hexdigest()
expected = touch()
print('ready', flush=True)
while True:
    while not os.path.exists(go):
        time.sleep(0.01)
    found = touch()
    print('touched' if found == expected else 'FAIL', flush=True)
    while os.path.exists(go):
        time.sleep(0.01)
";

/// Pages that the program is known to read.
const READ: u64 = (64 << 20) / 4096 / 10;

/// Restarts it so that nothing comes but what it touches and what is known, and has it read; how often it waited for the
/// pager meanwhile.
#[track_caller]
fn faults(lab: &Lab, id: &str) -> (Running, u64) {
    let restarted = lab.prepare_restart([id, "--lazy"]).environment("STASIS_DISABLE", "prefetch").start();
    lab.wait_joined(&restarted);
    // Where the program waits for its go, what is known of it arrives before it reads: as fast as the machine is busy.
    let number = |memory: &serde_json::Value, key: &str| {
        memory[key].as_u64().unwrap_or_else(|| panic!("{key} in {memory}"))
    };
    let mut left = u64::MAX;
    loop {
        let now = number(&lab.memory(), "left");
        if now == left {
            break;
        }
        left = now;
    }
    // What an earlier restart has written there; this one writes behind a gap.
    fs::write(&restarted.files().stdout, "").expect("its output");
    restarted.go();
    restarted.wait_output("the line `touched`", |output| output.ends_with("touched\n"));
    fs::remove_file(&restarted.files().go).expect("its go");
    let faults = number(&lab.memory(), "faults");
    (restarted, faults)
}

#[track_caller]
fn end(lab: &Lab, running: Running) {
    lab.run(["kill"]).expect_success();
    let _ = running.wait_exit();
    // What was learnt is kept when the pager has ended; it ends when the program has.
    let pagers = lab.processes("stasis-pager");
    stasis_tests::lab::wait_all_ended(&pagers, stasis_tests::DEADLINE);
}

#[test]
fn the_second_restart_waits_for_a_tenth_of_the_pages_and_so_do_those_of_later_checkpoints() {
    let lab = Lab::new();
    let running = lab.launch(["python3", "-c", TOUCHES]);
    running.wait_ready();
    let id = lab.checkpoint_kill(running);
    let (first, faults_first) = faults(&lab, &id);
    end(&lab, first);
    assert!(faults_first > READ, "{faults_first}");
    let (second, faults_second) = faults(&lab, &id);
    assert!(faults_second * 10 <= faults_first, "{faults_first}, then {faults_second}");
    let later = lab.checkpoint(&[]);
    end(&lab, second);
    let (third, faults_third) = faults(&lab, &later);
    assert!(faults_third * 10 <= faults_first, "{faults_first}, then {faults_third} from a later one");
    end(&lab, third);
    // What is known of a checkpoint outlives it for as long as one is left that was taken after it.
    lab.run(["prune", &id]).expect_success();
    let (fourth, faults_fourth) = faults(&lab, &later);
    assert!(faults_fourth * 10 <= faults_first, "{faults_first}, then {faults_fourth} when it was pruned");
    end(&lab, fourth);
}
