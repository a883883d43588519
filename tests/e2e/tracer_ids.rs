//! The tracer gives ordinary users' programs their ids back, where they are free: nothing is left of them in a namespace.

use std::{
    fs,
    io::{BufRead, BufReader, PipeReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use nix::sys::{
    signal::Signal,
    wait::{WaitPidFlag, WaitStatus, waitpid},
};
use stasis_tests::{DEADLINE, Nobody, Running, Tracer, process::ProcessHandle, requirement::is_root, skip};

/// A tracer and a user; `None` skips the test.
fn start(programs: &[&str], options: &[&str]) -> Option<(Nobody, Tracer)> {
    if !is_root() {
        skip("only root becomes another user, and loads programs into the kernel");
        return None;
    }
    let nobody = Nobody::new(programs);
    let tracer = Tracer::start(&nobody.lab, options)?;
    Some((nobody, tracer))
}

/// Something of a user's that runs, with its output.
struct Program {
    running: Running,
    output: BufReader<PipeReader>,
    errors: PipeReader,
}

impl Program {
    #[track_caller]
    fn start(nobody: &Nobody, arguments: &[&str]) -> Self {
        let (running, [output, errors]) = nobody.start(arguments);
        Self { running, output: BufReader::new(output), errors }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    /// Ends well: what it printed, and what was said.
    #[track_caller]
    fn finish(mut self) -> (String, String) {
        let status = self.running.wait_exit();
        let (mut printed, mut said) = (String::new(), String::new());
        self.output.read_to_string(&mut printed).unwrap();
        self.errors.read_to_string(&mut said).unwrap();
        assert!(status.success(), "{status}: {printed}\n{said}");
        (printed, said)
    }
}

/// Remembers its ids, its program and what its user namespace maps, until its first argument exists.
const PYTHON: &str = "
import os, sys, threading, time
stop = threading.Event()
threads = [threading.Thread(target=stop.wait) for _ in range(5)]
for thread in threads:
    thread.start()
def state():
    tids = {thread.native_id for thread in threads}
    assert tids <= {int(tid) for tid in os.listdir('/proc/self/task')}
    return os.getpid(), tids, os.readlink('/proc/self/exe'), open('/proc/self/uid_map').read()
before = state()
print('ready', *before[1], flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
print('ok' if state() == before else f'{before} {state()}', flush=True)
stop.set()
";

/// Launches it: the path that it waits for, and its threads' ids.
#[track_caller]
fn launch_python(nobody: &Nobody) -> (Program, String, Vec<u32>) {
    let go = nobody.lab.work().join("go").display().to_string();
    let mut program = Program::start(nobody, &["launch", "--", "/usr/bin/python3", "-c", PYTHON, &go]);
    let line = program.line();
    let tids = line.strip_prefix("ready ").unwrap_or_else(|| panic!("{line}"));
    let tids = tids.split(' ').map(|tid| tid.parse().unwrap()).collect();
    nobody.pids(&program.running);
    (program, go, tids)
}

/// The pids of all processes, as they know themselves and as the kernel does.
#[track_caller]
fn pids(nobody: &Nobody) -> Vec<(u64, u64)> {
    let status = nobody.run(&["status", "--json"]).expect_success().stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let number = |process: &serde_json::Value, key: &str| process[key].as_u64().unwrap();
    let processes = status["processes"].as_array().unwrap().iter();
    processes.map(|process| (number(process, "pid"), number(process, "real_pid"))).collect()
}

/// Takes a checkpoint and ends them; those whose parents have ended before are collected here, or would keep their ids.
#[track_caller]
fn kill_all(nobody: &Nobody, program: Program) {
    let open = |(_, here): (u64, u64)| ProcessHandle::open(here as u32).ok();
    let processes: Vec<ProcessHandle> = pids(nobody).into_iter().filter_map(open).collect();
    nobody.checkpoint_kill(program.running);
    for process in processes {
        assert!(process.wait_ended(DEADLINE), "pid {}", process.pid());
    }
    // Zombies among them, too: all that has ended is nobody else's any more.
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
    {
    }
}

/// The same, once there are so many.
#[track_caller]
fn wait_pids(nobody: &Nobody, count: usize) -> Vec<(u64, u64)> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = pids(nobody);
        if found.len() == count {
            return found;
        }
        assert!(Instant::now() < end, "{count} were expected: {found:?}");
    }
}

#[test]
fn an_ordinary_user_s_program_has_its_pid_and_its_threads_ids_again() {
    let Some((nobody, _tracer)) = start(&[], &[]) else { return };
    let (mut program, go, _) = launch_python(&nobody);
    let (own, _) = nobody.pids(&program.running);
    for generation in 0..3 {
        nobody.checkpoint_kill(program.running);
        program = Program::start(&nobody, &["restart"]);
        assert_eq!(nobody.pids(&program.running), (own, own), "generation {generation}");
    }
    fs::write(go, "").unwrap();
    let (printed, said) = program.finish();
    assert_eq!((printed.as_str(), said.contains("namespace")), ("ok\n", false), "{said}");
}

/// `tests/programs/ids.c`, killed after a checkpoint: what it waits for, and its pids.
#[track_caller]
fn kill_ids(nobody: &Nobody) -> (PathBuf, Vec<u64>) {
    let program = nobody.binaries.join("ids");
    let mut program = Program::start(nobody, &["launch", "--", program.to_str().unwrap()]);
    let go = program.running.files().go.clone();
    assert_eq!(program.line(), "ready");
    nobody.pids(&program.running);
    let own = pids(nobody).into_iter().map(|(own, _)| own).collect();
    kill_all(nobody, program);
    (go, own)
}

#[test]
fn every_call_that_takes_or_tells_an_id_means_the_same() {
    let Some((nobody, _tracer)) = start(&["ids"], &[]) else { return };
    let (go, _) = kill_ids(&nobody);
    let program = Program::start(&nobody, &["restart"]);
    let (own, here) = nobody.pids(&program.running);
    assert_eq!(own, here);
    fs::write(go, "").unwrap();
    assert_eq!(program.finish().0, "ok\n");
}

#[test]
fn whose_system_v_objects_are_gone_goes_on_in_a_namespace_that_has_their_ids_too() {
    let Some((nobody, _tracer)) = start(&["ids"], &[]) else { return };
    let (go, own) = kill_ids(&nobody);
    let listed = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    // key, shmid, perms, size, cpid
    let segments = listed.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        own.iter().any(|own| words.get(4) == Some(&own.as_str())).then(|| words[1].parse::<i32>().unwrap())
    });
    for segment in segments {
        // SAFETY: a number, and no structure.
        assert_eq!(unsafe { libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut()) }, 0);
    }
    let program = Program::start(&nobody, &["restart"]);
    let (own, here) = nobody.pids(&program.running);
    assert_ne!(own, here);
    fs::write(go, "").unwrap();
    let (printed, said) = program.finish();
    assert_eq!(printed, "ok\n");
    assert!(said.contains("its id cannot be asked for (/proc/sys/kernel/shm_next_id)"), "{said}");
}

