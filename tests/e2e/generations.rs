//! Checkpoints of restarted programs, and many restarts of one checkpoint.

use std::{ffi::OsString, fs::OpenOptions};

use stasis_tests::{Lab, Running, compile, slowness};

/// `tests/programs/counter.c`, whose last lines tell whether any of 16 MiB was lost.
fn counter() -> Vec<OsString> {
    vec![compile::program("counter").into(), (300 * slowness()).to_string().into(), "16".into()]
}

/// What an undisturbed run prints.
#[track_caller]
fn undisturbed(lab: &Lab) -> String {
    let running = lab.native(counter()).start();
    let files = running.files().clone();
    running.expect_ok();
    std::fs::read_to_string(files.stdout).unwrap()
}

/// Waits for the end and compares the output.
#[track_caller]
fn ends_as(running: Running, expected: &str) {
    let stdout = running.files().stdout.clone();
    running.expect_code(0);
    assert_eq!(std::fs::read_to_string(stdout).unwrap(), expected);
}

#[test]
fn five_generations_deep() {
    let lab = Lab::new();
    let expected = undisturbed(&lab);
    let mut running = lab.launch(counter());
    for generation in 1..=5 {
        running.wait_line(&format!("step {}", 10 * generation));
        lab.checkpoint_kill(running);
        running = lab.restart(["latest"]);
    }
    ends_as(running, &expected);
}

#[test]
fn five_restarts_of_one_checkpoint() {
    let lab = Lab::new();
    let expected = undisturbed(&lab);
    let running = lab.launch(counter());
    let stdout = running.files().stdout.clone();
    running.wait_line("step 250");
    let id = lab.checkpoint_kill(running);
    let length = std::fs::metadata(&stdout).unwrap().len();
    for _ in 0..5 {
        // What an earlier restart wrote must not pass for what this one writes.
        OpenOptions::new().write(true).open(&stdout).unwrap().set_len(length).unwrap();
        ends_as(lab.restart([&id]), &expected);
    }
}

#[test]
fn checkpoints_without_kill_between_and_any_of_them_restarted() {
    let lab = Lab::new();
    let expected = undisturbed(&lab);
    let running = lab.launch(counter());
    running.wait_line("step 5");
    let first = lab.checkpoint(&[]);
    running.wait_line("step 15");
    lab.checkpoint(&["--label", "fifteen"]);
    running.wait_line("step 25");
    lab.checkpoint(&[]);
    running.wait_line("step 35");
    lab.checkpoint_kill(running);
    let unique_prefix = &first[..12];
    for reference in ["latest", "latest~1", "fifteen", unique_prefix] {
        ends_as(lab.restart([reference]), &expected);
    }
}

#[test]
fn checkpoints_at_an_interval_do_not_disturb() {
    let lab = Lab::new();
    let expected = undisturbed(&lab);
    let running = lab.prepare(counter()).options(["--interval", "0.05"]).start();
    ends_as(running, &expected);
    // The program slept for 3 s: at 20 a second there are some, however busy the machine is.
    let listed = lab.json(["list"]);
    let count = listed.as_array().or_else(|| listed["checkpoints"].as_array()).expect("a list").len();
    assert!(count >= 5, "{listed:#}");
    let last = lab.restart(["latest"]);
    ends_as(last, &expected);
}

#[test]
fn a_restart_under_another_coordinator() {
    let lab = Lab::new();
    let expected = undisturbed(&lab);
    let running = lab.launch(counter());
    running.wait_line("step 10");
    lab.checkpoint_kill(running);
    let elsewhere = lab.with_coordinator("elsewhere");
    let running = elsewhere.restart(["latest"]);
    // It belongs to that one now: its checkpoints are taken there.
    elsewhere.checkpoint_kill(running);
    ends_as(lab.restart(["latest"]), &expected);
}

/// How often checkpoints are taken once the program has joined, in microseconds.
#[track_caller]
fn interval_of(lab: &Lab, running: &Running) -> Option<u64> {
    lab.wait_joined(running);
    lab.json(["status"])["interval_us"].as_u64()
}

#[test]
fn an_interval_ends_with_its_computation() {
    let lab = Lab::new();
    let sleeper = || lab.prepare(["sleep", "1000"]);
    let end = |running: Running| {
        lab.run(["kill"]).expect_success();
        running.wait_exit();
    };
    // Asked for by launch, and not by the next one at the same coordinator.
    let running = sleeper().options(["--interval", "700"]).start();
    assert_eq!(interval_of(&lab, &running), Some(700_000_000));
    let beside = sleeper().start();
    assert_eq!(interval_of(&lab, &beside), Some(700_000_000));
    end(running);
    beside.wait_exit();
    let running = sleeper().start();
    assert_eq!(interval_of(&lab, &running), None);
    lab.checkpoint_kill(running);

    // By restart, and not by the next one.
    let running = lab.prepare_restart(["latest"]).options(["--interval", "800"]).start();
    assert_eq!(interval_of(&lab, &running), Some(800_000_000));
    end(running);
    let running = lab.restart(["latest"]);
    assert_eq!(interval_of(&lab, &running), None);
    end(running);

    // The coordinator's own comes back, and takes the place of what is there.
    let mine = |seconds| lab.run(["coordinator", "--interval", seconds]).expect_success();
    mine("900");
    let running = sleeper().options(["--interval", "0"]).start();
    assert_eq!(interval_of(&lab, &running), None);
    end(running);
    let running = sleeper().start();
    assert_eq!(interval_of(&lab, &running), Some(900_000_000));
    end(running);
    let running = sleeper().options(["--interval", "700"]).start();
    assert_eq!(interval_of(&lab, &running), Some(700_000_000));
    mine("1000");
    assert_eq!(interval_of(&lab, &running), Some(1_000_000_000));
    end(running);
}
