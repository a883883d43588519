//! Programs that serve others: clients outside of the computation ask before and after it was killed and restarted.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
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

/// A connection to a Redis server.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// The first line of the answer.
    fn command(&mut self, command: &str) -> io::Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        self.line()
    }

    /// An answer that is a number.
    fn number(&mut self, command: &str) -> io::Result<u64> {
        let answer = self.command(command)?;
        let number = answer.strip_prefix(':').and_then(|number| number.parse().ok());
        Ok(number.unwrap_or_else(|| panic!("`{command}` is answered by `{answer}`")))
    }
}

/// Appends the numbers from 1 to a list, and connects again when its connection is reset. Returns how often that was.
fn append(port: u16, appended: &AtomicU64, stop: &AtomicBool) -> usize {
    let mut resets = 0;
    loop {
        let mut redis = until(|| Redis::connect(port).ok());
        let Ok(length) = redis.number("LLEN list") else { continue };
        let known = appended.load(Ordering::SeqCst);
        // The last one may have been carried out, and not answered.
        assert!(
            (known..=known + 1).contains(&length),
            "{length} numbers are there, {known} were acknowledged"
        );
        appended.store(length, Ordering::SeqCst);
        loop {
            if stop.load(Ordering::SeqCst) {
                return resets;
            }
            let next = appended.load(Ordering::SeqCst) + 1;
            match redis.number(&format!("RPUSH list {next}")) {
                Ok(length) => assert_eq!(length, next),
                Err(_) => break,
            }
            appended.store(next, Ordering::SeqCst);
        }
        resets += 1;
    }
}

#[test]
fn redis_with_a_client_outside_that_connects_again() {
    let Some(server) = find_program("redis-server") else { return skip("redis-server is not installed") };
    let lab = Lab::new();
    // Not one that a client may be given meanwhile.
    let port = 20_000 + (std::process::id() % 10_000) as u16;
    let at = port.to_string();
    let arguments = ["--port", &at, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let command =
        std::iter::once(server.as_os_str()).chain(arguments.iter().map(|argument| argument.as_ref()));
    let mut running = lab.launch(command);
    let (appended, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let client = thread::spawn({
        let (appended, stop) = (Arc::clone(&appended), Arc::clone(&stop));
        move || append(port, &appended, &stop)
    });
    let further = || {
        let before = appended.load(Ordering::SeqCst);
        until(|| (client.is_finished() || appended.load(Ordering::SeqCst) >= before + 200).then_some(()));
        assert!(!client.is_finished(), "the client has given up");
    };
    for _ in 0..KILLS {
        further();
        // It is not reset by one that lets the server run on.
        lab.checkpoint(&["--external-sockets=close"]);
        further();
        lab.checkpoint(&["--kill", "--external-sockets=close"]);
        running.wait_exit();
        running = lab.restart(["latest"]);
    }
    further();
    stop.store(true, Ordering::SeqCst);
    assert_eq!(client.join().expect("a client that found all in order"), KILLS as usize, "resets");

    let mut redis = Redis::connect(port).unwrap();
    let numbers = appended.load(Ordering::SeqCst);
    assert_eq!(redis.command("LRANGE list 0 -1").unwrap(), format!("*{numbers}"));
    for number in 1..=numbers {
        redis.line().unwrap();
        assert_eq!(redis.line().unwrap(), number.to_string());
    }
    let _ = redis.command("SHUTDOWN NOSAVE");
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
