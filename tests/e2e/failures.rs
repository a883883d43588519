//! What fails around a program does not take it, or any committed checkpoint, down with it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use stasis_tests::{
    DEADLINE, Lab, compile,
    mount::SmallDisk,
    watch::{self, Directory},
};

/// `tests/programs/counter.c`, with so many steps and so much memory. It runs until it is told to go on.
fn counter(steps: u32, megabytes: u32) -> [OsString; 4] {
    let [steps, megabytes] = [steps, megabytes].map(|number| number.to_string().into());
    [compile::program("counter").into(), steps, megabytes, "waits".into()]
}

fn packs(lab: &Lab) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(lab.store().join("packs"))
        .expect("the store's packs")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pack"))
        .collect();
    found.sort();
    found
}

#[test]
fn the_coordinator_is_killed_and_the_program_restarts_under_a_new_one() {
    let lab = Lab::new();
    let running = lab.launch(counter(300, 16));
    running.wait_line("step 5");
    lab.checkpoint(&[]);
    let coordinator = lab.coordinator();
    coordinator.signal(Signal::SIGKILL).unwrap();
    assert!(coordinator.wait_ended(DEADLINE));
    // The program does not notice.
    let steps = running.stdout().lines().count();
    running.wait_output("another step", |text| text.lines().count() > steps + 1);
    running.signal(Signal::SIGKILL);
    running.expect_code(128 + libc::SIGKILL);

    let running = lab.restart(["latest"]);
    lab.wait_joined(&running);
    assert_ne!(lab.coordinator().pid(), coordinator.pid());
    running.expect_ok();
}

/// They would join the coordinator of the restart as soon as they look for a new one.
#[test]
fn originals_stay_outside_of_a_restart_that_is_made_where_their_coordinator_was_killed() {
    const SCRIPT: &str = "while :; do /bin/echo step; sleep 0.1; done";
    let lab = Lab::new();
    let original = lab.launch(["bash", "-c", SCRIPT]);
    original.wait_line("step");
    lab.checkpoint(&[]);
    // It would be refused where the original has looked before.
    original.signal(Signal::SIGSTOP);
    let coordinator = lab.coordinator();
    coordinator.signal(Signal::SIGKILL).unwrap();
    assert!(coordinator.wait_ended(DEADLINE));
    let restarted = lab.restart(["latest"]);
    lab.wait_joined(&restarted);
    original.signal(Signal::SIGCONT);
    // Longer than it takes them to look (preload/src/checkpoint.rs, LOOK_AGAIN).
    thread::sleep(Duration::from_millis(1500));
    let status = lab.json(["status"]);
    let processes = status["processes"].as_array().unwrap().iter();
    let here = processes.filter(|process| process["real_pid"] == original.pid()).count();
    assert_eq!(here, 0, "{status}");
    lab.checkpoint(&["--kill"]);
    restarted.expect_code(128 + libc::SIGKILL);
    assert!(!original.has_ended(), "it belongs to nobody");
    // Where it is, nobody may be restarted now; elsewhere all are.
    let elsewhere = lab.with_coordinator("another.sock");
    let restarted = elsewhere.restart(["latest"]);
    elsewhere.wait_joined(&restarted);
    elsewhere.run(["kill"]).expect_success();
    original.signal(Signal::SIGKILL);
}

