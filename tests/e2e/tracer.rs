//! What the tracer adds for users: whoever cannot be checkpointed is named, and what is to be done then can be said.

use std::{path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use stasis_tests::{Lab, Running, Tracer, find_program, process::ProcessHandle};

/// A shell that runs a script, once its children have been made.
fn shell(lab: &Lab, script: &str) -> Running {
    let running = lab.launch(["/bin/bash", "-c", script]);
    running.wait_ready();
    running
}

/// The processes that `status` says are not checkpointed, as (kind, pid).
fn outside(lab: &Lab) -> Vec<(String, u32)> {
    let status = lab.json(["status"]);
    let listed = status["outside"].as_array().unwrap_or_else(|| panic!("no tracer: {status:#}"));
    listed
        .iter()
        .map(|escape| (escape["kind"].as_str().unwrap().to_string(), escape["pid"].as_u64().unwrap() as u32))
        .collect()
}

/// Waits until these kinds, and no others, are outside.
#[track_caller]
fn wait_outside(lab: &Lab, kinds: &[&str]) -> Vec<u32> {
    let end = std::time::Instant::now() + stasis_tests::DEADLINE;
    loop {
        let mut found = outside(lab);
        found.sort();
        if found.iter().map(|(kind, _)| kind.as_str()).eq(kinds.iter().copied()) {
            return found.into_iter().map(|(_, pid)| pid).collect();
        }
        assert!(std::time::Instant::now() < end, "{kinds:?} were expected: {found:?}");
    }
}

#[test]
fn a_static_program_and_a_cleared_environment_are_named_with_who_started_them() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let running =
        shell(&lab, "busybox sleep 1000 & busybox env -i /bin/sleep 1001 & sleep 1002 & echo ready; wait");
    let pids = wait_outside(&lab, &["environment", "static"]);
    let status = lab.run(["status"]).expect_success().stdout;
    let creator = format!("made by pid {} (bash)", running.pid());
    for words in ["linked statically", "without LD_PRELOAD", "busybox sleep 1000", creator.as_str()] {
        assert!(status.contains(words), "{words}: {status}");
    }
    let refusal = lab.try_checkpoint(&[]);
    refusal.expect_refusal(&[
        "busybox sleep 1000",
        "linked statically",
        "sleep 1001",
        "without LD_PRELOAD",
        &creator,
    ]);
    for pid in pids {
        ProcessHandle::open(pid).unwrap().signal(Signal::SIGKILL).unwrap();
    }
    lab.checkpoint(&[]);
}

#[test]
fn a_static_program_that_handles_the_stop_signal_itself_is_no_member() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    // Go's runtime does, and glibc in every program that makes threads.
    let program = stasis_tests::compile::program_with("static_filter", &["-static"]);
    let script = format!("(echo ready; exec sleep 1000) | {} | cat", program.display());
    let running = shell(&lab, &script);
    wait_outside(&lab, &["static"]);
    assert_eq!(lab.json(["status"])["processes"].as_array().unwrap().len(), 3);
    lab.try_checkpoint(&[]).expect_refusal(&["static_filter", "linked statically"]);
    lab.checkpoint(&["--on-escape=warn"]);
    drop(running);
}

#[test]
fn an_orphan_without_the_library_is_seen_too() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let _running = shell(&lab, "(busybox sleep 1000 &); echo ready; sleep 1001; exit");
    wait_outside(&lab, &["static"]);
    lab.try_checkpoint(&[]).expect_refusal(&["busybox sleep 1000", "linked statically", "which has ended"]);
}

#[test]
fn a_set_user_id_program_is_named_as_one() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let program = lab.work().join("privileged");
    std::fs::copy(find_program("sleep").unwrap(), &program).unwrap();
    let set = std::process::Command::new("setcap").arg("cap_net_raw+ep").arg(&program).status().unwrap();
    assert!(set.success(), "setcap");
    // Root gains nothing by capabilities; an ordinary user does.
    let script = format!(
        "setpriv --reuid=65534 --clear-groups --inh-caps=-all {} 1000 & echo ready; wait",
        program.display()
    );
    // The user must be able to reach it.
    let open = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(lab.work().parent().unwrap());
    open(&lab.work());
    open(&program);
    let _running = shell(&lab, &script);
    wait_outside(&lab, &["set-user-id"]);
    lab.try_checkpoint(&[]).expect_refusal(&["gained rights", "privileged"]);
}

