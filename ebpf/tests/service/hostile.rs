//! Clients that mean it no good: they gain nothing, and cost others nothing.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::Command,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stasis_protocol::{
    tracer::{Reply, Request, What},
    wire,
};

use crate::{
    NOBODY, Python,
    client::{Client, as_user, pidfd},
    tracer,
};

const WAITS: &str = "print('ready', flush=True)\ninput()";

#[test]
fn other_users_processes_are_neither_registered_nor_listed_nor_watched() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let script = "import os\nprint('ready', flush=True)\ninput()\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint('done', flush=True)\ninput()";
    let mut roots = Python::start(0, script);
    let mut root = Client::connect(&tracer);
    root.register(7, roots.pid());

    let mut nobody = Client::connect_as(&tracer, NOBODY);
    let refusal = nobody.try_register(7, roots.pid()).unwrap_err();
    assert!(refusal.reason.contains("is not uid 65534's"), "{refusal:?}");
    assert_eq!(nobody.tasks(7), []);
    assert_eq!(nobody.connections(7), []);
    let Reply::Tasks { tasks, .. } = nobody.ask(&Request::Tasks { computation: None }) else { panic!() };
    assert_eq!(tasks, []);

    let mut watcher = Client::connect_as(&tracer, NOBODY);
    watcher.watch(None);
    let mut roots_watcher = Client::connect(&tracer);
    roots_watcher.watch(Some(7));
    roots.go();
    assert_eq!(roots.line(), "done");
    while !matches!(roots_watcher.event().what, What::Exit { .. }) {}
    // What nobody hears first is of a process of its own, though root's came before.
    let own = Python::start(NOBODY, WAITS);
    nobody.register(7, own.pid());
    let owns_pid = own.pid();
    drop(own);
    let event = watcher.event();
    assert_eq!((event.pid, event.owner), (owns_pid, NOBODY), "{event:?}");
    // The same number is another user's another computation.
    assert!(root.tasks(7).iter().all(|task| task.owner == 0 || task.owner == NOBODY));
}

#[test]
fn a_process_of_another_s_computation_stays_in_it() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let own = Python::start(NOBODY, WAITS);
    let mut root = Client::connect(&tracer);
    root.register(7, own.pid());
    let mut nobody = Client::connect_as(&tracer, NOBODY);
    let refusal = nobody.try_register(8, own.pid()).unwrap_err();
    assert!(refusal.reason.contains("another user's computation"), "{refusal:?}");
    assert_eq!(root.tasks(7).len(), 1);
}

#[test]
fn what_is_no_living_process_is_not_registered() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let mut client = Client::connect(&tracer);
    let request = Request::Register { computation: 7, label: String::new() };
    let refused = |reply: Reply, words: &str| match reply {
        Reply::Refused(refusal) => assert!(refusal.reason.contains(words), "{refusal:?}"),
        other => panic!("{other:?}"),
    };
    refused(client.ask(&request), "without a process");
    let null = std::fs::File::open("/dev/null").unwrap();
    refused(client.ask_beside(&request, null.as_fd()), "no pidfd");
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let handle = pidfd(child.id());
    child.kill().unwrap();
    // A zombie, and then nobody.
    let mut ended = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    poll(&mut ended, PollTimeout::NONE).unwrap();
    refused(client.ask_beside(&request, handle.as_fd()), "No such process");
    child.wait().unwrap();
    refused(client.ask_beside(&request, handle.as_fd()), "No such process");
    let without = Request::Register { computation: 0, label: String::new() };
    refused(client.ask_beside(&without, pidfd(std::process::id()).as_fd()), "no computation");
    let long = Request::Register { computation: 7, label: "x".repeat(120) };
    refused(client.ask_beside(&long, pidfd(std::process::id()).as_fd()), "too long a label");
    assert_eq!(client.tasks(7), []);
}

