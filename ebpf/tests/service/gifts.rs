//! What it hands to ordinary users.

use std::time::{Duration, Instant};

use stasis_protocol::tracer::TURN_MS;

use crate::{NOBODY, Python, client::Client, tracer};

/// Speaks for itself: the service looks at who connected.
const SPEAKER: &str = "
import array, fcntl, os, socket, struct
print('ready', flush=True)
input()
s = socket.socket(socket.AF_UNIX)
s.connect(input())
def receive():
    data, control, _, _ = s.recvmsg(4096, socket.CMSG_SPACE(4))
    return data[4:], [fd for _, _, bytes in control for fd in array.array('i', bytes)]
def ask(request):
    s.sendall(struct.pack('<I', len(request)) + request)
    return receive()
ask(b'\\x02')
def number(n):
    out = b''
    while n > 127:
        out += bytes([n & 127 | 128]); n >>= 7
    return out + bytes([n])
";

fn speaker(uid: u32, rest: &str) -> Python {
    Python::start(uid, &format!("{SPEAKER}{rest}"))
}

#[test]
fn a_tracked_process_of_an_ordinary_user_gets_a_full_userfaultfd() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    // USERFAULTFD_IOC_NEW without UFFD_USER_MODE_ONLY, then UFFDIO_API.
    let rest = "
reply, fds = ask(b'\\x04')
print(reply[0], len(fds), flush=True)
if fds:
    uffd = fcntl.ioctl(fds[0], 0xaa00, os.O_CLOEXEC)
    fcntl.ioctl(uffd, 0xc018aa3f, struct.pack('QQQ', 0xaa, 0, 0))
    print('made', flush=True)
input()
";
    let mut tracked = speaker(NOBODY, rest);
    Client::connect_as(&tracer, NOBODY).register(7, tracked.pid());
    let mut stranger = speaker(NOBODY, rest);
    for python in [&mut tracked, &mut stranger] {
        python.go();
        python.say(&tracer.socket().display().to_string());
    }
    // Done is reply 1, Refused 2.
    assert_eq!(tracked.line(), "1 1");
    assert_eq!(tracked.line(), "made");
    assert_eq!(stranger.line(), "2 0");
}

#[test]
fn an_administrator_can_keep_both_back() {
    let Some((tracer, _directory)) = tracer(&["--no-userfaultfd", "--no-pids"]) else { return };
    let rest = "print(ask(b'\\x04')[0][0], ask(b'\\x05' + number(40000))[0][0], ask(b'\\x06\\x00')[0][0], flush=True)\ninput()";
    let mut tracked = speaker(NOBODY, rest);
    Client::connect_as(&tracer, NOBODY).register(7, tracked.pid());
    tracked.go();
    tracked.say(&tracer.socket().display().to_string());
    assert_eq!(tracked.line(), "2 2 2");
}

#[test]
fn a_tracked_process_of_an_ordinary_user_gets_the_pid_that_it_asks_for() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let rest = "
for wanted in map(int, iter(input, 'enough')):
    reply, _ = ask(b'\\x05' + number(wanted))
    if reply[0] != 1:
        print('refused', flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    ask(b'\\x06\\x00')
    print('got' if pid == wanted else 'another', flush=True)
reply, _ = ask(b'\\x05' + number(os.getpid()))
print(reply[0], ask(b'\\x05' + number(2))[0][0], flush=True)
input()
";
    let mut tracked = speaker(NOBODY, rest);
    let mut stranger =
        speaker(NOBODY, "print(ask(b'\\x05' + number(40000))[0][0], ask(b'\\x06\\x00')[0][0], flush=True)");
    Client::connect_as(&tracer, NOBODY).register(7, tracked.pid());
    for python in [&mut tracked, &mut stranger] {
        python.go();
        python.say(&tracer.socket().display().to_string());
    }
    assert_eq!(stranger.line(), "2 2", "it is not registered");
    // A pid that was somebody's a moment ago is free. Others make processes, too, and one of them may have it first, and
    // keep it: then another is asked for.
    let got = (0..100).any(|_| {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        tracked.say(&child.id().to_string());
        tracked.line() == "got"
    });
    assert!(got, "none of 100");
    tracked.say("enough");
    assert_eq!(tracked.line(), "2 2", "what is in use, and what is the system's, is not given");
}

#[test]
fn who_keeps_its_turn_loses_it_and_the_ids_go_on_where_they_were() {
    let Some((tracer, _directory)) = tracer(&[]) else { return };
    let rest = "
print(ask(b'\\x05' + number(int(input())))[0][0], flush=True)
input()
";
    let last = || -> u32 {
        std::fs::read_to_string("/proc/sys/kernel/ns_last_pid").unwrap().trim().parse().unwrap()
    };
    let mut speakers = [speaker(NOBODY, rest), speaker(NOBODY - 1, rest), speaker(NOBODY, rest)];
    for (python, uid) in speakers.iter_mut().zip([NOBODY, NOBODY - 1, NOBODY]) {
        Client::connect_as(&tracer, uid).register(7, python.pid());
        python.go();
        python.say(&tracer.socket().display().to_string());
    }
    let (before, begun) = (last(), Instant::now());
    // So far from each other that what others make meanwhile does not get there.
    let free = [1000, 6000, 11_000].map(|from| {
        let is_free = |id: &u32| !std::path::Path::new(&format!("/proc/{id}")).exists();
        (from..).find(is_free).unwrap()
    });
    for (python, wanted) in speakers.iter_mut().zip(free) {
        python.say(&wanted.to_string());
    }
    for python in &mut speakers {
        // It never says that its turn is over.
        assert_eq!(python.line(), "1");
    }
    assert!(begun.elapsed() >= Duration::from_millis(2 * TURN_MS), "three have had a turn");
    while last() < before {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} and not {before}", last());
    }
}