#[test]
fn a_program_for_another_c_library_is_named_as_one() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    // sleep(1) with a linker of that name in the directory where it is started, which is glibc's: musl need not be here.
    let mut program = std::fs::read(find_program("sleep").unwrap()).unwrap();
    let (linker, other) = (&b"/lib64/ld-linux-x86-64.so.2\0"[..], b"./ld-musl-x86_64.so.1\0");
    let at = program.windows(linker.len()).position(|bytes| bytes == linker).expect("a linker");
    program[at..at + other.len()].copy_from_slice(other);
    let copy = lab.work().join("for-musl");
    std::fs::copy("/lib64/ld-linux-x86-64.so.2", lab.work().join("ld-musl-x86_64.so.1")).unwrap();
    std::fs::copy(find_program("sleep").unwrap(), &copy).unwrap();
    std::fs::write(&copy, program).unwrap();
    let _running = shell(&lab, "busybox env -i ./for-musl 1000 & echo ready; wait");
    let pid = wait_outside(&lab, &["musl"])[0];
    lab.try_checkpoint(&[]).expect_refusal(&["for-musl 1000", "uses musl (./ld-musl-x86_64.so.1)"]);
    // Without an environment nobody knows it as the test's.
    ProcessHandle::open(pid).unwrap().signal(Signal::SIGKILL).unwrap();
}

#[test]
fn a_checkpoint_can_be_taken_without_them() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let running = shell(&lab, "(busybox sleep 1000 &); echo ready; sleep 1001");
    let pid = wait_outside(&lab, &["static"])[0];
    let ignoring = lab.try_checkpoint(&["--on-escape=ignore"]).expect_success();
    assert!(!ignoring.stderr.contains("busybox"), "{ignoring}");
    let warning = lab.try_checkpoint(&["--on-escape=warn"]).expect_success();
    assert!(
        warning.stderr.contains("not in the checkpoint: ") && warning.stderr.contains("busybox"),
        "{warning}"
    );

    let stranger = ProcessHandle::open(pid).unwrap();
    lab.checkpoint(&["--on-escape=leave-running", "--kill"]);
    running.wait_exit();
    assert!(!stranger.wait_ended(Duration::from_millis(300)), "it was to be left running");
    stranger.signal(Signal::SIGKILL).unwrap();
}

#[test]
fn those_without_the_library_end_with_the_others() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    for command in [&["checkpoint", "--on-escape=warn", "--kill"][..], &["kill"]] {
        let running = shell(&lab, "(busybox sleep 1000 &); echo ready; sleep 1001");
        let pid = wait_outside(&lab, &["static"])[0];
        let stranger = ProcessHandle::open(pid).unwrap();
        lab.run(command).expect_success();
        running.wait_exit();
        assert!(stranger.wait_ended(stasis_tests::DEADLINE), "{command:?}");
    }
}

#[test]
fn what_was_launched_before_the_tracer_is_tracked_when_it_is_asked_for() {
    let lab = Lab::new();
    let running = shell(&lab, "echo ready; while read line; do busybox sleep 1000 & done < go; sleep 1001");
    let status = lab.json(["status"]);
    assert!(status["outside"].is_null(), "{status:#}");
    let Some(mut tracer) = Tracer::start(&lab, &[]) else { return };
    assert_eq!(outside(&lab), []);
    tracer.end(Signal::SIGKILL);
    tracer.start_again();
    assert_eq!(outside(&lab), []);
    assert!(tracer.greeting.starts_with("took over"), "{}", tracer.greeting);
    drop(running);
}

#[test]
fn short_lived_static_programs_in_a_pipeline_refuse_nothing() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let _running = shell(
        &lab,
        "echo ready; while :; do echo x | busybox cat | busybox wc -c > /dev/null; sleep 0.3; done",
    );
    for _ in 0..5 {
        lab.checkpoint(&[]);
    }
}

#[test]
fn doctor_says_whether_it_runs_and_what_is_lost_without_it() {
    let lab = Lab::new();
    let probe = |lab: &Lab| {
        let doctor: serde_json::Value =
            serde_json::from_str(&lab.run(["doctor", "--json"]).stdout).expect("JSON");
        let probes = doctor["probes"].as_array().expect("probes").clone();
        probes.into_iter().find(|probe| probe["name"] == "tracer").expect("a probe of the tracer")
    };
    let without = probe(&lab);
    assert_eq!(without["state"], "fallback", "{without:#}");
    assert!(without["detail"].as_str().unwrap().contains("none listens"), "{without:#}");
    let Some(tracer) = Tracer::start(&lab, &[]) else { return };
    let with = probe(&lab);
    assert_eq!(with["state"], "ok", "{with:#}");
    for words in [
        format!("pid {}", tracer.pid()).as_str(),
        "forks, execs, exits",
        "hands out userfaultfds",
        "their ids",
    ] {
        assert!(with["detail"].as_str().unwrap().contains(words), "{with:#}");
    }
}