#[test]
fn the_store_server_is_killed_during_checkpoints_and_all_committed_ones_restart() {
    let lab = Lab::new();
    let running = lab.launch(counter(100_000, 200));
    running.wait_line("step 5");
    let mut committed = vec![lab.checkpoint(&[])];
    // Killed at its first write of a checkpoint, its second, and so on.
    for writes in [1, 2, 4, 8] {
        let watched = Directory::watch(&lab.store().join("packs"));
        let asking = thread::spawn({
            let lab = lab.clone();
            move || lab.try_checkpoint(&[])
        });
        watch::changes(&watched, writes, DEADLINE);
        for server in lab.processes("stasis-store") {
            let _ = server.signal(Signal::SIGKILL);
            assert!(server.wait_ended(DEADLINE));
        }
        let outcome = asking.join().unwrap();
        // It may have been committed already: then it counts.
        if outcome.status.success() {
            committed.push(outcome.stdout.trim().to_owned());
        } else {
            assert!(!outcome.stderr.trim().is_empty(), "a failure without a word: {outcome}");
        }
        let steps = running.stdout().lines().count();
        running.wait_output("another step: it runs on", |text| text.lines().count() > steps + 1);
    }
    // A new server comes by itself.
    committed.push(lab.checkpoint_kill(running));
    // Newest first: a restart cuts the output back to what it was, and a file shorter than a checkpoint knew it is
    // refused.
    for id in committed.into_iter().rev() {
        let running = lab.restart([&id]);
        lab.wait_joined(&running);
        let steps = running.stdout().lines().count();
        running.wait_output("another step", |text| text.lines().count() > steps + 1);
        lab.run(["kill"]).expect_success();
        running.expect_code(128 + libc::SIGKILL);
    }
}

#[test]
fn a_full_disk_refuses_the_checkpoint_and_the_next_one_works_once_there_is_room() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.work().join("disk"), 600) else { return };
    let lab = lab.with_store(&disk.path().join("store"));
    let ballast = disk.path().join("ballast");
    let running = lab.launch(counter(300, 100));
    running.wait_line("step 5");
    // Another program has taken nearly all of the disk.
    let mut file = File::create(&ballast).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..560 {
        file.write_all(&zeros).unwrap();
    }

    lab.try_checkpoint(&[]).expect_refusal(&["full", disk.path().to_str().unwrap()]);
    running.wait_line("step 30");
    drop(file);
    fs::remove_file(&ballast).unwrap();
    let id = lab.checkpoint(&["--kill"]);
    drop(running);
    // Pages that the failed checkpoint took, and nobody has changed since, are in this one.
    lab.restart([&id]).expect_ok();
    drop(lab);
}

#[test]
fn a_damaged_store_is_refused_by_name_and_nothing_is_started() {
    let lab = Lab::new();
    let running = lab.launch(counter(100, 16));
    running.wait_line("step 5");
    let id = lab.checkpoint_kill(running);

    let damage = |mask: u8| {
        for path in packs(&lab) {
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            // A bit in each page of the first megabyte.
            for page in 0..256.min(file.metadata().unwrap().len() / 4096) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, page * 4096 + 100).unwrap();
                file.write_all_at(&[byte[0] ^ mask], page * 4096 + 100).unwrap();
            }
        }
    };
    damage(0x10);
    let outcome = lab.run(["restart", &id]).expect_refusal(&["page"]);
    let named = |text: &str| text.split(|c: char| !c.is_ascii_hexdigit()).any(|word| word.len() >= 16);
    assert!(named(&outcome.stderr), "the hash is not named: {outcome}");
    // The same bits again: what was refused was the damage.
    damage(0x10);
    lab.restart([&id]).expect_ok();
}

#[test]
fn a_store_that_cannot_be_read_is_refused_by_name() {
    let lab = Lab::new();
    let running = lab.launch(counter(100, 1));
    running.wait_line("step 5");
    let id = lab.checkpoint_kill(running);
    for server in lab.processes("stasis-store") {
        let _ = server.signal(Signal::SIGKILL);
        assert!(server.wait_ended(DEADLINE));
    }
    for pack in packs(&lab) {
        fs::remove_file(pack).unwrap();
    }
    lab.run(["restart", &id]).expect_refusal(&["pack"]);
}

