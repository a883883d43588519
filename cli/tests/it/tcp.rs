//! A coordinator that is reached over TCP: by whom, and what comes of those who only try.
//!
//! The conversation is played here once more, from its description (`cli/src/remote/`), not by its code.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use stasis_protocol::{
    VERSION,
    coordinator::{ClientReply, ClientRequest, Hello, IntervalLasts, Outside, Role, ToProcess},
    wire,
};
use tempfile::TempDir;

use crate::peers::{Coordinator, FakeProcess, finish, spawn_player};

const PATIENCE: Duration = Duration::from_secs(20);

const TOKEN: &str = "a token of some length\n";

const GREETING: usize = 16 + 32;
const ANSWER: usize = 32 + 32;
const PROOF: usize = 32;

/// A coordinator that listens at TCP, too.
struct Listening {
    coordinator: Coordinator,
    /// Has the token file.
    files: TempDir,
    /// `127.0.0.1:PORT`.
    at: String,
}

impl Listening {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(options: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let token = token_file(files.path(), TOKEN, 0o600);
        let listen = ["--listen", "127.0.0.1:0", "--token-file", token.to_str().unwrap()];
        let coordinator = Coordinator::start_with(&[&listen, options].concat());
        let network = coordinator.json(&["status"]).1["network"].as_str().unwrap().to_owned();
        Self { coordinator, files, at: network.strip_prefix("tcp:").unwrap().into() }
    }

    fn token(&self) -> PathBuf {
        self.files.path().join("token")
    }

    /// A command that reaches it at `at`.
    fn command_at(&self, at: &str, args: &[&str]) -> Command {
        let mut command = self.coordinator.command(&["--coord", &format!("tcp:{at}"), "--json"]);
        command.arg("--token-file").arg(self.token()).args(args);
        command
    }

    fn command(&self, args: &[&str]) -> Command {
        self.command_at(&self.at, args)
    }

    fn json(&self, args: &[&str]) -> (i32, serde_json::Value) {
        finish(start(&mut self.command(args)))
    }

    /// A connection that has said nothing yet; what the coordinator says first has been read.
    fn connect(&self) -> (TcpStream, [u8; 32]) {
        let mut stream = TcpStream::connect(&self.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = [0; GREETING];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting[..16], *b"stasis over tcp1");
        (stream, greeting[16..].try_into().unwrap())
    }

    /// A command that has proved itself and said hello.
    fn client(&self) -> Client {
        let mut client = Client::prove(self.connect(), TOKEN).expect("it is let in");
        client.send(&Hello { version: VERSION, role: Role::Client });
        assert!(matches!(client.receive(), Some(ClientReply::Welcome { version: VERSION, .. })));
        client
    }

    /// What an interval is now.
    fn interval(&self) -> serde_json::Value {
        self.coordinator.json(&["status"]).1["interval_us"].clone()
    }
}

fn token_file(directory: &Path, content: &str, mode: u32) -> PathBuf {
    let path = directory.join("token");
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn start(command: &mut Command) -> Child {
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
}

fn message(report: &serde_json::Value) -> &str {
    report["error"]["message"].as_str().unwrap_or_else(|| panic!("{report}"))
}

/// Reads until the coordinator drops the connection; returns what it said.
fn until_dropped(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    rest
}

/// What is derived from a token and both nonces.
fn derive(token: &str, label: &str, nonces: [&[u8; 32]; 2]) -> [u8; 32] {
    let key = blake3::derive_key("stasis coordinator over tcp, token 1", token.trim_end().as_bytes());
    let text = [label.as_bytes(), nonces[0], nonces[1]].concat();
    blake3::keyed_hash(&key, &text).into()
}

/// A command's side, after the proofs.
struct Client {
    stream: TcpStream,
    keys: [[u8; 32]; 2],
    messages: [u64; 2],
}

impl Client {
    /// `None` when it is dropped.
    fn prove((mut stream, theirs): (TcpStream, [u8; 32]), token: &str) -> Option<Self> {
        let ours = [5; 32];
        let derive = |label| derive(token, label, [&theirs, &ours]);
        let answer = [ours, derive("the command knows the token")].concat();
        stream.write_all(&answer).unwrap();
        let mut proof = [0; PROOF];
        stream.read_exact(&mut proof).ok()?;
        assert_eq!(proof, derive("the coordinator knows the token"));
        let keys = [derive("what the command says"), derive("what the coordinator says")];
        Some(Self { stream, keys, messages: [0; 2] })
    }

    fn tag(&mut self, direction: usize, payload: &[u8]) -> [u8; PROOF] {
        let number = self.messages[direction].to_le_bytes();
        self.messages[direction] += 1;
        blake3::keyed_hash(&self.keys[direction], &[&number[..], payload].concat()).into()
    }

    fn send(&mut self, message: &impl Serialize) {
        let mut frame = wire::frame(message).unwrap();
        let tag = self.tag(0, &frame[wire::HEADER..]);
        frame.extend(tag);
        self.stream.write_all(&frame).unwrap();
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Option<T> {
        let frame = read_frame(&mut self.stream)?;
        let (payload, tag) = frame[wire::HEADER..].split_at(frame.len() - wire::HEADER - PROOF);
        assert_eq!(self.tag(1, payload), tag);
        Some(wire::decode(payload).unwrap())
    }
}

/// With its header and its tag.
fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; wire::HEADER];
    stream.read_exact(&mut frame).ok()?;
    let len = wire::payload_len(frame[..].try_into().unwrap()).unwrap();
    frame.resize(wire::HEADER + len + PROOF, 0);
    stream.read_exact(&mut frame[wire::HEADER..]).ok()?;
    Some(frame)
}

