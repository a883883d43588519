//! The time that an interrupted call has left.

use stasis_sys::{process, socket, sync};

use super::call::Call;
use crate::{arch::Frame, wrappers::table::Time};

/// When the thread was stopped and how far the clock went on while nobody ran, in nanoseconds of
/// CLOCK_MONOTONIC.
#[derive(Clone, Copy)]
pub struct Stopped {
    pub at: i64,
    /// From when all had stopped to the restart; 0 after a mere checkpoint, whose time counts.
    pub skipped: i64,
}

/// What time-outs count as the longest there is: the kernel cuts them off there (KTIME_SEC_MAX).
const LONGEST: i64 = i64::MAX / 4;

/// `seconds` and a part of them, in nanoseconds.
fn ns(seconds: i64, part: i64) -> i64 {
    seconds
        .checked_mul(1_000_000_000)
        .and_then(|ns| ns.checked_add(part))
        .map_or(LONGEST, |ns| ns.min(LONGEST))
}

/// The time that a call was given, in nanoseconds; `None`: none, or for ever.
pub fn given(time: Time, arguments: &[u64; 6]) -> Option<i64> {
    let at = |address: u64| {
        // SAFETY: an argument that the kernel has just read through.
        (address != 0).then(|| unsafe { (address as *const [i64; 2]).read_unaligned() })
    };
    let timespec = |position: usize| at(arguments[position]).map(|[seconds, part]| ns(seconds, part));
    match time {
        Time::None => None,
        Time::Written { at: position, micros } => at(arguments[position])
            .map(|[seconds, part]| ns(seconds, if micros { part * 1000 } else { part })),
        Time::Sleep { asked, clock, .. } => {
            let absolute = clock && arguments[1] & libc::TIMER_ABSTIME as u64 != 0;
            if absolute || clock && counts_processor_time(arguments[0]) { None } else { timespec(asked) }
        }
        Time::Milliseconds(position) => {
            let milliseconds = arguments[position] as i32;
            (milliseconds >= 0).then(|| i64::from(milliseconds) * 1_000_000)
        }
        Time::Relative(position) => timespec(position),
        Time::Futex => {
            let operation = arguments[1] as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
            if operation == libc::FUTEX_WAIT { timespec(3) } else { None }
        }
        Time::Socket { option } => {
            socket::timeout(arguments[0] as i32, option).map(|[seconds, micros]| ns(seconds, micros * 1000))
        }
    }
}

/// Whether a clock does not go on while the thread stands (clock_getcpuclockid(3) makes negative ones).
pub fn counts_processor_time(clock: u64) -> bool {
    let clock = clock as i32;
    clock < 0 || matches!(clock, libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID)
}

/// What the kernel says is left, in nanoseconds, where it says so.
pub fn told(time: Time, arguments: &[u64; 6]) -> Option<i64> {
    match time {
        Time::Written { .. } => given(time, arguments),
        Time::Sleep { left, .. } if arguments[left] != 0 => given(Time::Relative(left), arguments),
        _ => None,
    }
}

/// Whether the kernel writes what is left over what was given.
fn overwrites(time: Time, arguments: &[u64; 6]) -> bool {
    match time {
        Time::Written { .. } => true,
        Time::Sleep { asked, left, .. } => {
            arguments[left] != 0
                && arguments[asked].abs_diff(arguments[left]) < size_of::<libc::timespec>() as u64
        }
        _ => false,
    }
}

/// When the call must end; `None` when it has no time-out. Kept in the record, if there is one.
pub fn deadline(
    time: Time,
    arguments: &[u64; 6],
    record: Option<&mut Call>,
    stopped: Stopped,
) -> Option<i64> {
    let original = record.as_ref().map_or(*arguments, |record| record.arguments);
    let given = given(time, &original)?;
    let known = record.as_ref().map(|record| (record.deadline, record.started));
    let deadline = match known {
        Some((deadline, _)) if deadline != Call::UNKNOWN => deadline,
        Some((_, started)) if started != 0 && started <= stopped.at && !overwrites(time, &original) => {
            started.saturating_add(given)
        }
        // What the kernel writes back has overwritten what was given; it knew that a moment before the stop.
        _ if let Some(left) = told(time, &original) => stopped.at.saturating_add(left),
        _ => stopped.at.saturating_add(given),
    }
    .saturating_add(stopped.skipped);
    if let Some(record) = record {
        record.deadline = deadline;
    }
    Some(deadline)
}

/// What is left until `deadline`, in nanoseconds.
pub fn left(deadline: i64) -> i64 {
    deadline.saturating_sub(sync::monotonic_ns() as i64).max(0)
}

/// Takes what is over off the time-out at `position`, [`Entry::between`].
///
/// [`Entry::between`]: crate::wrappers::table::Entry::between
pub fn shorten_between(arguments: &[u64; 6], position: usize, call: &mut Call, stopped: Stopped) {
    if call.between == Call::UNKNOWN {
        let Some(given) = given(Time::Relative(position), arguments) else { return };
        call.between = stopped.at.saturating_add(given);
    }
    call.between = call.between.saturating_add(stopped.skipped);
    // A wrapper has given the kernel a copy; without one it is the program's own, where the kernel writes, too.
    write_back(Time::Written { at: position, micros: false }, arguments, left(call.between));
}

/// Puts the time that is left into the program's own memory, where the kernel wrote what it knew.
pub fn write_back(time: Time, arguments: &[u64; 6], left: i64) {
    let (address, micros) = match time {
        Time::Written { at, micros } => (arguments[at], micros),
        Time::Sleep { left, .. } => (arguments[left], false),
        _ => return,
    };
    if address != 0 {
        // Not a moment too early.
        let left = if micros { left + 999 } else { left };
        let part = left % 1_000_000_000;
        let value = [left / 1_000_000_000, if micros { part / 1000 } else { part }];
        // The kernel could not write to memory that is only read (select(2) allows it): then neither can
        // this.
        let _ = process::write_memory(address as usize, &value);
    }
}

/// Changes the arguments in the registers to the time that is left. `storage` holds a timespec for the
/// call until it returns.
pub fn set(frame: &mut Frame<'_>, time: Time, left: i64, storage: Option<&mut libc::timespec>) {
    let position = match time {
        Time::None | Time::Socket { .. } => return,
        Time::Written { .. } => return write_back(time, &frame.arguments(), left),
        Time::Milliseconds(position) => {
            // Not a moment too early (poll(2) rounds up, too).
            let milliseconds = (left + 999_999) / 1_000_000;
            return frame.set_argument(position, milliseconds.min(i64::from(i32::MAX)) as u64);
        }
        Time::Sleep { asked, .. } => asked,
        Time::Relative(position) => position,
        Time::Futex => 3,
    };
    if let Some(storage) = storage {
        *storage = sync::timespec(left as u64);
        frame.set_argument(position, &raw const *storage as u64);
    }
}
