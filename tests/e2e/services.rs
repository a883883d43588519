//! Programs that serve others: clients outside of the computation ask before and after it was killed and restarted.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use stasis_tests::{DEADLINE, Lab, Running, compile, find_program, process::ProcessHandle, skip};

const KILLS: u32 = 3;

/// A port that nobody listens at.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

/// Asks once a moment until the server answers: nothing else tells that it listens.
#[track_caller]
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "nobody has answered after {DEADLINE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What an HTTP server has at a path.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

fn nginx_configuration(directory: &Path, port: u16, version: u32) -> String {
    let at = directory.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {at}/{kind}; "))
        .collect();
    let user = if stasis_tests::requirement::is_root() { "user root; " } else { "" };
    format!(
        "{user}daemon off; worker_processes 2; pid {at}/pid; error_log {at}/error.log info;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log {at}/access.log; {paths}\n\
         server {{ listen 127.0.0.1:{port}; root {at}/html; location /version {{ return 200 \"version {version}\"; }} }} }}\n"
    )
}

/// The pid here of a process of the computation, by its own.
fn real_pid(lab: &Lab, pid: u64) -> u32 {
    let status = lab.json(["status"]);
    let processes = status["processes"].as_array().expect("processes");
    let found = processes.iter().find(|process| process["pid"].as_u64() == Some(pid));
    found.and_then(|process| process["real_pid"].as_u64()).expect("the process is there") as u32
}

#[test]
fn nginx_with_two_workers_that_are_replaced_after_restarts() {
    let Some(nginx) = find_program("nginx").or_else(|| find_program("../sbin/nginx")) else {
        skip("nginx is not installed");
        return;
    };
    let lab = Lab::new();
    let (work, port) = (lab.work(), free_port());
    fs::create_dir(work.join("html")).unwrap();
    fs::write(work.join("html/page"), "x".repeat(300_000)).unwrap();
    let configuration = work.join("nginx.conf");
    fs::write(&configuration, nginx_configuration(&work, port, 0)).unwrap();
    let arguments =
        [nginx.as_os_str(), "-p".as_ref(), work.as_os_str(), "-c".as_ref(), configuration.as_os_str()];
    let mut running = lab.launch(arguments);
    assert_eq!(until(|| get(port, "/page")).len(), 300_000);
    for kill in 1..=KILLS {
        // A client that has not hung up finds the connection reset, and so does the server.
        let idle = TcpStream::connect(("127.0.0.1", port)).unwrap();
        lab.checkpoint(&["--external-sockets=close"]);
        assert_eq!(get(port, "/page").expect("an answer").len(), 300_000);
        lab.checkpoint(&["--kill", "--external-sockets=close"]);
        running.wait_exit();
        drop(idle);
        running = lab.restart(["latest"]);
        assert_eq!(until(|| get(port, "/page")).len(), 300_000);
        assert_eq!(get(port, "/version").expect("an answer"), format!("version {}", kill - 1));

        fs::write(&configuration, nginx_configuration(&work, port, kill)).unwrap();
        let master = fs::read_to_string(work.join("pid")).unwrap().trim().parse().unwrap();
        let master = ProcessHandle::open(real_pid(&lab, master)).expect("nginx is there");
        master.signal(nix::sys::signal::Signal::SIGHUP).expect("a signal");
        let wanted = format!("version {kill}");
        until(|| get(port, "/version").filter(|answer| *answer == wanted));
        // The workers that were replaced end.
        until(|| (lab.json(["status"])["processes"].as_array()?.len() == 3).then_some(()));
    }
    let master = fs::read_to_string(work.join("pid")).unwrap().trim().parse().unwrap();
    let master = ProcessHandle::open(real_pid(&lab, master)).expect("nginx is there");
    master.signal(nix::sys::signal::Signal::SIGQUIT).expect("a signal");
    running.expect_code(0);
}

fn ask(path: &Path, line: &str) -> Option<String> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(line.as_bytes()).ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Who was started for it has ended; the daemon is in the computation all the same.
#[test]
fn a_daemon_that_closes_everything_and_forks_twice() {
    let lab = Lab::new();
    let path = lab.work().join("socket");
    let starter = lab.launch([compile::program("daemon").as_os_str(), path.as_os_str()]);
    let mut restarted: Option<Running> = None;
    assert_eq!(until(|| ask(&path, "first")), "1 nothing same");
    starter.expect_code(0);
    let mut before = String::from("first");
    for kill in 1..=KILLS {
        lab.checkpoint(&[]);
        let line = format!("line{kill}");
        assert_eq!(ask(&path, &line).expect("an answer"), format!("{} {before} same", 2 * kill));
        lab.checkpoint(&["--kill"]);
        drop(restarted.take());
        restarted = Some(lab.restart(["latest"]));
        before = format!("after{kill}");
        assert_eq!(until(|| ask(&path, &before)), format!("{} {line} same", 2 * kill + 1));
    }
    assert!(ask(&path, "end").is_some());
    restarted.expect("it was restarted").expect_code(0);
}
