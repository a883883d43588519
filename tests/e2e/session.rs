//! A launched or restarted program stands where it would without Stasis: exit status, signals, terminal, pipes,
//! redirections, working directory.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
};

use nix::sys::signal::Signal;
use stasis_tests::{DEADLINE, Lab, Launch, Running, compile, outcome::shell_code, pseudoterminal::Pseudoterminal};

/// `tests/programs/session.c`: answers lines, signals and the end of its input.
fn session() -> [String; 1] {
    [compile::program("session").into_os_string().into_string().unwrap()]
}

/// Launches, and checkpoints and kills if `restarted`; then what is started is a restart.
#[track_caller]
fn started(lab: &Lab, restarted: bool, go: impl Fn(Launch) -> Launch) -> Running {
    let running = go(lab.prepare(session())).start();
    running.wait_ready();
    if !restarted {
        return running;
    }
    lab.checkpoint_kill(running);
    let running = go(lab.prepare_restart(["latest"])).start();
    running.signal_until_alive();
    running
}

#[test]
fn the_exit_status_passes_through_launch() {
    let lab = Lab::new();
    for code in [0, 1, 7, 255] {
        lab.launch(["sh", "-c", &format!("exit {code}")]).expect_code(code);
    }
}

#[test]
fn death_by_a_signal_passes_through_launch() {
    let lab = Lab::new();
    let status = lab.launch(["sh", "-c", "kill -TERM $$"]).wait_exit();
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
}

#[test]
fn the_exit_status_passes_through_restart() {
    let lab = Lab::new();
    let running = lab.prepare(session()).environment("SESSION_EXIT", "7").start();
    running.wait_ready();
    lab.checkpoint_kill(running);
    for _ in 0..2 {
        let restarted = lab.restart(["latest"]);
        restarted.go();
        restarted.expect_code(7);
        fs::remove_file(lab.restart_files().go).unwrap();
    }
}