#[test]
fn garbage_ends_its_own_connection_and_no_other() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let mut witness = Client::connect_as(&tracer, NOBODY);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    as_user(NOBODY, || {
        for round in 0..200 {
            let mut stream = UnixStream::connect(tracer.socket()).unwrap();
            let bytes: Vec<u8> = (0..round * 7)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed as u8
                })
                .collect();
            // Half of them after a greeting that is right.
            if round % 2 == 0 {
                let _ = stream.write_all(&[1, 0, 0, 0, 1]);
            }
            let _ = stream.write_all(&bytes);
        }
        // A length that no request has, once those that are gone have been seen to go.
        let mut stream = patiently(|| Client::try_connect(&tracer)).0;
        stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "it is hung up");
        // A request that announces more than it sends, and waits.
        let mut waiting = UnixStream::connect(tracer.socket()).unwrap();
        waiting.write_all(&[100, 0, 0, 0, 1]).unwrap();
        std::mem::forget(waiting);
    });
    assert!(matches!(witness.ask(&Request::State), Reply::State(_)));
}

#[test]
fn who_takes_all_connections_leaves_the_others_theirs() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let hoard = as_user(NOBODY, || {
        let mut hoard: Vec<Client> = Vec::new();
        let refused = loop {
            match Client::try_connect(&tracer) {
                Ok(client) => hoard.push(client),
                Err(error) => break error,
            }
            assert!(hoard.len() < 1000, "there is no limit");
        };
        assert!(refused.to_string().contains("too many connections"), "{refused}");
        hoard
    });
    assert_eq!(hoard.len(), 64);
    assert!(matches!(Client::connect(&tracer).ask(&Request::State), Reply::State(_)));
    drop(hoard);
    // Those that are gone count no more.
    as_user(NOBODY, || patiently(|| Client::try_connect(&tracer)));
}

/// Tries until it succeeds: the service learns in its turn that connections have ended.
fn patiently(mut connect: impl FnMut() -> io::Result<Client>) -> Client {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match connect() {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    }
}

#[test]
fn clients_that_are_gone_or_mute_do_not_keep_it_busy() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    // One that watches and one that floods go, one says nothing.
    let mut watcher = Client::connect(&tracer);
    watcher.watch(None);
    drop(watcher);
    let mut flooder = Client::connect(&tracer);
    let frame = wire::frame(&Request::State).unwrap();
    flooder.0.set_nonblocking(true).unwrap();
    for _ in 0..2000 {
        let _ = flooder.0.write(&frame);
    }
    drop(flooder);
    let _mute = UnixStream::connect(tracer.socket()).unwrap();
    let mut client = Client::connect(&tracer);
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", tracer.pid())).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let ticks: Vec<u64> = fields.filter_map(|word| word.parse().ok()).collect();
        ticks[10] + ticks[11]
    };
    assert!(matches!(client.ask(&Request::State), Reply::State(_)));
    let begun = used();
    std::thread::sleep(Duration::from_secs(1));
    assert!(used() - begun <= 5, "it spins: {} ticks in a second", used() - begun);
}

#[test]
fn a_flood_of_requests_keeps_nobody_else_waiting() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let answer_time = || {
        let mut client = Client::connect(&tracer);
        let begun = Instant::now();
        for _ in 0..20 {
            assert!(matches!(client.ask(&Request::Tasks { computation: None }), Reply::Tasks { .. }));
        }
        begun.elapsed() / 20
    };
    let alone = answer_time();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                as_user(NOBODY, || {
                    let frame = wire::frame(&Request::Connections { computation: 7 }).unwrap();
                    let mut client = Client::connect(&tracer);
                    client.0.set_nonblocking(true).unwrap();
                    // Asks without end, and reads nothing.
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        if client.0.write(&frame).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            });
        }
        let beside = answer_time();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // Two threads that spin take both processors; what is to be excluded is waiting behind a queue.
        assert!(
            beside < alone * 20 + Duration::from_millis(100),
            "{beside:?} beside a flood, {alone:?} alone"
        );
    });
}

#[test]
fn a_watcher_that_reads_late_misses_nothing_and_stops_nobody() {
    const COUNT: usize = 3000;
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let script = format!(
        "import os\nprint('ready', flush=True)\ninput()\nfor i in range({COUNT}):\n if os.fork() == 0: os._exit(0)\n os.wait()\nprint('done', flush=True)\ninput()"
    );
    let mut python = Python::start(0, &script);
    let mut client = Client::connect(&tracer);
    client.register(7, python.pid());
    let mut watcher = Client::connect(&tracer);
    watcher.watch(Some(7));
    python.go();
    assert_eq!(python.line(), "done");
    assert_eq!(client.tasks(7).len(), 1);
    let mut forks = 0;
    while forks < COUNT {
        match watcher.event().what {
            What::Fork { .. } => forks += 1,
            What::Exit { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}