#[test]
fn top_tells_computations_with_their_processes() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let _running = shell(&lab, "busybox sleep 1000 & sleep 1001 & echo ready; wait");
    wait_outside(&lab, &["static"]);
    let found = lab.json(["top"]);
    let computations: Vec<_> =
        found.as_array().unwrap().iter().filter(|computation| computation["tasks"] == 3).collect();
    assert_eq!(computations.len(), 1, "{found:#}");
    assert_eq!(computations[0]["outside"], 1, "{found:#}");
    assert!(computations[0]["resident_bytes"].as_u64() > Some(0), "{found:#}");
}

#[test]
fn top_tells_how_much_was_written_since_the_last_checkpoint() {
    let lab = Lab::new();
    let running = lab.launch(["/usr/bin/python3", "-c", WRITES]);
    running.wait_ready();
    let written = || {
        let found = lab.json(["top"]);
        let own = found.as_array().unwrap().iter().find(|own| own["tasks"] == 1);
        own.unwrap_or_else(|| panic!("{found:#}"))["written_bytes"].as_u64()
    };
    lab.checkpoint(&[]);
    if lab.json(["status"])["processes"][0]["tracker"] != "wp-async" {
        return stasis_tests::skip("what is written is not tracked by the kernel here");
    }
    let before = written().expect("it is tracked");
    assert!(before < 4 << 20, "{before}");
    std::fs::write(lab.work().join("go"), "").unwrap();
    running.wait_line("written");
    let after = written().expect("it is tracked");
    assert!((8 << 20..14 << 20).contains(&after), "{before} {after}");
    lab.checkpoint(&[]);
    assert!(written().expect("it is tracked") < 4 << 20);
}

/// Of 32 MiB it writes 8 when it may.
const WRITES: &str = "
import os, time
memory = bytearray(b'x') * (32 << 20)
print('ready', flush=True)
while not os.path.exists('go'):
    time.sleep(0.05)
for at in range(0, 8 << 20, 4096):
    memory[at] = 1
print('written', flush=True)
time.sleep(1000)
";

#[test]
fn trace_prints_what_a_computation_does_as_lines_of_json() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let running = shell(&lab, "echo ready; until [ -e go ]; do sleep 0.1; done; /bin/true; exit 3");
    let trace = std::thread::spawn({
        let lab = lab.clone();
        move || {
            let output = lab.stasis().args(["trace", "--json", "--count", "40"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        }
    });
    let text = trace.join().unwrap();
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(events.len(), 40);
    for kind in ["fork", "exec", "exit"] {
        assert!(events.iter().any(|event| event["event"] == kind), "{kind}: {text}");
    }
    assert!(events.iter().any(|event| event["file"].as_str().is_some_and(|file| file.ends_with("/sleep"))));
    let go: PathBuf = lab.work().join("go");
    std::fs::write(go, "").unwrap();
    running.expect_code(3);
}

#[test]
fn a_restarted_computation_is_tracked_like_a_launched_one() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let running = lab.launch(["/usr/bin/python3", "-c", PYTHON]);
    running.wait_ready();
    lab.checkpoint_kill(running);
    let again = lab.restart(["latest"]);
    lab.wait_joined(&again);
    assert_eq!(outside(&lab), []);
    std::fs::write(lab.work().join("go"), "").unwrap();
    let pids = wait_outside(&lab, &["static"]);
    assert_eq!(pids.len(), 1);
    ProcessHandle::open(pids[0]).unwrap().signal(Signal::SIGKILL).unwrap();
}

/// One process, until the file `go` is there; then it starts a static program.
const PYTHON: &str = "
import os, subprocess, time
print('ready', flush=True)
while not os.path.exists('go'):
    time.sleep(0.05)
subprocess.call(['/bin/busybox', 'sleep', '1000'])
";

/// Stasis as an ordinary user has it: root's target directory is nobody else's to enter.
struct Ordinary {
    lab: Lab,
    stasis: PathBuf,
}

impl Ordinary {
    const USER: &str = "65534";

