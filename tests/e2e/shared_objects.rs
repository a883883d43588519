//! Objects that processes share by name or id: what a restart finds of them, and what it leaves to others.

use std::{fs, io::Read, path::PathBuf, thread, time::Duration};

use stasis_tests::{Lab, Nobody, Running, Workload, requirement::is_root, skip};

const MAPPED_FILE: Workload = Workload { program: "mapped_file", arguments: &[] };

const QUEUE_COUNTS: Workload = Workload { program: "queue_counts", arguments: &[] };

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

/// Twice, a program runs on after its checkpoint, is killed and restarted, which `look` looks at; then it finds what it had.
#[track_caller]
fn goes_back(lab: &Lab, mut running: Running, look: impl Fn()) {
    running.wait_ready();
    for _ in 0..2 {
        lab.checkpoint(&[]);
        thread::sleep(Duration::from_millis(50));
        lab.run(["kill"]).expect_success();
        running.wait_exit();
        running = lab.restart(["latest"]);
        lab.wait_joined(&running);
        look();
    }
    running.expect_ok();
}

#[test]
fn shared_memory_goes_back_to_the_checkpoint() {
    let (lab, name) = (Lab::new(), Name::new("back"));
    goes_back(&lab, MAPPED_FILE.launch_with(&lab, &[name.path()]), || {});
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
    goes_back(&lab, MAPPED_FILE.launch(&lab), || {});
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

/// Here, where its ids are free again: what the original left is rolled back.
#[test]
fn system_v_objects_and_message_queues_go_back_to_the_checkpoint() {
    let lab = Lab::new();
    goes_back(&lab, QUEUE_COUNTS.launch(&lab), || {
        let process = &lab.json(["status"])["processes"][0];
        assert_eq!(process["pid"], process["real_pid"], "in no namespace: {process}");
    });
}

#[test]
fn beside_the_original_a_restart_has_system_v_objects_and_message_queues_of_its_own() {
    let lab = Lab::new();
    let original = QUEUE_COUNTS.launch(&lab);
    original.wait_ready();
    lab.checkpoint(&[]);
    let (one, two) = (lab.with_coordinator("one.sock"), lab.with_coordinator("two.sock"));
    let copies = [one.restart(["latest"]), two.restart(["latest"])];
    one.wait_joined(&copies[0]);
    // Of the second generation, from within the namespace.
    one.checkpoint(&[]);
    two.wait_joined(&copies[1]);
    thread::sleep(Duration::from_millis(50));
    for copy in copies {
        copy.expect_ok();
    }
    original.expect_ok();
}

/// Whose ids are to be had in a user namespace only.
#[test]
fn without_privileges_system_v_objects_and_message_queues_come_back() {
    if !is_root() {
        return skip("only root becomes another user");
    }
    let nobody = Nobody::new(&["queue_counts"]);
    let program = nobody.binaries.join("queue_counts");
    let (mut running, pipes) = nobody.start(&["launch", "--", program.to_str().unwrap()]);
    let go = running.files().go.clone();
    // All are kept, or the program would be ended by SIGPIPE.
    let mut outputs = Vec::from(pipes);
    outputs[0].read_exact(&mut [0; 6]).unwrap();
    for _ in 0..2 {
        nobody.checkpoint_kill(running);
        let pipes;
        (running, pipes) = nobody.start(&["restart"]);
        nobody.pids(&running);
        outputs.extend(pipes);
    }
    fs::File::create(&go).unwrap();
    running.expect_code(0);
    let mut last = String::new();
    let stdout = outputs.len() - 2;
    outputs[stdout].read_to_string(&mut last).unwrap();
    assert_eq!(last, "ok\n");
}

/// Its id is 0, as of what the first program of a container makes.
#[test]
fn the_first_system_v_segment_of_a_namespace_comes_back() {
    if !is_root() {
        return skip("an IPC namespace without a user namespace takes root");
    }
    // SAFETY: no memory is touched; this thread alone starts what this test is of.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWIPC) }, 0, "{}", std::io::Error::last_os_error());
    Workload { program: "sysv_shm", arguments: &[] }.comes_back(2);
}
