//! A computation whose coordinator is reached over TCP, as from another host or container.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use stasis_tests::{
    DEADLINE, Lab, Workload, find_program,
    lab::{binary, wait_all_ended},
    skip,
};

const TREE: Workload = Workload { program: "tree", arguments: &[] };

/// What a command needs to reach the coordinator.
struct Remote {
    network: String,
    token: String,
}

impl Remote {
    /// Has the lab's coordinator listen.
    fn listen(lab: &Lab) -> Self {
        let token = lab.work().join("token").to_str().unwrap().to_owned();
        let report = lab.json(["coordinator", "--listen", "127.0.0.1:0", "--token-file", &token]);
        Self { network: report["network"].as_str().expect("it listens").to_owned(), token }
    }

    fn arguments<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        [command, &["--coord", &self.network, "--token-file", &self.token]].concat()
    }
}

#[test]
fn a_tree_is_checkpointed_and_ended_over_tcp_while_others_try_to_get_in() {
    let lab = Lab::new();
    let running = TREE.launch(&lab);
    running.wait_ready();
    lab.wait_joined(&running);
    let remote = Remote::listen(&lab);
    let (at, done) = (remote.network.strip_prefix("tcp:").unwrap(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut silent = Vec::new();
            while !done.load(Ordering::Relaxed) {
                silent.extend(TcpStream::connect(at));
                let Ok(mut noisy) = TcpStream::connect(at) else { continue };
                // Dropped, sooner or later.
                let _ = noisy.write_all(&[0x5a; 64]).and_then(|()| noisy.read_to_end(&mut Vec::new()));
                silent.truncate(100);
            }
        });
        lab.run(remote.arguments(&["checkpoint"])).expect_success();
        lab.run(remote.arguments(&["checkpoint", "--kill"])).expect_success();
        done.store(true, Ordering::Relaxed);
    });
    running.wait_exit();
    let restarted = lab.restart(["latest"]);
    lab.wait_joined(&restarted);
    let status = lab.json(remote.arguments(&["status"]));
    assert!(status["processes"].as_array().is_some_and(|processes| processes.len() > 1), "{status}");
    restarted.expect_ok();
}

/// Where pids are others, and the coordinator's socket is not to be seen.
#[test]
fn a_container_checkpoints_what_runs_outside_of_it() {
    let Some(unshare) = find_program("unshare").filter(|_| nix::unistd::geteuid().is_root()) else {
        return skip("it takes root and unshare(1) to make namespaces");
    };
    let lab = Lab::new();
    let running = lab.launch(["sleep", "1000"]);
    lab.wait_joined(&running);
    let remote = Remote::listen(&lab);
    let contained = |arguments: &[&str]| {
        let mut command = lab.command(&unshare);
        command.args(["--pid", "--fork", "--mount-proc", "--ipc", "--uts"]).arg(binary("stasis"));
        let output = command.args(remote.arguments(arguments)).arg("--json").output().expect("unshare");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let status = contained(&["status"]);
    let pid = status["processes"][0]["real_pid"].as_u64().expect("a pid");
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "{status}");
    let id = contained(&["checkpoint"])["id"].as_str().expect("an id").to_owned();
    assert!(lab.json(["list"]).to_string().contains(&id));
    assert_eq!(contained(&["kill"])["processes"], 1);
    wait_all_ended(&lab.processes("sleep"), DEADLINE);
    running.wait_exit();
}
