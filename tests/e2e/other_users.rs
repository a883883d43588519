//! A program that gives up root while it runs: what its checkpoint thread could do as root is given up with it. And what who
//! restarts may not do.

use std::{
    fs,
    io::{BufRead, BufReader, PipeWriter, Write, pipe},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use stasis_tests::{
    Lab, Nobody, Running, compile,
    requirement::{is_root, skip},
    workload::wait_joined,
};

/// `tests/programs/drop_root.c`, which is root until a line comes.
fn launch(lab: &Lab) -> (Running, PipeWriter) {
    for path in [lab.work().parent().unwrap().to_owned(), lab.work()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (input, keyboard) = pipe().unwrap();
    let running = lab.prepare([compile::program("drop_root"), "late".into()]).stdin(input).start();
    running.wait_line("still root");
    (running, keyboard)
}

fn give_up_root(running: &Running, keyboard: &mut PipeWriter) {
    keyboard.write_all(b"\n").unwrap();
    running.wait_ready();
}

/// /proc/PID/task/TID of the checkpoint thread.
fn checkpoint_thread(pid: u32) -> PathBuf {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let is_ours = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap() == "stasis-ckpt\n";
    tasks.into_iter().find(is_ours).expect("a checkpoint thread")
}

/// What the checkpoint thread has open, but for the userfaultfd: that reaches this process' own memory and nothing else.
fn open_files(pid: u32) -> Vec<PathBuf> {
    let descriptors = fs::read_dir(checkpoint_thread(pid).join("fd")).unwrap();
    let links = descriptors.map(|descriptor| fs::read_link(descriptor.unwrap().path()).unwrap());
    links.filter(|link| !link.ends_with("anon_inode:[userfaultfd]")).collect()
}

#[test]
fn nothing_that_root_connected_to_the_store_is_left() {
    let lab = Lab::new();
    let (running, mut keyboard) = launch(&lab);
    wait_joined(&lab);
    lab.checkpoint(&[]);
    let kept = open_files(running.pid());
    assert_eq!(
        kept.len(),
        3,
        "the coordinator, the store and its staging buffer, kept for the next: {kept:?}"
    );
    give_up_root(&running, &mut keyboard);
    lab.checkpoint(&[]);
    let left = open_files(running.pid());
    assert_eq!(left.len(), 1, "the coordinator alone: {left:?}");
    running.expect_ok();
}

#[test]
fn a_checkpoint_after_that_comes_back_though_one_was_taken_before() {
    let lab = Lab::new();
    let (running, mut keyboard) = launch(&lab);
    wait_joined(&lab);
    lab.checkpoint(&[]);
    give_up_root(&running, &mut keyboard);
    lab.checkpoint_kill(running);
    lab.restart(["latest"]).expect_ok();
}

#[test]
fn what_the_store_wrote_is_known_to_root_alone() {
    let lab = Lab::new();
    let (running, mut keyboard) = launch(&lab);
    give_up_root(&running, &mut keyboard);
    lab.checkpoint(&[]);
    let listed = lab.json(["list"]);
    let checkpoints = listed.as_array().or_else(|| listed["checkpoints"].as_array()).expect("a list");
    assert!(checkpoints[0]["written_bytes"].as_u64() > Some(0), "{listed:#}");
    running.expect_ok();
}

#[test]
fn a_restart_that_may_not_lower_the_nice_value_goes_on_and_says_so() {
    if !is_root() {
        return skip("only root becomes another user");
    }
    let nobody = Nobody::new(&["counter"]);
    let counter = nobody.binaries.join("counter");
    let (running, _pipes) = nobody.start(&["launch", "--", counter.to_str().unwrap(), "1000", "10"]);
    nobody.pids(&running);
    nobody.checkpoint_kill(running);
    let (errors, stderr) = pipe().unwrap();
    let nice = ["nice", "-n", "5"].map(str::to_owned).into_iter();
    let prepared = nobody.lab.native(nice.chain(nobody.command("stasis", &["restart"])));
    let running = prepared.stderr(stderr).start();
    let here = nobody.pids(&running).1;
    let mut line = String::new();
    BufReader::new(errors).read_line(&mut line).unwrap();
    assert!(line.contains("nice 0") && line.contains("RLIMIT_NICE"), "{line}");
    let stat = fs::read_to_string(format!("/proc/{here}/stat")).unwrap();
    let mut fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    assert_eq!(fields.nth(16), Some("5"), "{stat}");
    nobody.checkpoint_kill(running);
}
