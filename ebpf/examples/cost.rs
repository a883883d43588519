//! What the tracer costs the whole machine: calls of a process that is not tracked, and of one that is, with the
//! tracer attached and without, in turns. `cargo run --release -p stasis-tracer --example cost` (as root).

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use stasis_protocol::{
    tracer::{Hello, Request, VERSION},
    wire,
};

/// How often attached and not are taken in turns.
const ROUNDS: usize = 15;

type Measurement = (&'static str, u32, fn(u32));

const MEASUREMENTS: [Measurement; 4] = [
    ("getpid", 300_000, |count| {
        for _ in 0..count {
            // SAFETY: getpid(2) takes nothing.
            unsafe { libc::syscall(libc::SYS_getpid) };
        }
    }),
    ("fork+exit", 300, |count| {
        for _ in 0..count {
            // SAFETY: there is one thread, and the child does nothing but end.
            unsafe {
                match libc::fork() {
                    0 => libc::_exit(0),
                    child => libc::waitpid(child, std::ptr::null_mut(), 0),
                }
            };
        }
    }),
    ("socket+close", 30_000, |count| {
        for _ in 0..count {
            // SAFETY: integers only; the descriptor is this loop's.
            unsafe { libc::close(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)) };
        }
    }),
    ("connect+close", 1000, |count| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        for _ in 0..count {
            drop(std::net::TcpStream::connect(address).expect("it listens"));
            drop(listener.accept().expect("it was connected to"));
        }
    }),
];

struct Tracer {
    child: Child,
    directory: PathBuf,
}

impl Tracer {
    fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("stasis-cost-{}", std::process::id()));
        let this = std::env::current_exe().expect("the path of this program");
        let service = this.ancestors().nth(2).expect("a directory above").join("stasis-tracer");
        let pin = PathBuf::from("/sys/fs/bpf").join(directory.file_name().expect("a name"));
        let mut child = Command::new(service)
            .arg("--runtime")
            .arg(&directory)
            .arg("--pin")
            .arg(pin)
            .stdout(Stdio::piped())
            .spawn()
            .expect("stasis-tracer is built");
        let output = child.stdout.take().expect("a pipe was asked for");
        BufReader::new(output).read_line(&mut String::new()).expect("it says when it is ready");
        Self { child, directory }
    }

    /// Has this process tracked.
    fn register(&self) {
        let mut stream = UnixStream::connect(self.directory.join("socket")).expect("it listens");
        stream.write_all(&wire::frame(&Hello { version: VERSION }).expect("a frame")).expect("it reads");
        let frame =
            wire::frame(&Request::Register { computation: 1, label: "cost".into() }).expect("a frame");
        // SAFETY: pidfd_open(2) takes integers, and returns a new descriptor.
        let own =
            unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as i32) };
        let descriptors = [own.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let parts = [std::io::IoSlice::new(&frame)];
        sendmsg::<()>(stream.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).expect("it reads");
        let mut answers = [0; 64];
        // The greeting's answer, and the registration's.
        let mut read = 0;
        while read < 5 + 6 {
            read += std::io::Read::read(&mut stream, &mut answers).expect("it answers");
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // SAFETY: kill(2) takes integers; the child is not waited for yet.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The best of some short runs: what else runs on the machine interrupts longer ones.
fn nanoseconds(measurement: &Measurement) -> f64 {
    const RUNS: u32 = 20;
    let (_, count, act) = measurement;
    let count = count / RUNS;
    let times = (0..RUNS).map(|_| {
        let begun = Instant::now();
        act(count);
        begun.elapsed().as_nanos() as f64 / f64::from(count)
    });
    times.fold(f64::INFINITY, f64::min)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut times = vec![[const { Vec::new() }; 3]; MEASUREMENTS.len()];
    for _ in 0..ROUNDS {
        for (measurement, times) in MEASUREMENTS.iter().zip(&mut times) {
            times[0].push(nanoseconds(measurement));
        }
        let tracer = Tracer::start();
        for (measurement, times) in MEASUREMENTS.iter().zip(&mut times) {
            times[1].push(nanoseconds(measurement));
        }
        tracer.register();
        for (measurement, times) in MEASUREMENTS.iter().zip(&mut times) {
            times[2].push(nanoseconds(measurement));
        }
    }
    println!("{:<14} {:>12} {:>10} {:>10}", "", "without, ns", "untracked", "tracked");
    for ((name, ..), [without, untracked, tracked]) in MEASUREMENTS.iter().zip(times) {
        let without = median(without);
        println!(
            "{name:<14} {without:>12.0} {:>9.3}x {:>9.3}x",
            median(untracked) / without,
            median(tracked) / without
        );
    }
}