/// Counts until its first argument exists.
const COUNT: &str = "
import itertools, os, sys, time
for n in itertools.count(1):
    print(n, flush=True)
    if os.path.exists(sys.argv[1]):
        break
    time.sleep(0.02)
";

#[test]
fn a_shell_s_pipeline_has_all_its_pids_again_and_loses_no_line() {
    let Some((nobody, _tracer)) = start(&[], &[]) else { return };
    let go = nobody.lab.work().join("go");
    let script = format!(
        "python3 -c '{COUNT}' {go} | cat | (
         last=0; while read n; do [ $n = $((last+1)) ] || echo lost $last $n; last=$n; [ $n = 5 ] && echo ready; done; echo ok)",
        go = go.display()
    );
    let mut program = Program::start(&nobody, &["launch", "--", "/bin/bash", "-c", &script]);
    assert_eq!(program.line(), "ready");
    wait_pids(&nobody, 4);
    for generation in 0..2 {
        kill_all(&nobody, program);
        program = Program::start(&nobody, &["restart"]);
        // The shell, its copy, and two programs, as they join.
        let pids = wait_pids(&nobody, 4);
        assert!(pids.iter().all(|(own, here)| own == here), "generation {generation}: {pids:?}");
    }
    fs::write(go, "").unwrap();
    assert_eq!(program.finish().0, "ok\n");
}

/// Holds an id.
struct Holder(Child);

