//! What `launch` does before the program runs, and what it hands on to it. The library is not needed: an
//! empty shared object stands for it.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::peers::{Coordinator, STASIS};

/// A shared object with nothing in it.
fn library(directory: &Path) -> PathBuf {
    let path = directory.join("libstasis.so");
    let status = Command::new("cc")
        .args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"])
        .arg(&path)
        .status()
        .expect("cc is needed (apt install gcc)");
    assert!(status.success());
    path
}

struct Lab {
    coordinator: Coordinator,
    library: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let coordinator = Coordinator::start();
        let library = library(coordinator.directory.path());
        Self { coordinator, library }
    }

    fn launch(&self, program: &[&str]) -> Command {
        let mut command = self.coordinator.command(&["launch"]);
        command.env("STASIS_LIB", &self.library).arg("--").args(program);
        command
    }

    fn file(&self, name: &str, content: &[u8], mode: u32) -> String {
        let path = self.coordinator.directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().into()
    }

    /// The exit code and message of a launch that must not start anything.
    fn refused(&self, program: &str) -> (i32, String) {
        let Output { status, stdout, stderr } = self.launch(&[program]).output().unwrap();
        assert!(stdout.is_empty(), "it ran");
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    }
}

#[test]
fn the_program_takes_the_place_of_launch() {
    let lab = Lab::new();
    let mut child = lab.launch(&["sh", "-c", "echo $$"]).stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
    child.wait().unwrap();
    assert_eq!(said.trim(), pid.to_string());
}

#[test]
fn exit_codes_and_signals_are_the_programs_own() {
    let lab = Lab::new();
    assert_eq!(lab.launch(&["sh", "-c", "exit 42"]).status().unwrap().code(), Some(42));
    assert_eq!(lab.launch(&["sh", "-c", "kill -TERM $$"]).status().unwrap().signal(), Some(libc::SIGTERM));
}

#[test]
fn the_program_finds_itself_as_it_would_without_us() {
    let lab = Lab::new();
    // What a process inherits and is not told by its arguments. dash changes the signal mask: ask grep.
    let status = "^(Umask|Groups|Sig[A-Z][a-z]+|ShdPnd|NoNewPrivs|Threads):";
    let rest = "ls -l /proc/self/fd | sed 's/.* \\([0-9]* -> [a-z\\/]*\\).*/\\1/' | grep -v /proc/; \
                ulimit -a; pwd; env | grep -vE '^(LD_PRELOAD|STASIS_|_=)' | sort";
    let looks: [&[&str]; 2] = [&["grep", "-E", status, "/proc/self/status"], &["sh", "-c", rest]];
    let run = |mut command: Command| {
        command.env_remove("STASIS_LIB").env_remove("STASIS_COORD").env_remove("STASIS_STORE");
        command.stdin(Stdio::null());
        // SAFETY: signal, sigprocmask and umask are async-signal-safe; the set lives until the call returns.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                libc::signal(libc::SIGUSR1, libc::SIG_IGN);
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, libc::SIGUSR2);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
                libc::umask(0o027);
                Ok(())
            })
        };
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    // STASIS_LIB would be one variable more: the library is found beside the command.
    let stasis = lab.coordinator.directory.path().join("stasis");
    fs::copy(STASIS, &stasis).unwrap();
    let mut all = String::new();
    for look in looks {
        let mut plain = Command::new(look[0]);
        plain.args(&look[1..]);
        let mut launched = Command::new(&stasis);
        launched.arg("launch").arg("--coord").arg(lab.coordinator.socket()).arg("--").args(look);
        let (plain, launched) = (run(plain), run(launched));
        assert_eq!(plain, launched);
        all.push_str(&plain);
    }
    for evidence in ["Umask:\t0027", "SigBlk:\t0000000000000800", "0 -> /dev/null", "PATH="] {
        assert!(all.contains(evidence), "no {evidence} in {all}");
    }
}

#[test]
fn the_program_has_no_child_that_it_did_not_make() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(directory.path());
    let socket = directory.path().join("c");
    let mut launch = Command::new(STASIS);
    launch
        .args(["launch", "--store", "/nowhere", "--coord"])
        .arg(&socket)
        .args(["--", "sh", "-c", "cat /proc/$$/task/$$/children"])
        .env("STASIS_LIB", library);
    let output = launch.output().unwrap();
    let stop = Command::new(STASIS).args(["coordinator", "--stop", "--coord"]).arg(&socket).status();
    assert!(stop.unwrap().success(), "launch started no coordinator: {output:?}");
    // cat itself.
    assert_eq!(String::from_utf8(output.stdout).unwrap().split_whitespace().count(), 1);
}

