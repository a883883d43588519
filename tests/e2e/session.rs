//! A launched or restarted program stands where it would without Stasis: exit status, signals, terminal, pipes,
//! redirections, working directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, PipeWriter, Write, pipe},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
};

use nix::sys::signal::Signal;
use stasis_tests::{DEADLINE, Lab, Running, compile, pseudoterminal::Pseudoterminal};

/// `tests/programs/session.c`: answers lines and signals.
fn session() -> PathBuf {
    compile::program("session")
}

fn say(keyboard: &mut PipeWriter, line: &str) {
    writeln!(keyboard, "{line}").expect("the program reads its input");
}

/// A session in front of a pipe that was checkpointed, killed and restarted, and answers again.
#[track_caller]
fn restarted_session(lab: &Lab) -> (Running, PipeWriter) {
    let (input, mut keyboard) = pipe().unwrap();
    let running = lab.prepare([session()]).stdin(input).start();
    running.wait_ready();
    say(&mut keyboard, "first");
    running.wait_line("line 1 is first");
    lab.checkpoint_kill(running);

    let (input, mut keyboard) = pipe().unwrap();
    let running = lab.prepare_restart(["latest"]).stdin(input).start();
    say(&mut keyboard, "second");
    running.wait_line("line 2 is second");
    (running, keyboard)
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
    for (name, number) in [("TERM", libc::SIGTERM), ("KILL", libc::SIGKILL), ("ABRT", libc::SIGABRT)] {
        let status = lab.launch(["sh", "-c", &format!("ulimit -c 0; kill -{name} $$")]).wait_exit();
        assert_eq!(status.signal(), Some(number), "{status}");
    }
}

#[test]
fn the_exit_status_passes_through_restart() {
    let lab = Lab::new();
    let running = lab.prepare([session()]).environment("SESSION_EXIT", "7").start();
    running.wait_ready();
    lab.checkpoint_kill(running);
    let running = lab.restart(["latest"]);
    running.go();
    running.expect_code(7);
}

#[test]
fn a_signal_reaches_the_restarted_programs_handler() {
    let lab = Lab::new();
    let (running, _keyboard) = restarted_session(&lab);
    running.signal(Signal::SIGUSR1);
    running.wait_line("user signal 1");
    running.signal(Signal::SIGINT);
    running.wait_line("interrupt 1");
    running.expect_ok();
}

#[test]
fn death_by_a_signal_passes_through_restart() {
    let lab = Lab::new();
    let (running, _keyboard) = restarted_session(&lab);
    running.signal(Signal::SIGTERM);
    running.expect_code(128 + libc::SIGTERM);
}

#[test]
fn job_control_stops_and_continues_the_restarted_program() {
    let lab = Lab::new();
    let (running, mut keyboard) = restarted_session(&lab);
    running.signal(Signal::SIGSTOP);
    running.signal(Signal::SIGCONT);
    say(&mut keyboard, "third");
    running.wait_line("line 3 is third");
    running.expect_ok();
}

#[test]
fn the_end_of_input_reaches_the_restarted_program() {
    let lab = Lab::new();
    let (running, keyboard) = restarted_session(&lab);
    drop(keyboard);
    running.wait_line("input ended after 2 lines");
    running.expect_ok();
}

