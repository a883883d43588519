//! eventfd, timerfd, signalfd: fdinfo tells all of them (proc(5)). And why others cannot be saved.

use alloc::vec::Vec;

use stasis_protocol::{coordinator::Refusal, image::DescriptionKind};
use stasis_sys::{process, sync};

use super::{CLOSE_IT, Open, Table};
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

pub fn timer(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let is_still =
        timespec_of(&open.info, "it_value:") == Some(0) && timespec_of(&open.info, "it_interval:") != Some(0);
    let counted = if table.stopped() && is_still { Some(counted(table, open)?) } else { None };
    let (info, left_ns) =
        counted.as_ref().map_or((&open.info[..], 0), |(info, left_ns)| (&info[..], *left_ns));
    let clock = procfs::field(info, "clockid:").and_then(procfs::signed);
    let ticks = procfs::field(info, "ticks:").and_then(procfs::decimal);
    let flags = procfs::field(info, "settime flags:").and_then(procfs::octal);
    let value = timespec_of(info, "it_value:");
    let interval = timespec_of(info, "it_interval:");
    match (clock, ticks, flags, value, interval) {
        (Some(clock), Some(ticks), Some(flags), Some(value_ns), Some(interval_ns)) => {
            let value_ns = if value_ns == 0 { left_ns } else { value_ns };
            let (clock, flags) = (clock as i32, flags as i32);
            let absolute = flags & libc::TFD_TIMER_ABSTIME != 0
                && matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM)
                && value_ns != 0;
            Ok(DescriptionKind::Timer {
                clock,
                settime_flags: flags,
                value_ns,
                deadline_ns: if absolute {
                    // CLOCK_REALTIME_ALARM shows the same time, but none where there is no clock to wake the machine.
                    sync::clock_ns(libc::CLOCK_REALTIME).saturating_add(value_ns)
                } else {
                    0
                },
                interval_ns,
                ticks,
            })
        }
        _ => unreadable(open),
    }
}

/// What fdinfo says of a timer that stands still, once its periods are counted; and what time it had left before, in nanoseconds
/// (0: it is disarmed).
///
/// A periodic timer that has expired stands still until somebody reads it or asks for its time, which counts the periods since
/// (fs/timerfd.c, do_timerfd_gettime). It may expire once more before fdinfo is read; and one that is due, whose interrupt has not come
/// yet, looks as if it were disarmed. Where setting it going takes longer than its period it does so at each look, but its count
/// goes on.
fn counted(table: &Table<'_>, open: &Open) -> Result<(Vec<u8>, u64), Refusal> {
    /// After so long an interrupt has come, in nanoseconds.
    const DUE: u64 = 1_000_000;
    /// Who is kept from running for long may find a timer due that was armed just before, but not so often.
    const ZEROS: u32 = 64;
    /// A timer of less than some microseconds expires between any two looks.
    const LOOKS: u32 = 8;
    let duplicate = table.duplicate(open)?;
    let begun = sync::monotonic_ns();
    let (mut zeros, mut looks) = (0, 0);
    loop {
        let mut setting = [0u64; 4];
        // SAFETY: timerfd_gettime(2) fills in struct itimerspec, four words.
        let _ = unsafe {
            process::with(libc::SYS_timerfd_gettime, [duplicate.0 as usize, 0, 0, 0, 0, 0], 1, &mut setting)
        };
        let left_ns = setting[2] * 1_000_000_000 + setting[3];
        zeros = if left_ns == 0 { zeros + 1 } else { 0 };
        if left_ns == 0 && (zeros < ZEROS || sync::monotonic_ns() - begun < DUE) {
            continue;
        }
        let path = path!("/proc/self/task/{}/fdinfo/{}", open.at().0, open.at().1);
        let Ok(info) = procfs::read(path.as_c_str()) else { return unreadable(open) };
        looks += 1;
        if left_ns == 0 {
            let ticks = |info: &[u8]| procfs::field(info, "ticks:").and_then(procfs::decimal);
            let is_due = ticks(&info) != ticks(&open.info);
            return Ok((info, is_due.into()));
        }
        if timespec_of(&info, "it_value:") != Some(0) || looks == LOOKS {
            return Ok((info, left_ns));
        }
    }
}

/// A time in a field of fdinfo, in nanoseconds.
fn timespec_of(info: &[u8], key: &str) -> Option<u64> {
    procfs::field(info, key).and_then(timespec)
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
    let kinds: [(&str, &str, &str); 10] = [
        (
            "[io_uring]",
            "an io_uring and what is in flight in it cannot be saved",
            "run the program without io_uring",
        ),
        ("[userfaultfd]", "a userfaultfd serves page faults by its user's rules", CLOSE_IT),
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
