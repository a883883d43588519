//! What an interruption by the stop signal does to each system call, and what is done about it.
//!
//! The stop signal's handler has SA_RESTART. What a call that sleeps then gives is its own affair
//! (signal(7), "Interruption of system calls"; the names are those of include/linux/errno.h):
//!
//! | outcome | kernel | calls | what is done |
//! |---|---|---|---|
//! | passed | never interrupted, or ERESTARTNOINTR | all that are not named below | nothing |
//! | restarted | ERESTARTSYS | files, pipes, sockets, locks, wait4, mq_*, futex without a time-out | the kernel calls again; EINTR is put back where a handler of the program without SA_RESTART is due |
//! | repeated | ERESTARTNOHAND, ERESTART_RESTARTBLOCK, EINTR | [`Outcome::Repeated`] below | called again with the time that is left |
//! | finished | EINTR, yet the work is done | close | the result is made 0 |
//!
//! The time that is left is known, in this order: from the kernel, where it writes it back
//! ([`Time::Written`]); from a wrapper that noted when the call began ([`super::timed`]); from a
//! checkpoint before, which noted when the call must end; and else, for a raw system call that no
//! wrapper sees, the whole time-out counts from the first checkpoint that met it.
//!
//! recvmmsg(2) is restarted by the kernel, but with the whole of the time-out that is its argument: see
//! [`Entry::between`].
//!
//! A call that has done a part of its work ends with a short count: see [`Part`].
//!
//! Wrapped only for what they carry (the stop signal in a signal set, which glibc 2.36 takes out of
//! sigprocmask(3), pthread_sigmask(3) and sigfillset(3) but of nothing else): sigaction, sigsuspend,
//! sigwait, sigwaitinfo, sigtimedwait, signalfd, ppoll, pselect, epoll_pwait, epoll_pwait2.
//!
//! Known limits: a futex waiter that is woken by FUTEX_WAKE without a change of the word, in the very
//! moment in which it goes back to sleep after a checkpoint, misses the wake-up, as it does after any
//! signal (futex(2) asks callers to change the word first). A handler without SA_RESTART that runs in the
//! microsecond between the stop handler's last look at pending signals and the call that is made again
//! runs before that call, not in it. io_uring is refused elsewhere.

#![allow(non_upper_case_globals, reason = "the names of libc, in patterns")]

use libc::*;

use super::raw;

/// Not in the libc crate (asm/unistd_64.h).
pub const SYS_IO_PGETEVENTS: i64 = 333;

/// How the kernel ends the call for a handler with SA_RESTART.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Restarted,
    Repeated,
    Finished,
}

/// Where a call's time-out is; numbers are positions of arguments.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// None, or a time of a clock.
    None,
    /// A timespec or timeval, in which the kernel leaves the time that is left.
    Written { at: usize, micros: bool },
    /// nanosleep(2): asked, and where the kernel leaves the time that is left, unless null.
    Sleep { asked: usize, left: usize, clock: bool },
    /// Milliseconds, in the register; negative: for ever.
    Milliseconds(usize),
    /// A timespec that the kernel only reads; null: for ever.
    Relative(usize),
    /// As `Relative`, for the operations of futex(2) that take a time left.
    Futex,
    /// The descriptor's SO_RCVTIMEO, or SO_SNDTIMEO.
    Socket { option: i32 },
}

/// The set of signals that a call blocks meanwhile; numbers are positions of arguments.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// The thread's own.
    Own,
    /// Behind a pointer; null: the thread's own.
    At(usize),
    /// pselect6(2): behind a pointer to a pointer.
    Behind(usize),
}

/// How a call tells that it has done a part; numbers are positions of arguments.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// None: the call does all or nothing, or its callers expect less than they asked for.
    None,
    /// A count of bytes, at a buffer that the next part follows.
    Bytes { buffer: usize, len: usize },
    /// A count of bytes; the kernel itself moves the offsets.
    Count { len: usize },
    /// An array of iovec, and its length.
    Vectors { vectors: usize, count: usize },
    /// A struct msghdr that leads to such an array, and the flags.
    Header { header: usize, flags: usize },
    /// An array of struct mmsghdr, and its length.
    Messages { messages: usize, count: usize },
    /// io_getevents(2): how many events at least and at most, and the array for them.
    Events { least: usize, most: usize, events: usize },
}

/// What is known of a system call that sleeps.
#[derive(Clone, Copy)]
pub struct Entry {
    pub outcome: Outcome,
    pub time: Time,
    pub mask: Mask,
    pub part: Part,
    /// The position of a time-out (null: none) that the kernel looks at after each message only; it leaves there
    /// what is left once a message has come (recvmmsg(2), "BUGS").
    pub between: Option<usize>,
}

const fn entry(outcome: Outcome, time: Time) -> Entry {
    Entry { outcome, time, mask: Mask::Own, part: Part::None, between: None }
}

