//! The harness itself: it must notice what it is there to notice, or no other test here proves anything.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use stasis_tests::{Lab, compile, find_program, process::ProcessHandle, pseudoterminal::Pseudoterminal};

const CHECK_GO: &str = r#"
import os, sys, time
print("ready", flush=True)
while not os.path.exists(os.environ["STASIS_TEST_GO"]):
    time.sleep(0.001)
print(sys.argv[1], flush=True)
"#;

fn message_of(failure: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(failure)).expect_err("it must fail");
    payload.downcast_ref::<String>().expect("a message").clone()
}

#[test]
fn a_program_that_prints_ready_and_ok_passes() {
    let lab = Lab::new();
    let running = lab.native([
        find_program("python3").unwrap().as_os_str(),
        "-c".as_ref(),
        CHECK_GO.as_ref(),
        "ok".as_ref(),
    ]);
    let running = running.start();
    running.wait_ready();
    running.expect_ok();
}

#[test]
fn a_program_that_finds_a_failure_fails_the_test_and_its_output_is_shown() {
    let lab = Lab::new();
    let python = find_program("python3").unwrap();
    let running =
        lab.native([python.as_os_str(), "-c".as_ref(), CHECK_GO.as_ref(), "FAIL: state".as_ref()]).start();
    running.wait_ready();
    let message = message_of(|| running.expect_ok());
    assert!(message.contains("FAIL: state"), "{message}");
}

#[test]
fn a_program_that_ends_before_it_is_ready_fails_the_test_at_once() {
    let lab = Lab::new();
    let running = lab.native(["sh", "-c", "echo going >&2; exit 3"]).start();
    let message = message_of(|| running.wait_ready());
    assert!(message.contains("ended before the line `ready` came") && message.contains("going"), "{message}");
}

#[test]
fn processes_that_a_test_leaves_behind_end_with_its_lab() {
    let lab = Lab::new();
    // The shell ends; what it started in a session of its own stays, an orphan.
    let running = lab.native(["sh", "-c", "setsid sleep 1000 & echo $!; echo ready"]).start();
    running.wait_ready();
    let pid = running.stdout().lines().next().unwrap().parse().unwrap();
    assert!(running.wait_exit().success());
    let orphan = ProcessHandle::open(pid).expect("it is there");
    drop(lab);
    assert!(orphan.wait_ended(Duration::from_secs(10)));
}

#[test]
fn compiled_programs_are_found_again() {
    let first = compile::program("counter");
    assert_eq!(first, compile::program("counter"));
    let lab = Lab::new();
    let running = lab.native([first.as_os_str(), "3".as_ref(), "1".as_ref()]).start();
    running.wait_line("step 3");
    running.expect_ok();
}

#[test]
fn a_terminal_shows_what_the_program_prints_and_brings_what_is_typed() {
    let lab = Lab::new();
    let mut terminal = Pseudoterminal::new(24, 80);
    let running =
        lab.native(["sh", "-c", "read line; echo heard $line; stty size"]).on_terminal(&terminal).start();
    terminal.type_line("hello");
    terminal.expect("heard hello", Duration::from_secs(10));
    terminal.expect("24 80", Duration::from_secs(10));
    assert!(running.wait_exit().success());
}
