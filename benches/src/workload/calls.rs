//! Loops of one call, through libc as programs make them.

use std::{
    hint::black_box,
    io,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use nix::unistd::pipe;

use crate::shared_page::now;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Call {
    Getpid,
    OpenClose,
    Stat,
    Pipe,
    ClockGettime,
    MallocFree,
    /// poll(2) with a time-out of 0 on a pipe without data
    PollZero,
    /// poll(2) with a time-out of a second on a pipe with data
    PollFinite,
    ReadWrite,
    /// A byte there and back through a socket pair, between two processes
    SocketPingPong,
    ForkExit,
    ForkExec,
    Spawn,
}

impl Call {
    pub const ALL: &[Self] = &[
        Self::Getpid,
        Self::OpenClose,
        Self::Stat,
        Self::Pipe,
        Self::ClockGettime,
        Self::MallocFree,
        Self::PollZero,
        Self::PollFinite,
        Self::ReadWrite,
        Self::SocketPingPong,
        Self::ForkExit,
        Self::ForkExec,
        Self::Spawn,
    ];

    /// As `--only` and the command line know it.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What one turn of the loop does.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Getpid => "getpid",
            Self::OpenClose => "open + close",
            Self::Stat => "stat",
            Self::Pipe => "pipe + close + close",
            Self::ClockGettime => "clock_gettime",
            Self::MallocFree => "malloc + free of 64 bytes and of 4 KiB",
            Self::PollZero => "poll, time-out 0",
            Self::PollFinite => "poll, time-out 1 s, ready",
            Self::ReadWrite => "write + read of a byte through a pipe",
            Self::SocketPingPong => "byte there and back between two processes",
            Self::Spawn => "posix_spawn of true + wait",
            Self::ForkExit => "fork + exit + wait",
            Self::ForkExec => "fork + exec of true + wait",
        }
    }
}

/// Makes calls for so many milliseconds, in batches, and prints the nanoseconds per call of the median batch.
pub fn run(call: Call, millis: u64) -> anyhow::Result<()> {
    let loop_once = prepare(call)?;
    const BATCHES: u64 = 7;
    let batch = (millis * 1_000_000 / BATCHES).max(1);
    // How many turns make a batch; what is used for the first time is used here.
    let (mut turns, mut took) = (1u64, 0);
    while took < batch / 4 {
        turns *= 2;
        took = time(&loop_once, turns)?;
    }
    let turns = (turns as f64 * batch as f64 / took as f64).max(1.0) as u64;
    let mut batches = Vec::new();
    for _ in 0..BATCHES {
        batches.push(time(&loop_once, turns)? as f64 / turns as f64);
    }
    batches.sort_by(f64::total_cmp);
    println!("{}", batches[batches.len() / 2]);
    Ok(())
}

type Turn = Box<dyn Fn() -> io::Result<()>>;

fn time(turn: &Turn, turns: u64) -> anyhow::Result<u64> {
    let begun = now();
    for _ in 0..turns {
        turn()?;
    }
    Ok(now() - begun)
}

fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A pipe, and whether a byte is in it.
fn pipe_with(bytes: &[u8]) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe().context("pipe(2)")?;
    let written = nix::unistd::write(&write, bytes)?;
    ensure!(written == bytes.len(), "a pipe took {written} bytes");
    Ok((read, write))
}

