//! Files that a program had open, or runs from, and that are not what they were when it is restarted: refused by
//! name, or taken by the policy that the user states.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use stasis_tests::{Lab, compile};

/// A session that has read the first two lines of a file as its input, checkpointed and killed.
fn killed_reader(lab: &Lab) -> PathBuf {
    let input = lab.work().join("input");
    fs::write(&input, "one\ntwo\n").unwrap();
    let running = lab.prepare([compile::program("session")]).stdin(File::open(&input).unwrap()).start();
    running.wait_line("input ended after 2 lines");
    lab.checkpoint_kill(running);
    input
}

#[test]
fn a_missing_file_is_refused_by_name_until_it_is_there_again() {
    let lab = Lab::new();
    let input = killed_reader(&lab);
    let away = lab.work().join("away");
    fs::rename(&input, &away).unwrap();
    lab.run(["restart"]).expect_refusal(&[input.to_str().unwrap()]);
    fs::rename(&away, &input).unwrap();
    lab.restart(["latest"]).expect_ok();
}

#[test]
fn a_missing_file_becomes_the_null_device_where_the_user_says_so() {
    let lab = Lab::new();
    let input = killed_reader(&lab);
    fs::remove_file(&input).unwrap();
    lab.restart(["--on-missing-file=null"]).expect_ok();
}

#[test]
fn a_missing_file_is_left_out_where_the_user_says_so() {
    let lab = Lab::new();
    let input = killed_reader(&lab);
    fs::remove_file(&input).unwrap();
    lab.restart(["--on-missing-file=skip"]).expect_ok();
}

#[test]
fn a_file_cut_short_is_refused_by_name_and_accepted_where_the_user_says_so() {
    let lab = Lab::new();
    let input = killed_reader(&lab);
    File::options().write(true).open(&input).unwrap().set_len(1).unwrap();
    lab.run(["restart"]).expect_refusal(&[input.to_str().unwrap()]);
    lab.restart(["--on-changed-file=accept"]).expect_ok();
}

/// Its descriptors are in place by then, at the numbers of all that `stasis restart` had open.
#[test]
fn a_lock_that_somebody_else_holds_is_refused_by_name_and_nothing_is_written() {
    let lab = Lab::new();
    let running = lab.launch([compile::program("file_locks")]);
    running.wait_ready();
    lab.checkpoint_kill(running);
    let locked = File::open(lab.work().join("exclusive")).unwrap();
    locked.try_lock_shared().unwrap();
    lab.run(["restart"]).expect_refusal(&["exclusive", "flock", "fd "]);
    drop(locked);
    lab.restart(["latest"]).expect_ok();
}

#[test]
fn a_watched_file_that_is_gone_is_refused_by_name_or_left_out_where_the_user_says_so() {
    let lab = Lab::new();
    let program = "
import ctypes, time
libc = ctypes.CDLL(None)
watches = libc.inotify_init()
for name in 'gone', 'there':
    open(name, 'w').close()
    assert libc.inotify_add_watch(watches, name.encode(), 2) > 0
print('ready', flush=True)
time.sleep(3600)";
    let running = lab.launch(["python3", "-c", program]);
    running.wait_ready();
    lab.checkpoint_kill(running);
    fs::remove_file(lab.work().join("gone")).unwrap();
    lab.run(["restart"]).expect_refusal(&["inotify", "gone", "--on-missing-file"]);
    let running = lab.restart(["--on-missing-file=skip"]);
    lab.wait_joined(&running);
    lab.run(["kill"]).expect_success();
    let _ = running.wait_exit();
}

/// A log that was rotated: what has its name now is somebody else's, and longer.
#[test]
fn another_file_that_is_accepted_is_not_cut() {
    let lab = Lab::new();
    let log = lab.work().join("log");
    let running = lab
        .prepare(["python3", "-uc", "import time\nprint('ready')\ntime.sleep(3600)"])
        .stdout(File::create(&log).unwrap())
        .start();
    running.wait_size(&log, 6);
    lab.checkpoint_kill(running);
    fs::rename(&log, lab.work().join("log.1")).unwrap();
    fs::write(&log, "what somebody else has written since").unwrap();
    lab.run(["restart"]).expect_refusal(&["log", "another file"]);
    let running = lab.restart(["--on-changed-file=accept"]);
    lab.wait_joined(&running);
    lab.run(["kill"]).expect_success();
    let _ = running.wait_exit();
    assert_eq!(fs::read_to_string(&log).unwrap(), "what somebody else has written since");
}

#[test]
fn a_program_whose_file_was_rebuilt_is_refused_by_name() {
    let lab = Lab::new();
    let program = lab.work().join("program");
    fs::copy(compile::program("counter"), &program).unwrap();
    let running = lab.launch([program.as_os_str(), "50".as_ref(), "1".as_ref()]);
    running.wait_line("step 2");
    lab.checkpoint_kill(running);

    let original = lab.work().join("original");
    fs::rename(&program, &original).unwrap();
    fs::copy(compile::program("session"), &program).unwrap();
    lab.run(["restart"]).expect_refusal(&[program.to_str().unwrap()]);
    fs::rename(&original, &program).unwrap();
    lab.restart(["latest"]).expect_ok();
}

#[test]
fn a_file_without_a_name_can_be_given_one_in_a_namespace_too() {
    let lab = Lab::new();
    let running = lab.launch([compile::program("deleted_files")]);
    running.wait_ready();
    lab.checkpoint(&[]);
    // The ids are in use, so it goes on in mounts of its own.
    let clone = lab.with_coordinator("clone.sock");
    let restarted = clone.restart(["latest"]);
    clone.wait_joined(&restarted);
    lab.run(["kill"]).expect_success();
    running.wait_exit();
    restarted.expect_ok();
}