/// The entry of system call `nr`; `None` for those that the stop signal does not interrupt.
#[allow(clippy::wildcard_imports)]
pub const fn of(nr: i64) -> Option<Entry> {
    use Outcome::{Finished, Repeated, Restarted};
    let receive = Time::Socket { option: SO_RCVTIMEO };
    let send = Time::Socket { option: SO_SNDTIMEO };
    let bytes = Part::Bytes { buffer: 1, len: 2 };
    let vectors = Part::Vectors { vectors: 1, count: 2 };
    let header = Part::Header { header: 1, flags: 2 };
    let messages = Part::Messages { messages: 1, count: 2 };
    let events = Part::Events { least: 1, most: 2, events: 3 };
    Some(match nr {
        // Sleeps.
        SYS_nanosleep => entry(Repeated, Time::Sleep { asked: 0, left: 1, clock: false }),
        SYS_clock_nanosleep => entry(Repeated, Time::Sleep { asked: 2, left: 3, clock: true }),
        SYS_pause => entry(Repeated, Time::None),
        SYS_rt_sigsuspend => Entry { mask: Mask::At(0), ..entry(Repeated, Time::None) },
        SYS_rt_sigtimedwait => entry(Repeated, Time::Relative(2)),
        // Waits for descriptors.
        SYS_poll => entry(Repeated, Time::Milliseconds(2)),
        SYS_ppoll => Entry { mask: Mask::At(3), ..entry(Repeated, Time::Written { at: 2, micros: false }) },
        SYS_select => entry(Repeated, Time::Written { at: 4, micros: true }),
        SYS_pselect6 => {
            Entry { mask: Mask::Behind(5), ..entry(Repeated, Time::Written { at: 4, micros: false }) }
        }
        SYS_epoll_wait => entry(Repeated, Time::Milliseconds(3)),
        SYS_epoll_pwait => Entry { mask: Mask::At(4), ..entry(Repeated, Time::Milliseconds(3)) },
        SYS_epoll_pwait2 => Entry { mask: Mask::At(4), ..entry(Repeated, Time::Relative(3)) },
        SYS_io_getevents => Entry { part: events, ..entry(Repeated, Time::Relative(4)) },
        SYS_IO_PGETEVENTS => {
            Entry { mask: Mask::Behind(5), part: events, ..entry(Repeated, Time::Relative(4)) }
        }
        // Waits for other processes and threads.
        SYS_futex => entry(Repeated, Time::Futex),
        SYS_semop => entry(Repeated, Time::None),
        SYS_semtimedop => entry(Repeated, Time::Relative(3)),
        SYS_msgsnd | SYS_msgrcv => entry(Repeated, Time::None),
        SYS_futex_waitv | SYS_wait4 | SYS_waitid | SYS_flock | SYS_fcntl => entry(Restarted, Time::None),
        SYS_mq_timedsend | SYS_mq_timedreceive => entry(Restarted, Time::None),
        SYS_request_key | SYS_keyctl => entry(Restarted, Time::None),
        // Files, pipes, terminals, sockets. On a socket with a time-out, ERESTARTSYS becomes EINTR
        // (include/net/sock.h, `sock_intr_errno`).
        SYS_read => Entry { part: bytes, ..entry(Restarted, receive) },
        SYS_write => Entry { part: bytes, ..entry(Restarted, send) },
        SYS_readv => Entry { part: vectors, ..entry(Restarted, receive) },
        SYS_writev => Entry { part: vectors, ..entry(Restarted, send) },
        SYS_recvfrom => Entry { part: bytes, ..entry(Restarted, receive) },
        SYS_sendto => Entry { part: bytes, ..entry(Restarted, send) },
        SYS_recvmsg => Entry { part: header, ..entry(Restarted, receive) },
        SYS_accept | SYS_accept4 => entry(Restarted, receive),
        SYS_recvmmsg => Entry { part: messages, between: Some(4), ..entry(Restarted, receive) },
        SYS_sendmsg => Entry { part: header, ..entry(Restarted, send) },
        SYS_sendmmsg => Entry { part: messages, ..entry(Restarted, send) },
        SYS_connect => entry(Restarted, send),
        // Without an offset (-1).
        SYS_preadv2 | SYS_pwritev2 => Entry { part: vectors, ..entry(Restarted, Time::None) },
        SYS_sendfile => Entry { part: Part::Count { len: 3 }, ..entry(Restarted, Time::None) },
        SYS_getrandom => Entry { part: Part::Bytes { buffer: 0, len: 1 }, ..entry(Restarted, Time::None) },
        SYS_open | SYS_openat | SYS_openat2 | SYS_creat | SYS_ioctl => entry(Restarted, Time::None),
        SYS_splice | SYS_tee | SYS_vmsplice | SYS_copy_file_range | SYS_pread64 | SYS_pwrite64
        | SYS_preadv | SYS_pwritev | SYS_fsync | SYS_fallocate => entry(Restarted, Time::None),
        SYS_close => entry(Finished, Time::None),
        _ => return None,
    })
}

/// System calls are numbered below.
pub const NUMBERS: usize = 512;

/// For syscall(2): which calls have a time-out that somebody must keep, or a set of signals to block (1), and
/// which make, replace or end a process (2).
pub static SEEN: [u8; NUMBERS] = {
    let mut seen = [0; NUMBERS];
    let mut nr = 0;
    while nr < NUMBERS {
        if let Some(entry) = of(nr as i64)
            && !matches!(entry.time, Time::None)
        {
            seen[nr] = 1;
        }
        nr += 1;
    }
    seen[SYS_rt_sigprocmask as usize] = 1;
    let mut at = 0;
    while at < raw::NUMBERS.len() {
        seen[raw::NUMBERS[at] as usize] = 2;
        at += 1;
    }
    seen
};