#[test]
fn the_coordinator_keeps_no_descriptor_of_the_starter_open() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(directory.path());
    let socket = directory.path().join("c");
    // output() returns at the end of the pipes, which a coordinator that had them would keep open.
    let output = Command::new("sh")
        .args(["-c", "exec 7>&1; \"$0\" launch --store /nowhere --coord \"$1\" -- echo done"])
        .args([Path::new(STASIS), &socket])
        .env("STASIS_LIB", library)
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"done\n", "{output:?}");
    let stop = Command::new(STASIS).args(["coordinator", "--stop", "--coord"]).arg(&socket).status();
    assert!(stop.unwrap().success());
}

#[test]
fn closed_standard_descriptors_stay_closed() {
    let lab = Lab::new();
    for closed in ["<&-", "<&- 2>&-"] {
        let script = format!("exec {closed}; exec \"$0\" launch -- sh -c 'ls /proc/$$/fd >&1'");
        let run = |start: bool| {
            let mut command = lab.coordinator.command(&[]);
            if start {
                let _ = command.arg("coordinator").output();
            }
            Command::new("sh")
                .args(["-c", &script, STASIS])
                .env("STASIS_LIB", &lab.library)
                .env("STASIS_COORD", lab.coordinator.socket())
                .output()
                .unwrap()
        };
        let open = String::from_utf8(run(false).stdout).unwrap();
        let open: Vec<&str> = open.split_whitespace().collect();
        assert!(!open.contains(&"0"), "{open:?}");
        assert_eq!(open.contains(&"2"), !closed.contains("2>&-"), "{open:?}");
    }
}

#[test]
fn what_is_not_there_exits_with_127_and_what_is_not_executable_with_126() {
    let lab = Lab::new();
    assert_eq!(lab.refused("no-such-program").0, 127);
    assert_eq!(lab.refused("/no/such/program").0, 127);
    assert_eq!(lab.refused(&lab.file("plain", b"#!/bin/sh\n", 0o644)).0, 126);
    assert_eq!(lab.refused("/").0, 126);
    let (code, message) = lab.refused(&lab.file("orphan", b"#!/no/such/interpreter\n", 0o755));
    assert_eq!(code, 126);
    assert!(message.contains("/no/such/interpreter"), "{message}");
}

#[test]
fn what_the_library_cannot_get_into_is_refused_before_it_starts() {
    let lab = Lab::new();
    let shell = fs::read("/bin/sh").unwrap();
    for (mode, word) in [(0o4755, "set-uid"), (0o2755, "set-gid")] {
        let (code, message) = lab.refused(&lab.file("privileged", &shell, mode));
        assert!(code == 4 && message.contains(word), "{message}");
    }
    let (code, message) = lab.refused(&lab.file("text", b"echo hello\n", 0o755));
    assert!(code == 4 && message.contains("neither"), "{message}");
    let mut other = shell.clone();
    other[18] = 183;
    let (code, message) = lab.refused(&lab.file("aarch64", &other, 0o755));
    assert!(code == 4 && message.contains("x86-64"), "{message}");
    let source = lab.file("main.c", b"int main(void) { return 0; }", 0o644);
    let program = source.replace("main.c", "static");
    let status = Command::new("cc").args(["-static", "-o", &program, &source]).status().unwrap();
    assert!(status.success(), "a static C library is needed (apt install libc6-dev)");
    let (code, message) = lab.refused(&program);
    assert!(code == 4 && message.contains("statically"), "{message}");
}

#[test]
fn a_script_without_a_bad_interpreter_runs() {
    let lab = Lab::new();
    let inner = lab.file("inner", b"#!/bin/sh\necho \"ran $1\"\n", 0o755);
    let outer = lab.file("outer", format!("#!{inner}\n").as_bytes(), 0o755);
    let output = lab.launch(&[&outer]).output().unwrap();
    assert_eq!(output.stdout, format!("ran {outer}\n").into_bytes(), "{output:?}");
}

#[test]
fn the_environment_names_the_library_the_coordinator_and_the_store() {
    let lab = Lab::new();
    let output = lab.launch(&["env"]).env("LD_PRELOAD", "libm.so.6").output().unwrap();
    let environment = String::from_utf8(output.stdout).unwrap();
    let directory = lab.coordinator.directory.path().display();
    for line in [
        format!("LD_PRELOAD={}:libm.so.6", lab.library.display()),
        format!("STASIS_COORD={directory}/c"),
        format!("STASIS_STORE={directory}/store"),
    ] {
        assert!(environment.lines().any(|there| there == line), "no {line} in {environment}");
    }
}

#[test]
fn a_store_that_is_not_the_coordinators_is_refused() {
    let lab = Lab::new();
    let mut launch = lab.launch(&["echo", "ran"]);
    let output = launch.env("STASIS_STORE", "/elsewhere").output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_detached_program_that_ends_before_it_joins_is_reported_with_its_exit_code() {
    let lab = Lab::new();
    // The empty library joins nothing.
    let mut launch = lab.coordinator.command(&["launch", "--detach", "--", "sh", "-c", "exit 5"]);
    let output = launch.env("STASIS_LIB", &lab.library).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ended already"));
}