impl Holder {
    fn of(id: u32) -> Self {
        const LAST: &str = "/proc/sys/kernel/ns_last_pid";
        let before = fs::read_to_string(LAST).unwrap();
        for _ in 0..1000 {
            fs::write(LAST, (id - 1).to_string()).unwrap();
            let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
            fs::write(LAST, before.trim()).unwrap();
            let holder = Self(child);
            if holder.0.id() == id {
                return holder;
            }
        }
        panic!("{id} cannot be had");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn where_somebody_has_a_thread_s_id_it_goes_on_in_a_namespace_and_that_is_said() {
    let Some((nobody, _tracer)) = start(&[], &[]) else { return };
    let (program, go, tids) = launch_python(&nobody);
    nobody.checkpoint_kill(program.running);
    let holder = Holder::of(tids[2]);
    let program = Program::start(&nobody, &["restart"]);
    let (own, here) = nobody.pids(&program.running);
    assert_ne!(own, here);
    drop(holder);
    // Of the next generation they are free again.
    nobody.checkpoint_kill(program.running);
    let mut said = String::new();
    let mut errors = program.errors;
    errors.read_to_string(&mut said).unwrap();
    assert!(said.contains(&format!("a pid namespace is tried: {} is in use", tids[2])), "{said}");
    let program = Program::start(&nobody, &["restart"]);
    assert_eq!(nobody.pids(&program.running), (own, own));
    fs::write(go, "").unwrap();
    program.finish();
}

#[test]
fn without_pids_to_give_it_goes_on_in_a_namespace_as_without_a_tracer() {
    let Some((nobody, _tracer)) = start(&[], &["--no-pids"]) else { return };
    let (program, go, _) = launch_python(&nobody);
    nobody.checkpoint_kill(program.running);
    let program = Program::start(&nobody, &["restart"]);
    let (own, here) = nobody.pids(&program.running);
    assert_ne!(own, here);
    fs::write(go, "").unwrap();
    let said = program.finish().1;
    assert!(!said.contains("the tracer gives ids"), "{said}");
}

#[test]
fn doctor_says_that_the_tracer_gives_them() {
    let Some((nobody, _tracer)) = start(&[], &[]) else { return };
    let outcome = nobody.run(&["doctor", "--json"]);
    let doctor: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let ids =
        doctor["probes"].as_array().expect("probes").iter().find(|probe| probe["name"] == "original pids");
    let ids = ids.expect("a probe of them");
    assert_eq!(ids["state"], "ok", "{ids:#}");
    assert!(ids["detail"].as_str().unwrap().contains("the tracer gives them"), "{ids:#}");
}

/// Another user, who asks for ids without end, by several connections, and never says that a turn is over.
const FLOOD: &str = "
import array, os, select, socket, struct, sys
connections = []
for _ in range(8):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    connections.append(s)
def send(s, request, beside=[]):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', beside))] if beside else []
    s.sendmsg([struct.pack('<I', len(request)) + request], rights)
def receive(s):
    header = s.recv(4, socket.MSG_WAITALL)
    return s.recv(struct.unpack('<I', header)[0], socket.MSG_WAITALL)
for s in connections:
    send(s, b'\\x02')
    receive(s)
# Register { computation: 9, label: \"\" }
send(connections[0], b'\\x00\\x09\\x00', [os.pidfd_open(os.getpid())])
assert receive(connections[0]) == b'\\x01'
# NextPid, from one on.
first = wanted = int(sys.argv[2])
def ask(s):
    global wanted
    wanted = first + (wanted + 1 - first) % 1000
    number, n = b'', wanted
    while n > 127:
        number += bytes([n & 127 | 128]); n >>= 7
    send(s, b'\\x05' + number + bytes([n]))
for s in connections:
    ask(s)
granted = 0
print('ready', flush=True)
while True:
    for s in select.select(connections + [0], [], [])[0]:
        if s == 0:
            print(granted, flush=True)
            sys.exit()
        granted += receive(s) == b'\\x01'
        ask(s)
";

#[test]
fn another_user_who_asks_for_ids_without_end_keeps_nobody_from_theirs() {
    let Some((nobody, tracer)) = start(&[], &[]) else { return };
    let (mut program, go, tids) = launch_python(&nobody);
    // Ids that are far from the program's: others get such, too, in the turns of the flood.
    let first = 300 + (tids[0] + 15_000) % 30_000;
    let mut flood = Command::new("setpriv");
    flood.args(["--reuid=65533", "--regid=65533", "--clear-groups", "/usr/bin/python3", "-c", FLOOD]);
    flood.arg(tracer.socket()).arg(first.to_string());
    let mut flood = flood.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(flood.stdout.take().unwrap()).lines();
    assert_eq!(told.next().unwrap().unwrap(), "ready");
    for _ in 0..2 {
        nobody.checkpoint_kill(program.running);
        program = Program::start(&nobody, &["restart"]);
        let (own, here) = nobody.pids(&program.running);
        assert_eq!(own, here);
    }
    fs::write(go, "").unwrap();
    assert_eq!(program.finish().0, "ok\n");
    drop(flood.stdin.take());
    let granted: u32 = told.next().unwrap().unwrap().parse().unwrap();
    assert!(granted > 0, "it was no flood");
    flood.wait().unwrap();
}

#[test]
fn on_a_machine_that_makes_processes_all_the_time_they_are_had_all_the_same() {
    let Some((nobody, _tracer)) = start(&[], &[]) else { return };
    let (program, go, _) = launch_python(&nobody);
    let stop = AtomicBool::new(false);
    let program = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert!(Command::new("/bin/true").status().unwrap().success());
            }
        });
        let mut program = program;
        for _ in 0..3 {
            nobody.checkpoint_kill(program.running);
            program = Program::start(&nobody, &["restart"]);
            let (own, here) = nobody.pids(&program.running);
            assert_eq!(own, here);
        }
        stop.store(true, Ordering::Relaxed);
        program
    });
    fs::write(go, "").unwrap();
    assert_eq!(program.finish().0, "ok\n");
}

#[test]
fn a_tracer_that_is_killed_meanwhile_costs_the_ids_and_not_the_restart() {
    let Some((nobody, mut tracer)) = start(&[], &[]) else { return };
    let (program, go, _) = launch_python(&nobody);
    nobody.checkpoint_kill(program.running);
    // It stands still: whoever asks it gives up in time.
    let service = ProcessHandle::open(tracer.pid()).unwrap();
    service.signal(Signal::SIGSTOP).unwrap();
    let program = Program::start(&nobody, &["restart"]);
    let (own, here) = nobody.pids(&program.running);
    assert_ne!(own, here);
    tracer.end(Signal::SIGKILL);
    fs::write(go, "").unwrap();
    program.finish();
}