/// By the exit code of stores, as all that is asked of one; the program runs on.
#[test]
fn a_checkpoint_into_what_is_no_store_fails_as_one_that_cannot_be_used() {
    let lab = Lab::new();
    let running = lab.launch(counter(300, 1));
    // The coordinator starts one that nobody has asked for yet, once.
    let end = Instant::now() + DEADLINE;
    while lab.processes("stasis-store").is_empty() {
        assert!(Instant::now() < end, "no store server comes by itself");
    }
    lab.checkpoint(&[]);
    lab.run(["store", "--stop"]).expect_success();
    fs::remove_dir_all(lab.store()).unwrap();
    fs::write(lab.store(), "a file").unwrap();
    let refused = lab.try_checkpoint(&[]).expect_refusal(&["the store ", &lab.store().display().to_string()]);
    assert_eq!(refused.code(), 5, "{refused}");
    fs::remove_file(lab.store()).unwrap();
    lab.checkpoint(&[]);
    running.expect_ok();
}

#[test]
fn a_killed_program_ends_its_checkpoint_with_its_name_and_the_coordinator_lives() {
    let lab = Lab::new();
    let running = lab.launch(counter(100_000, 200));
    running.wait_line("step 5");
    lab.checkpoint(&[]);
    let watched = Directory::watch(&lab.store().join("packs"));
    let asking = thread::spawn({
        let lab = lab.clone();
        move || lab.try_checkpoint(&[])
    });
    watch::changes(&watched, 1, DEADLINE);
    let pid = running.pid();
    running.signal(Signal::SIGKILL);
    let outcome = asking.join().unwrap();
    // Its pages may all have been handed over by then.
    if !outcome.status.success() {
        outcome.expect_refusal(&[&pid.to_string()]);
    }
    running.expect_code(128 + libc::SIGKILL);
    let again = lab.launch(counter(100, 1));
    again.wait_line("step 2");
    lab.checkpoint(&[]);
    again.expect_ok();
}

#[test]
fn everything_in_the_background_goes_away_when_idle() {
    let lab = Lab::new();
    let running = lab.launch(counter(300, 1));
    running.wait_line("step 1");
    lab.checkpoint(&[]);
    let background = || {
        let mut found = lab.processes("stasis-store");
        found.extend(lab.processes("stasis"));
        found
    };
    let started = background();
    assert!(started.len() >= 2, "a coordinator and a store server");
    running.expect_ok();
    // The store server stays for 60 s after its last client (stasis-store --help), the coordinator for 10.
    stasis_tests::lab::wait_all_ended(&started, Duration::from_secs(90));
}

#[test]
fn why_the_last_checkpoint_failed_is_told_until_one_is_taken_again() {
    let lab = Lab::new();
    let running = lab.launch(counter(300, 1));
    running.wait_ready();
    assert!(lab.json(["status"])["last_failure"].is_null());
    // There was none when it was launched.
    fs::write(lab.store(), "").unwrap();
    lab.try_checkpoint(&[]).expect_refusal(&["cannot be used as a store"]);
    let failure = &lab.json(["status"])["last_failure"];
    assert!(failure["reason"].as_str().unwrap().contains("cannot be used as a store"), "{failure:#}");
    let reason = failure["reason"].as_str().unwrap();
    assert_eq!(reason.matches("File exists").count(), 1, "{reason}");
    assert!(failure["failed_us"].as_u64() > Some(0), "{failure:#}");
    let status = lab.run(["status"]).expect_success().stdout;
    let line = status.lines().find(|line| line.starts_with("last failed")).expect("a line that tells of it");
    assert!(line.contains(failure["failed"].as_str().unwrap()) && line.contains("store"), "{status}");

    fs::remove_file(lab.store()).unwrap();
    lab.checkpoint(&[]);
    assert!(lab.json(["status"])["last_failure"].is_null());
    running.expect_ok();
}

#[test]
fn a_store_whose_server_runs_says_so_at_once() {
    let lab = Lab::new();
    let started = lab.json(["store"])["server_pid"].take();
    assert!(started.as_u64().is_some(), "{started}");
    let again = lab.run(["store"]).expect_success();
    assert_eq!(again.stdout, format!("store server {started} of {}\n", lab.store().display()));
    lab.run(["store", "--idle-seconds", "5"]).expect_refusal(&[&format!("pid {started}"), "runs already"]);
}