fn prepare(call: Call) -> anyhow::Result<Turn> {
    Ok(match call {
        Call::Getpid => Box::new(|| {
            // SAFETY: takes nothing.
            black_box(unsafe { libc::getpid() });
            Ok(())
        }),
        Call::OpenClose => Box::new(|| {
            // SAFETY: a path that is a string.
            let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
            check(fd)?;
            // SAFETY: opened above, and nobody else's.
            check(unsafe { libc::close(fd) })
        }),
        Call::Stat => Box::new(|| {
            // SAFETY: stat is plain data.
            let mut stat: libc::stat = unsafe { std::mem::zeroed() };
            // SAFETY: a path that is a string; writes one stat.
            check(unsafe { libc::stat(c"/dev/null".as_ptr(), &raw mut stat) })?;
            black_box(&stat);
            Ok(())
        }),
        Call::Pipe => Box::new(|| {
            let mut ends = [0; 2];
            // SAFETY: writes two integers.
            check(unsafe { libc::pipe(ends.as_mut_ptr()) })?;
            for fd in ends {
                // SAFETY: opened above, and nobody else's.
                check(unsafe { libc::close(fd) })?;
            }
            Ok(())
        }),
        Call::ClockGettime => Box::new(|| {
            black_box(now());
            Ok(())
        }),
        Call::MallocFree => Box::new(|| {
            for size in [64, 4096] {
                // SAFETY: what was allocated is freed; free(3) takes null.
                unsafe { libc::free(black_box(libc::malloc(black_box(size)))) };
            }
            Ok(())
        }),
        Call::PollZero => poll(&[], 0)?,
        Call::PollFinite => poll(b"x", 1000)?,
        Call::ReadWrite => {
            let (read, write) = pipe_with(&[])?;
            Box::new(move || {
                let mut byte = [0u8];
                // SAFETY: one byte, which is there.
                check(unsafe { libc::write(write.as_raw_fd(), byte.as_ptr().cast(), 1) } as i64)?;
                // SAFETY: as above.
                check(unsafe { libc::read(read.as_raw_fd(), byte.as_mut_ptr().cast(), 1) } as i64)
            })
        }
        Call::SocketPingPong => ping_pong()?,
        Call::Spawn => Box::new(|| {
            let path = c"/bin/true";
            let argv = [path.as_ptr().cast_mut(), ptr::null_mut()];
            let mut pid = 0;
            // SAFETY: argv is a NULL-terminated array of strings; writes one integer.
            let error = unsafe {
                libc::posix_spawn(
                    &raw mut pid,
                    path.as_ptr(),
                    ptr::null(),
                    ptr::null(),
                    argv.as_ptr(),
                    environ,
                )
            };
            if error == 0 { wait(pid) } else { Err(io::Error::from_raw_os_error(error)) }
        }),
        Call::ForkExit => Box::new(|| {
            // SAFETY: the child ends at once, and this process has one thread.
            match unsafe { libc::fork() } {
                // SAFETY: runs nothing of this process.
                0 => unsafe { libc::_exit(0) },
                pid => wait(pid),
            }
        }),
        Call::ForkExec => {
            let path = c"/bin/true";
            Box::new(move || {
                let argv = [path.as_ptr(), ptr::null()];
                // SAFETY: the child executes another program at once, or ends.
                match unsafe { libc::fork() } {
                    0 => {
                        // SAFETY: argv is a NULL-terminated array of strings.
                        unsafe { libc::execv(path.as_ptr(), argv.as_ptr()) };
                        // SAFETY: runs nothing of this process.
                        unsafe { libc::_exit(127) }
                    }
                    pid => wait(pid),
                }
            })
        }
    })
}

fn poll(content: &'static [u8], timeout: i32) -> anyhow::Result<Turn> {
    let (read, write) = pipe_with(content)?;
    let ready = i32::from(!content.is_empty());
    Ok(Box::new(move || {
        // Both ends stay open: a pipe without a writer is ready.
        black_box(&write);
        let mut polled = libc::pollfd { fd: read.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: an array of one.
        let result = unsafe { libc::poll(&raw mut polled, 1, timeout) };
        check(result)?;
        if result == ready { Ok(()) } else { Err(io::Error::other("poll(2) found something else")) }
    }))
}

unsafe extern "C" {
    static environ: *const *mut libc::c_char;
}

/// A child answers each byte until this process ends.
fn ping_pong() -> anyhow::Result<Turn> {
    let (here, there) = std::os::unix::net::UnixStream::pair().context("socketpair(2)")?;
    // SAFETY: the child makes system calls only, and this process has one thread.
    match unsafe { libc::fork() } {
        0 => {
            drop(here);
            let mut byte = [0u8];
            // SAFETY: one byte, which is there.
            while unsafe {
                libc::read(there.as_raw_fd(), byte.as_mut_ptr().cast(), 1) == 1
                    && libc::write(there.as_raw_fd(), byte.as_ptr().cast(), 1) == 1
            } {}
            // SAFETY: runs nothing of this process.
            unsafe { libc::_exit(0) }
        }
        pid => check(pid).context("fork(2)")?,
    }
    drop(there);
    Ok(Box::new(move || {
        let mut byte = [0u8];
        // SAFETY: one byte, which is there.
        check(unsafe { libc::write(here.as_raw_fd(), byte.as_ptr().cast(), 1) } as i64)?;
        // SAFETY: as above.
        check(unsafe { libc::read(here.as_raw_fd(), byte.as_mut_ptr().cast(), 1) } as i64)
    }))
}

/// Waits for a child that must end with success.
fn wait(pid: libc::pid_t) -> io::Result<()> {
    check(pid)?;
    let mut status = 0;
    // SAFETY: writes one integer.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
    if status == 0 { Ok(()) } else { Err(io::Error::other(format!("a child ended with status {status:#x}"))) }
}
