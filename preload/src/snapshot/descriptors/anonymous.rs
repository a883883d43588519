//! eventfd, timerfd, signalfd: fdinfo tells all of them (proc(5)). And why others cannot be saved.

use stasis_protocol::{coordinator::Refusal, image::DescriptionKind};

use super::{CLOSE_IT, Open};
use crate::procfs;

fn unreadable<T>(open: &Open) -> Result<T, Refusal> {
    open.refuse("fdinfo does not tell its state on this kernel", CLOSE_IT)
}

/// `eventfd-semaphore` is there since Linux 6.5; before, a semaphore is taken for a plain counter.
pub fn event(open: &Open) -> Result<DescriptionKind, Refusal> {
    let Some(count) = open.field("eventfd-count:").and_then(procfs::hex) else { return unreadable(open) };
    let semaphore = open.field("eventfd-semaphore:").is_some_and(|value| value != b"0");
    Ok(DescriptionKind::Event { count, semaphore })
}

pub fn timer(open: &Open) -> Result<DescriptionKind, Refusal> {
    let clock = open.field("clockid:").and_then(procfs::signed);
    let ticks = open.field("ticks:").and_then(procfs::decimal);
    let flags = open.field("settime flags:").and_then(procfs::octal);
    let value = open.field("it_value:").and_then(timespec);
    let interval = open.field("it_interval:").and_then(timespec);
    match (clock, ticks, flags, value, interval) {
        (Some(clock), Some(ticks), Some(flags), Some(value_ns), Some(interval_ns)) => {
            Ok(DescriptionKind::Timer {
                clock: clock as i32,
                settime_flags: flags as i32,
                value_ns,
                interval_ns,
                ticks,
            })
        }
        _ => unreadable(open),
    }
}

/// `(seconds, nanoseconds)`, in nanoseconds.
fn timespec(text: &[u8]) -> Option<u64> {
    let inner = text.strip_prefix(b"(")?.strip_suffix(b")")?;
    let comma = inner.iter().position(|&byte| byte == b',')?;
    let seconds = procfs::decimal(inner[..comma].trim_ascii())?;
    let nanoseconds = procfs::decimal(inner[comma + 1..].trim_ascii())?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

pub fn signal(open: &Open) -> Result<DescriptionKind, Refusal> {
    match open.field("sigmask:").and_then(procfs::hex) {
        Some(mask) => Ok(DescriptionKind::Signal { mask }),
        None => unreadable(open),
    }
}

/// Reason and remedy for a kernel object that has no way to be made again.
pub fn unsupported(name: &str) -> (&'static str, &'static str) {
    let kinds: [(&str, &str, &str); 12] = [
        (
            "[io_uring]",
            "an io_uring and what is in flight in it cannot be saved",
            "run the program without io_uring",
        ),
        ("[userfaultfd]", "a userfaultfd serves page faults by its user's rules", CLOSE_IT),
        ("[pidfd]", "the process that a pidfd stands for is not part of the checkpoint", CLOSE_IT),
        ("pidfd:", "the process that a pidfd stands for is not part of the checkpoint", CLOSE_IT),
        ("[perf_event]", "a performance counter counts this process and this machine only", CLOSE_IT),
        ("bpf", "a BPF object lives in the kernel that it was loaded into", CLOSE_IT),
        ("[bpf", "a BPF object lives in the kernel that it was loaded into", CLOSE_IT),
        ("[fanotify]", "a fanotify group holds permission requests of other processes", CLOSE_IT),
        ("seccomp", "a seccomp listener answers for other processes' system calls", CLOSE_IT),
        ("[landlock", "a Landlock rule set cannot be read back", CLOSE_IT),
        ("kvm", "a virtual machine of KVM cannot be saved", CLOSE_IT),
        ("net:", "a namespace is not part of the checkpoint", CLOSE_IT),
    ];
    kinds
        .iter()
        .find(|(prefix, _, _)| name.starts_with(prefix))
        .map_or(("a kernel object of this kind cannot be saved", CLOSE_IT), |&(_, reason, remedy)| {
            (reason, remedy)
        })
}