#[test]
fn pipes_on_both_sides_are_those_of_the_restart() {
    let lab = Lab::new();
    let (input, mut keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    let running = lab.prepare([session()]).stdin(input).stdout(output).start();
    let mut lines = BufReader::new(screen).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    say(&mut keyboard, "first");
    assert_eq!(lines.next().unwrap().unwrap(), "line 1 is first");
    lab.checkpoint_kill(running);
    assert!(lines.next().is_none(), "nobody else holds the old pipe");

    let (input, mut keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    let running = lab.prepare_restart(["latest"]).stdin(input).stdout(output).start();
    let mut lines = BufReader::new(screen).lines();
    say(&mut keyboard, "second");
    assert_eq!(lines.next().unwrap().unwrap(), "line 2 is second");
    running.go();
    running.expect_code(0);
    assert_eq!(lines.next().unwrap().unwrap(), "ok");
    assert!(lines.next().is_none());
}

#[test]
fn output_appended_to_a_file_comes_after_what_others_appended_meanwhile() {
    let lab = Lab::new();
    let log = lab.work().join("log");
    let append = || OpenOptions::new().append(true).create(true).open(&log).unwrap();
    let (input, mut keyboard) = pipe().unwrap();
    let running = lab.prepare([session()]).stdin(input).stdout(append()).start();
    say(&mut keyboard, "first");
    running.wait_size(&log, "ready\nline 1 is first\n".len() as u64);
    lab.checkpoint_kill(running);

    append().write_all(b"between\n").unwrap();
    let running = lab.restart(["latest"]);
    running.go();
    running.expect_code(0);
    let expected = "ready\nline 1 is first\nbetween\ninput ended after 1 lines\nok\n";
    let found = fs::read_to_string(&log).unwrap();
    // Whether the end of /dev/null or the file to go on is seen first is no matter.
    assert_eq!(
        found.replace("input ended after 1 lines\n", ""),
        expected.replace("input ended after 1 lines\n", "")
    );
}

#[test]
fn a_terminal_is_replaced_by_the_one_of_the_restart() {
    let lab = Lab::new();
    let mut terminal = Pseudoterminal::new(24, 80);
    let running = lab.prepare([session()]).on_terminal(&terminal).start();
    terminal.expect("ready", DEADLINE);
    terminal.type_line("first");
    terminal.expect("line 1 is first", DEADLINE);
    terminal.type_line("width");
    terminal.expect("80 columns", DEADLINE);
    terminal.interrupt();
    terminal.expect("interrupt 1", DEADLINE);
    lab.checkpoint_kill(running);

    let mut terminal = Pseudoterminal::new(50, 132);
    let running = lab.prepare_restart(["latest"]).on_terminal(&terminal).start();
    terminal.type_line("second");
    terminal.expect("line 2 is second", DEADLINE);
    terminal.type_line("width");
    terminal.expect("132 columns", DEADLINE);
    terminal.interrupt();
    terminal.expect("interrupt 2", DEADLINE);
    running.go();
    terminal.expect("ok", DEADLINE);
    running.expect_code(0);
}

#[test]
fn a_terminals_modes_come_back_with_the_program() {
    let lab = Lab::new();
    let command = [session().into_os_string(), "noecho".into()];
    let mut terminal = Pseudoterminal::new(24, 80);
    let running = lab.prepare(&command).on_terminal(&terminal).start();
    terminal.expect("ready", DEADLINE);
    assert!(!terminal.echoes());
    lab.checkpoint_kill(running);

    let mut terminal = Pseudoterminal::new(24, 80);
    assert!(terminal.echoes());
    let running = lab.prepare_restart(["latest"]).on_terminal(&terminal).start();
    terminal.type_line("first");
    terminal.expect("line 1 is first", DEADLINE);
    assert!(!terminal.echoes());
    running.go();
    running.expect_code(0);
}

#[test]
fn a_program_on_a_terminal_goes_on_without_one() {
    let lab = Lab::new();
    let mut terminal = Pseudoterminal::new(24, 80);
    let running = lab.prepare([session()]).on_terminal(&terminal).start();
    terminal.expect("ready", DEADLINE);
    lab.checkpoint_kill(running);
    drop(terminal);

    let output = lab.work().join("output");
    let (input, mut keyboard) = pipe().unwrap();
    let running = lab.prepare_restart(["latest"]).stdin(input).stdout(File::create(&output).unwrap()).start();
    say(&mut keyboard, "first");
    running.wait_size(&output, "line 1 is first\n".len() as u64);
    assert_eq!(fs::read_to_string(&output).unwrap(), "line 1 is first\n");
    running.go();
    running.expect_code(0);
}

#[test]
fn the_working_directory_is_the_programs_wherever_restart_is_typed() {
    let lab = Lab::new();
    let home = lab.work().join("home");
    fs::create_dir(&home).unwrap();
    let (input, _keyboard) = pipe().unwrap();
    let running = lab.prepare([session()]).stdin(input).directory(&home).start();
    running.wait_ready();
    lab.checkpoint_kill(running);

    let (input, mut keyboard) = pipe().unwrap();
    let running = lab.prepare_restart(["latest"]).stdin(input).directory("/").start();
    say(&mut keyboard, "where");
    running.wait_line(home.to_str().unwrap());
    running.expect_ok();
}

#[test]
fn a_coordinators_log_is_put_aside_when_it_has_become_long_and_goes_on() {
    const LONG: usize = 2 << 20;
    let lab = Lab::new();
    lab.run(["coordinator"]).expect_success();
    let place = lab.work().parent().expect("the lab's directory").to_owned();
    let (log, old) = (place.join("coord.sock.log"), place.join("coord.sock.log.old"));
    let mut long = OpenOptions::new().append(true).open(&log).expect("the log");
    long.write_all(&b"a line\n".repeat(LONG / 7)).expect("room for it");
    let running = lab.launch([session()]);
    running.wait_ready();
    lab.wait_joined(&running);
    assert!(fs::metadata(&old).expect("the log before").len() >= LONG as u64 - 7);
    let text = fs::read_to_string(&log).expect("the log");
    assert!(text.len() < 1000 && text.contains("joined"), "{text}");
    running.expect_ok();
}

#[test]
fn an_empty_name_of_a_store_is_none() {
    let lab = Lab::new();
    let listed = lab.stasis().env("STASIS_STORE", "").env("XDG_DATA_HOME", lab.work()).arg("list").output();
    let listed = listed.expect("stasis runs");
    let said = String::from_utf8_lossy(&listed.stderr);
    assert!(said.contains(&*lab.work().join("stasis").to_string_lossy()), "not the default: {said}");
}

#[test]
fn what_is_printed_as_json_is_json_where_something_ends_too() {
    let lab = Lab::new();
    let running = lab.launch([session()]);
    running.wait_ready();
    let status = lab.json(["status"]);
    assert_eq!(status["processes"][0]["command"], session().to_str().unwrap());
    assert_eq!(lab.json(["coordinator", "--stop"])["coordinator_pid"], status["coordinator_pid"]);
    running.expect_ok();
}
