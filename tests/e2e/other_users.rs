//! A program that gives up root while it runs: what its checkpoint thread could do as root is given up with it.

use std::{
    fs,
    io::{PipeWriter, Write, pipe},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use stasis_tests::{Lab, Running, compile, workload::wait_joined};

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
    assert_eq!(open_files(running.pid()).len(), 2, "the coordinator and the store, kept for the next");
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