/// What went through a [`relay`].
struct Recorded {
    /// The command's answer to the greeting, and its messages.
    command: Vec<Vec<u8>>,
    coordinator: Vec<u8>,
}

/// Somebody between one command and the coordinator, who is told to pass on other messages than the command's.
fn relay(
    to: &str,
    change: impl Fn(usize, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static,
) -> (String, thread::JoinHandle<Recorded>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let mut coordinator = TcpStream::connect(to).unwrap();
    let relaying = thread::spawn(move || {
        let (mut command, _) = listener.accept().unwrap();
        let (mut from, mut back) = (coordinator.try_clone().unwrap(), command.try_clone().unwrap());
        let backwards = thread::spawn(move || {
            let mut recorded = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                recorded.extend(&buffer[..count]);
                if back.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            // The command is told that the coordinator has dropped the connection.
            let _ = back.shutdown(Shutdown::Both);
            recorded
        });
        let mut answer = vec![0; ANSWER];
        command.read_exact(&mut answer).unwrap();
        coordinator.write_all(&answer).unwrap();
        let mut recorded = vec![answer];
        while let Some(frame) = read_frame(&mut command) {
            recorded.push(frame.clone());
            for frame in change(recorded.len() - 2, frame) {
                // It may have been dropped.
                let _ = coordinator.write_all(&frame);
            }
        }
        let _ = coordinator.shutdown(Shutdown::Write);
        Recorded { command: recorded, coordinator: backwards.join().unwrap() }
    });
    (at, relaying)
}

#[test]
fn commands_that_know_the_token_do_their_work_over_tcp() {
    let listening = Listening::start();
    let mut process = FakeProcess::join(&listening.coordinator);
    let (code, status) = listening.json(&["status"]);
    assert_eq!((code, &status["processes"][0]["real_pid"]), (0, &std::process::id().into()));
    assert_eq!(status["network"], format!("tcp:{}", listening.at));
    let doctor = listening.json(&["doctor"]).1.to_string();
    assert!(doctor.contains(&format!("listens at tcp:{}", listening.at)), "{doctor}");

    let checkpoint = start(&mut listening.command(&["checkpoint", "--label", "x"]));
    let (token, hold) = process.expect_checkpoint();
    assert!(!hold);
    process.dump(token);
    let (code, report) = finish(checkpoint);
    assert_eq!((code, &report["label"]), (0, &"x".into()), "{report}");
    assert_eq!(process.receive(), Some(ToProcess::Committed { token, kill: false }));
    drop(process);
    let mut player = spawn_player(&listening.coordinator);
    assert_eq!(listening.json(&["checkpoint", "--kill"]).0, 0);
    assert!(!player.wait().unwrap().success());

    assert_eq!(listening.json(&["coordinator", "--interval", "3600"]).0, 0);
    assert_eq!(listening.interval(), 3_600_000_000_u64);
    let mut player = spawn_player(&listening.coordinator);
    assert_eq!(listening.json(&["kill"]).1["processes"], 1);
    player.wait().unwrap();
    let Listening { mut coordinator, files, at } = listening;
    let mut stop = coordinator.command(&["coordinator", "--stop", "--coord", &format!("tcp:{at}")]);
    assert!(stop.arg("--token-file").arg(files.path().join("token")).status().unwrap().success());
    assert!(coordinator.wait().success());
}

#[test]
fn a_command_with_another_token_is_refused_and_one_without_is_told_what_it_needs() {
    let listening = Listening::start();
    let other = tempfile::tempdir().unwrap();
    let file = token_file(other.path(), "a token of some other length\n", 0o600);
    let mut status = listening.coordinator.command(&["status", "--json", "--coord"]);
    status.arg(format!("tcp:{}", listening.at)).arg("--token-file").arg(file);
    let (code, report) = finish(start(&mut status));
    assert_eq!(code, 4);
    assert!(message(&report).contains("does not take the token in"), "{report}");
    let (code, report) = listening.coordinator.json(&["status", "--coord", &format!("tcp:{}", listening.at)]);
    assert_eq!(code, 2);
    assert!(message(&report).contains("--token-file"), "{report}");
    // Proofs that are only nearly right are dropped without a word.
    for token in ["", "a token of some lengt"] {
        let (stream, theirs) = listening.connect();
        let mut again = stream.try_clone().unwrap();
        assert!(Client::prove((stream, theirs), token).is_none());
        assert_eq!(until_dropped(&mut again), b"");
    }
    assert!(listening.coordinator.log().contains("it does not know the token"));
    listening.coordinator.assert_well();
}

#[test]
fn a_token_file_that_is_not_only_the_users_is_refused_on_both_sides() {
    let coordinator = Coordinator::start();
    let directory = tempfile::tempdir().unwrap();
    let refused = |reason: &str| {
        let file = directory.path().join("token");
        for command in
            [&["status", "--coord", "tcp:127.0.0.1:1"][..], &["coordinator", "--listen", "127.0.0.1:0"]]
        {
            let args = [command, &["--token-file", file.to_str().unwrap()]].concat();
            let (code, report) = coordinator.json(&args);
            assert_eq!(code, 4, "{report}");
            let message = message(&report);
            assert!(
                message.contains(reason) && message.contains(file.to_str().unwrap()),
                "{reason}: {message}"
            );
        }
        assert!(coordinator.json(&["status"]).1["network"].is_null());
    };
    for mode in [0o640, 0o604, 0o620, 0o601] {
        token_file(directory.path(), TOKEN, mode);
        refused(&format!("others may use it (mode {mode:04o})"));
    }
    token_file(directory.path(), "", 0o600);
    refused("and it has 0");
    // White space at the end does not count.
    token_file(directory.path(), "fifteen bytes..\n\n", 0o600);
    refused("and it has 15");
    token_file(directory.path(), &"x".repeat(5000), 0o600);
    refused("16 to 4096 bytes");
    if nix::unistd::geteuid().is_root() {
        chown(token_file(directory.path(), TOKEN, 0o600), Some(12345), None).unwrap();
        refused("it belongs to uid 12345");
    } else {
        eprintln!("not root: a file of another user's is not tried");
    }
    let file = directory.path().join("token");
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("no regular file");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused("no regular file");
}

#[test]
fn a_coordinator_listens_with_a_token_only_and_makes_one_where_there_is_none() {
    let coordinator = Coordinator::start();
    let (code, report) = coordinator.json(&["coordinator", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, 2);
    assert!(message(&report).contains("--token-file"), "{report}");
    assert!(coordinator.json(&["status"]).1["network"].is_null());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("new");
    // Who wants to reach one makes none.
    let file_text = file.to_str().unwrap();
    assert_eq!(coordinator.json(&["status", "--coord", "tcp:127.0.0.1:1", "--token-file", file_text]).0, 4);
    assert!(!file.exists());

    let listen = ["coordinator", "--listen", "127.0.0.1:0", "--token-file", file_text];
    let (code, report) = coordinator.json(&listen);
    assert_eq!(code, 0, "{report}");
    let network = report["network"].as_str().unwrap().to_owned();
    let made = fs::read_to_string(&file).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(made.len() == 65 && made.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()), "{made}");
    let over = ["status", "--coord", &network, "--token-file", file_text];
    assert_eq!(coordinator.json(&over).0, 0);
    // Once more, it listens where it did; with the token that the file has now.
    assert_eq!(coordinator.json(&listen).1["network"], network);
    assert_eq!(fs::read_to_string(&file).unwrap(), made);
    fs::write(&file, "another token, as long").unwrap();
    assert_eq!(coordinator.json(&over).0, 4);
    assert_eq!(coordinator.json(&listen).1["network"], network);
    assert_eq!(coordinator.json(&over).0, 0);
    // Where it cannot listen, it goes on where it did.
    let somebody = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = somebody.local_addr().unwrap().to_string();
    let (code, report) = coordinator.json(&["coordinator", "--listen", &taken, "--token-file", file_text]);
    assert_eq!(code, 4, "{report}");
    assert!(message(&report).contains(&format!("cannot listen at tcp:{taken}")), "{report}");
    assert_eq!(coordinator.json(&over).0, 0);
    // Told to listen elsewhere, it listens there only.
    let mut before = network;
    for at in ["127.0.0.2:0", "[::1]:0"].into_iter().filter(|at| TcpListener::bind(at).is_ok()) {
        let (code, report) = coordinator.json(&["coordinator", "--listen", at, "--token-file", file_text]);
        assert_eq!(code, 0, "{report}");
        let network = report["network"].as_str().unwrap().to_owned();
        let status =
            |network: &str| coordinator.json(&["status", "--coord", network, "--token-file", file_text]);
        assert_eq!((status(&network).0, status(&before).0), (0, 3), "{before}, {network}");
        before = network;
    }
    coordinator.assert_well();
}

#[test]
fn whoever_says_nothing_or_half_of_it_or_garbage_stops_nobody() {
    let listening = Listening::start();
    let mut answer = Vec::from([5; 32]);
    let mut halves = Vec::new();
    for len in 0..ANSWER {
        let (mut stream, theirs) = listening.connect();
        answer.truncate(32);
        answer.extend(derive(TOKEN, "the command knows the token", [&theirs, &[5; 32]]));
        stream.write_all(&answer[..len]).unwrap();
        halves.push(stream);
    }
    listening.coordinator.assert_well();
    assert_eq!(listening.json(&["status"]).0, 0);
    for mut stream in halves {
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(until_dropped(&mut stream), b"");
    }
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\nAccept: text/html, text/plain, */*\r\n\r\n"[..],
        &[0xff; 4096],
        &[0; ANSWER],
    ] {
        let (mut stream, _) = listening.connect();
        // It may be dropped before it has said all of it.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(Shutdown::Write);
        assert_eq!(until_dropped(&mut stream), b"");
    }
    listening.coordinator.assert_well();
    assert_eq!(listening.json(&["status"]).0, 0);
}

#[test]
fn garbage_of_one_that_knows_the_token_is_dropped_and_stops_nobody() {
    let listening = Listening::start();
    let mut waiting = Vec::new();
    for garbage in [&[0xff; 64][..], &[1, 0, 0, 0, 0xff], &[0; 36], &[0, 0, 0x80, 0, 1, 2, 3]] {
        let mut client = listening.client();
        client.stream.write_all(garbage).unwrap();
        waiting.push(client);
    }
    listening.coordinator.assert_well();
    for mut client in waiting {
        // It may have been dropped already.
        let _ = client.stream.shutdown(Shutdown::Write);
        assert_eq!(until_dropped(&mut client.stream), b"");
    }
    // What is sealed and is no request.
    let mut client = listening.client();
    client.send(&[0xff_u8; 8]);
    assert_eq!(until_dropped(&mut client.stream), b"");
    listening.coordinator.assert_well();
}

#[test]
fn a_crowd_that_says_nothing_keeps_nobody_out() {
    let listening = Listening::start();
    let mut crowd: Vec<_> = (0..65).map(|_| listening.connect().0).collect();
    // Who came first makes room, and before its time is over.
    crowd[0].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(until_dropped(&mut crowd[0]), b"");
    let mut process = FakeProcess::join(&listening.coordinator);
    let checkpoint = start(&mut listening.command(&["checkpoint"]));
    let (token, _) = process.expect_checkpoint();
    process.dump(token);
    assert_eq!(finish(checkpoint).0, 0);
}

#[test]
fn one_that_says_it_byte_by_byte_is_dropped_in_time() {
    let listening = Listening::start();
    // Without it the coordinator would be idle as long.
    let _process = FakeProcess::join(&listening.coordinator);
    let (mut stream, _) = listening.connect();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut said = 0;
    // Each waits for what is not said, which takes the time.
    while stream.write_all(&[0]).is_ok() {
        said += 1;
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => break,
        }
    }
    assert!((2..ANSWER).contains(&said), "it was listened to for {said} bytes");
    assert_eq!(listening.json(&["status"]).0, 0);
}

#[test]
fn those_who_prove_nothing_do_not_keep_an_idle_coordinator() {
    let mut listening = Listening::start_with(&["--idle-seconds", "2"]);
    let silent = listening.connect();
    let begun = std::time::Instant::now();
    assert!(listening.coordinator.wait().success());
    // It would be dropped after ten seconds.
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    drop(silent);
}

#[test]
fn a_recorded_conversation_is_worth_nothing() {
    let listening = Listening::start();
    let (at, relaying) = relay(&listening.at, |_, message| vec![message]);
    let mut interval = listening.command_at(&at, &["coordinator", "--interval", "3600"]);
    assert_eq!(finish(start(&mut interval)).0, 0);
    let recorded = relaying.join().unwrap();
    assert_eq!(listening.interval(), 3_600_000_000_u64);
    assert_eq!(listening.json(&["coordinator", "--interval", "0"]).0, 0);

    let (mut stream, _) = listening.connect();
    // It may be dropped before all is said.
    let _ = stream.write_all(&recorded.command.concat());
    assert_eq!(until_dropped(&mut stream), b"");
    assert!(listening.interval().is_null());

    // Nor does a command believe a coordinator that says what another one once said.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let coordinator = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&recorded.coordinator).unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        heard.len()
    });
    let (code, report) = finish(start(&mut listening.command_at(&at, &["kill"])));
    assert_eq!(code, 4);
    assert!(message(&report).contains("does not know the token"), "{report}");
    assert_eq!(coordinator.join().unwrap(), ANSWER, "it was told more than a nonce and a proof");
    listening.coordinator.assert_well();
}

#[test]
fn what_is_no_coordinator_is_not_taken_for_one() {
    let listening = Listening::start();
    for said in [&b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n and more of it"[..], b"stasis over tcp1", b""]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let saying = thread::spawn(move || listener.accept().unwrap().0.write_all(said).unwrap());
        let (code, report) = finish(start(&mut listening.command_at(&at, &["status"])));
        assert_eq!(code, 1);
        assert!(message(&report).contains("does not greet as a coordinator does"), "{report}");
        saying.join().unwrap();
    }
    // Nobody listens there any more.
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, report) = finish(start(&mut listening.command_at(&at, &["status"])));
    assert_eq!(code, 3);
    assert!(message(&report).contains("--listen"), "{report}");
}

/// The command's messages: hello, the interval, the status.
#[test]
fn what_is_changed_repeated_or_missing_on_its_way_is_not_carried_out() {
    type Change = fn(usize, Vec<u8>) -> Vec<Vec<u8>>;
    let another_interval: Change = |number, mut message| {
        if number == 1 {
            message[wire::HEADER + 3] ^= 1;
        }
        vec![message]
    };
    let twice: Change =
        |number, message| if number == 0 { vec![message.clone(), message] } else { vec![message] };
    let without_tag: Change = |number, mut message| {
        if number == 1 {
            let len = message.len();
            message[len - PROOF..].fill(0);
        }
        vec![message]
    };
    let listening = Listening::start();
    for (name, change) in [("changed", another_interval), ("repeated", twice), ("without a tag", without_tag)]
    {
        let (at, relaying) = relay(&listening.at, change);
        let mut interval = listening.command_at(&at, &["coordinator", "--interval", "3600"]);
        let (code, report) = finish(start(&mut interval));
        assert_eq!(code, 1, "{name}: {report}");
        relaying.join().unwrap();
        assert!(listening.interval().is_null(), "{name}");
    }
    // A command waits for the welcome, so the second message without the first has to be played.
    let mut client = Client::prove(listening.connect(), TOKEN).unwrap();
    client.messages[0] = 1;
    client.send(&Hello { version: VERSION, role: Role::Client });
    assert_eq!(until_dropped(&mut client.stream), b"");
    // It writes that before it answers anybody else.
    assert_eq!(listening.json(&["status"]).0, 0);
    assert!(listening.coordinator.log().contains("changed, repeated or lost on its way"));
    listening.coordinator.assert_well();
}

#[test]
fn what_is_about_pids_of_the_host_is_refused_by_name() {
    let listening = Listening::start();
    let mut client = listening.client();
    let refused = [
        ClientRequest::AwaitProcess { real_pid: std::process::id() },
        ClientRequest::AwaitProcesses { processes: 1 },
        ClientRequest::Resume {
            computation: "00000000000000aa".into(),
            checkpoint: "00000000000000aa".into(),
            processes: vec![1],
        },
        ClientRequest::Listen { at: "127.0.0.1:0".into(), token_file: "/etc/shadow".into() },
        ClientRequest::Interval { micros: Some(1_000_000), lasts: IntervalLasts::Computation },
        ClientRequest::Checkpoint {
            kill: false,
            label: None,
            without: vec![std::process::id()],
            outside: Outside::default(),
        },
    ];
    for request in refused {
        client.send(&request);
        let Some(ClientReply::Refused(refusals)) = client.receive() else { panic!("{request:?}") };
        assert!(refusals[0].reason.contains("over TCP"), "{refusals:?}");
    }
    // Nor does a process join.
    let mut process = Client::prove(listening.connect(), TOKEN).unwrap();
    let role = Role::Process { pid: 1, argv: Vec::new(), restarted_from: None, stops: false, epoch: 0 };
    process.send(&Hello { version: VERSION, role });
    assert_eq!(until_dropped(&mut process.stream), b"");
    // It writes that before it answers anybody else.
    assert_eq!(listening.json(&["status"]).0, 0);
    assert!(listening.coordinator.log().contains("a process cannot join over TCP"));

    let host = "elsewhere.invalid";
    for arguments in
        [&["launch", "true"][..], &["restart"], &["top", "--once"], &["coordinator", "--foreground"]]
    {
        let mut command = listening.command_at(&format!("{host}:7779"), arguments);
        let (code, report) = finish(start(command.env("STASIS_STORE", "/nowhere")));
        assert_eq!(code, 4, "{arguments:?}: {report}");
        assert!(message(&report).contains(host), "{report}");
    }
    let (code, report) = listening.json(&["checkpoint", "--on-escape", "warn"]);
    assert_eq!(code, 4);
    assert!(message(&report).contains("tracer of that host"), "{report}");
    listening.coordinator.assert_well();
}

#[test]
fn another_version_over_tcp_is_told_ours_and_dropped() {
    let listening = Listening::start();
    let mut client = Client::prove(listening.connect(), TOKEN).unwrap();
    client.send(&Hello { version: VERSION + 1, role: Role::Client });
    assert!(matches!(client.receive(), Some(ClientReply::Welcome { version: VERSION, .. })));
    assert_eq!(until_dropped(&mut client.stream), b"");
}

#[test]
fn a_client_over_tcp_that_vanishes_leaves_its_checkpoint_to_its_end() {
    let listening = Listening::start();
    let mut process = FakeProcess::join(&listening.coordinator);
    let mut checkpoint = start(&mut listening.command(&["checkpoint"]));
    let (token, _) = process.expect_checkpoint();
    checkpoint.kill().unwrap();
    checkpoint.wait().unwrap();
    process.dump(token);
    assert_eq!(process.receive(), Some(ToProcess::Committed { token, kill: false }));
    assert_eq!(listening.coordinator.store.kept.lock().unwrap().len(), 1);
}

/// proc(5), /proc/net/tcp: timer 2 of an established connection is that of keepalive.
#[test]
fn a_host_that_is_gone_without_a_word_is_noticed_on_both_sides() {
    let listening = Listening::start();
    let mut process = FakeProcess::join(&listening.coordinator);
    let checkpoint = start(&mut listening.command(&["checkpoint"]));
    let (token, _) = process.expect_checkpoint();
    let port: u16 = listening.at.rsplit_once(':').unwrap().1.parse().unwrap();
    let port = format!(":{port:04X}");
    let timers = || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let ours = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let ends = fields[1].ends_with(&port) || fields[2].ends_with(&port);
            (ends && fields[3] == "01").then(|| fields[5].to_owned())
        };
        table.lines().skip(1).filter_map(ours).collect::<Vec<_>>()
    };
    // That what was sent is acknowledged has a timer of its own before.
    let until = std::time::Instant::now() + PATIENCE;
    while !(timers().len() == 2 && timers().iter().all(|timer| timer.starts_with("02:"))) {
        assert!(std::time::Instant::now() < until, "{:?}", timers());
        thread::yield_now();
    }
    process.dump(token);
    assert_eq!(finish(checkpoint).0, 0);
}
