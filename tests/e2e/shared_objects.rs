//! Objects that processes share by name or id: what a restart finds of them, and what it leaves to others.

use std::{fs, path::PathBuf, thread, time::Duration};

use stasis_tests::{Lab, Running, Workload};

const MAPPED_FILE: Workload = Workload { program: "mapped_file", arguments: &[] };

/// A file of this test's alone in /dev/shm.
struct Name(PathBuf);

impl Name {
    fn new(what: &str) -> Self {
        Self(PathBuf::from(format!("/dev/shm/stasis-test-{}-{what}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Lets a program run on after its checkpoint, and ends it.
fn runs_on_and_is_killed(running: Running, lab: &Lab) {
    thread::sleep(Duration::from_millis(50));
    lab.run(["kill"]).expect_success();
    running.wait_exit();
}

#[test]
fn shared_memory_goes_back_to_the_checkpoint() {
    let (lab, name) = (Lab::new(), Name::new("back"));
    let mut running = MAPPED_FILE.launch_with(&lab, &[name.path()]);
    running.wait_ready();
    for _ in 0..2 {
        lab.checkpoint(&[]);
        runs_on_and_is_killed(running, &lab);
        running = lab.restart(["latest"]);
        lab.wait_joined(&running);
    }
    running.expect_ok();
}

#[test]
fn shared_memory_that_is_gone_is_made_again() {
    let (lab, name) = (Lab::new(), Name::new("gone"));
    let mut running = MAPPED_FILE.launch_with(&lab, &[name.path()]);
    running.wait_ready();
    for _ in 0..2 {
        lab.checkpoint_kill(running);
        fs::remove_file(&name.0).unwrap();
        running = lab.restart(["latest"]);
        lab.wait_joined(&running);
        assert!(name.0.exists());
    }
    running.expect_ok();
}

#[test]
fn a_file_mapped_shared_goes_back_to_the_checkpoint() {
    let lab = Lab::new();
    let mut running = MAPPED_FILE.launch(&lab);
    running.wait_ready();
    for _ in 0..2 {
        lab.checkpoint(&[]);
        runs_on_and_is_killed(running, &lab);
        running = lab.restart(["latest"]);
        lab.wait_joined(&running);
    }
    running.expect_ok();
}

#[test]
fn beside_the_original_a_restart_has_shared_memory_of_its_own() {
    let (lab, name) = (Lab::new(), Name::new("beside"));
    let original = MAPPED_FILE.launch_with(&lab, &[name.path()]);
    original.wait_ready();
    lab.checkpoint(&[]);
    let clone = lab.with_coordinator("clone.sock");
    let said = lab.work().join("said");
    let copy = clone.prepare_restart(["latest"]).stderr(fs::File::create(&said).unwrap()).start();
    clone.wait_joined(&copy);
    let said = fs::read_to_string(&said).unwrap();
    assert!(said.contains(name.path()) && said.contains("in use"), "{said}");
    // Each counts by itself: both notice if they have one counter.
    copy.go();
    copy.expect_ok();
    original.expect_ok();
}