    fn new(lab: &Lab) -> Self {
        use std::os::unix::fs::{PermissionsExt, chown};
        let home = lab.work().join("home");
        std::fs::create_dir(&home).unwrap();
        // The store's server is not needed where no checkpoint is taken, and has 400 MB.
        for name in ["stasis", "stasis-restorer", "libstasis.so"] {
            std::fs::copy(stasis_tests::lab::binary(name), home.join(name)).unwrap();
        }
        let user = Self::USER.parse().unwrap();
        chown(&home, Some(user), Some(user)).unwrap();
        for directory in [&lab.work(), lab.work().parent().unwrap()] {
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let lab = lab.with_coordinator("work/home/coordinator").with_store(&home.join("store"));
        Self { lab, stasis: home.join("stasis") }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.lab.command("setpriv");
        command.arg(format!("--reuid={}", Self::USER)).arg(format!("--regid={}", Self::USER));
        command.arg("--clear-groups").arg(&self.stasis).args(arguments);
        command.env_remove("XDG_RUNTIME_DIR").env_remove("XDG_STATE_HOME").env("STASIS_BIN_DIR", "");
        command
    }

    fn run(&self, arguments: &[&str]) -> std::process::Output {
        self.command(arguments).output().expect("setpriv is installed")
    }
}

#[test]
fn ordinary_users_see_their_own_computations_and_root_sees_all() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let user = Ordinary::new(&lab);
    let script = "busybox sleep 1000 & while :; do sleep 0.1; done";
    let null = std::process::Stdio::null;
    // What runs on would keep a pipe open.
    let mut launch = user.command(&["launch", "--detach", "--", "/bin/bash", "-c", script]);
    assert!(launch.stdout(null()).stderr(null()).status().unwrap().success());
    let text = |output: std::process::Output| {
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let end = std::time::Instant::now() + stasis_tests::DEADLINE;
    while !text(user.run(&["status"])).contains("linked statically") {
        assert!(std::time::Instant::now() < end, "{}", text(user.run(&["status"])));
    }
    let refused = user.run(&["checkpoint"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(text(refused).contains("busybox sleep 1000"));
    let doctor = text(user.run(&["doctor"]));
    for words in ["hands out userfaultfds", "gives restarted programs their ids"] {
        assert!(doctor.contains(words), "{doctor}");
    }

    // Side by side with one of root's, which is not the user's to see.
    let _roots = shell(&lab, "busybox sleep 1001 & echo ready; wait");
    wait_outside(&lab, &["static"]);
    let users_view: serde_json::Value = serde_json::from_slice(&user.run(&["top", "--json"]).stdout).unwrap();
    let uids = |view: &serde_json::Value| -> Vec<u64> {
        let mut uids: Vec<u64> =
            view.as_array().unwrap().iter().map(|computation| computation["uid"].as_u64().unwrap()).collect();
        uids.sort_unstable();
        uids
    };
    assert_eq!(uids(&users_view), [65534], "{users_view:#}");
    let roots_view = lab.json(["top"]);
    assert_eq!(uids(&roots_view), [0, 65534], "{roots_view:#}");
    let ended = user.run(&["kill"]);
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn top_without_the_tracer_refuses_what_it_cannot_know() {
    let lab = Lab::new();
    let refused = lab.run(["top"]).expect_refusal(&["the tracer", "does not run"]);
    assert_eq!(refused.code(), 4, "{refused}");
    let _running = shell(&lab, "sleep 1001 & echo ready; wait");
    let found = lab.run(["top"]).expect_success().stdout;
    assert!(found.contains("coord.sock") && found.contains("no tracer runs"), "{found}");
}

#[test]
fn what_is_stasis_own_is_not_counted_or_listed_as_the_program_s() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    let program = stasis_tests::compile::program("counter");
    let running = lab.launch([program.as_os_str(), "100000".as_ref(), "64".as_ref()]);
    running.wait_ready();
    assert_eq!(lab.json(["trace", "--connections"]), serde_json::json!([]));
    let id = lab.checkpoint(&[]);
    // Beside the original: in a pid namespace, with what stands around that.
    let other = lab.with_coordinator("other");
    let restarted = other.restart([&id, "--lazy"]);
    other.wait_joined(&restarted);
    assert!(other.memory()["pager_pid"].as_u64().is_some(), "it has a pager");
    let found = lab.json(["top"]);
    let computations = found.as_array().unwrap();
    assert_eq!(computations.len(), 2, "{found:#}");
    for computation in computations {
        let counts = ["tasks", "threads", "outside"].map(|name| computation[name].as_u64());
        assert_eq!(counts, [Some(1), Some(1), Some(0)], "{found:#}");
    }
    assert_eq!(other.json(["trace", "--connections"]), serde_json::json!([]));
}

#[test]
fn trace_where_no_coordinator_listens_says_so() {
    let lab = Lab::new();
    let Some(_tracer) = Tracer::start(&lab, &[]) else { return };
    for arguments in [&["trace", "--count", "1"][..], &["trace", "--connections"]] {
        let refused = lab.run(arguments).expect_refusal(&["no coordinator listens"]);
        assert_eq!(refused.code(), 3, "{refused}");
    }
}
