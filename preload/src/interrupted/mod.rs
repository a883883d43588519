//! Making a checkpoint invisible to the system call that it interrupted.
//!
//! The kernel restarts most calls after a handler with SA_RESTART; it does not restart those that
//! signal(7) lists (poll, nanosleep, sigtimedwait...). For these the handler finds EINTR in the result
//! register, and makes the thread call again, with the time that remains. [`table`] says for each call
//! what is done; [`identify`] finds out which one it was.
//!
//! Where a signal of the program's own came meanwhile, the call ends as it would have without us.

pub mod arrays;
pub mod call;
mod expiry;
mod identify;
mod partial;
pub mod remaining;
mod signals;

use core::sync::atomic::Ordering;

use stasis_sys::{process, sync};

pub use self::expiry::{expired, is_expiry};
use self::{
    call::Call,
    identify::{Known, identify},
    remaining::Stopped,
};
use crate::{
    arch::{self, Frame, Stub},
    state,
    threads::Slot,
    unread_events,
    wrappers::table::{self, Entry, Outcome, Time},
};

const EINTR: i64 = -(libc::EINTR as i64);

/// What is known of an interrupted call when the thread parks. On the thread's stack, because its slot may
/// be cleared for the next checkpoint while it is still on its way out of the handler.
pub struct Interruption {
    /// CLOCK_MONOTONIC in nanoseconds.
    at: i64,
    observed: Option<i64>,
    /// Whether it ended recvmmsg(2) after a first message.
    between_messages: bool,
}

/// To be called before the thread parks: takes down what stands in the kernel for the call. `slot` is
/// `None` for a signal that came too late for its checkpoint, or is a timer's.
pub fn suspend(frame: &mut Frame<'_>, slot: Option<&Slot>) -> Interruption {
    if arch::stub_at(frame.pc()).is_some_and(|stub| stub != Stub::InjectedReturned) && slot.is_some() {
        // SAFETY: there, RBX points to a wrapper's record, which only the interrupted thread uses.
        expiry::disarm(unsafe { &mut *(frame.rbx() as *mut Call) });
    }
    let at = slot
        .map_or_else(|| sync::monotonic_ns() as i64, |slot| slot.stopped_at.load(Ordering::Relaxed) as i64);
    let observed = slot.and_then(|slot| identify::observed(frame, slot));
    let done = frame.result();
    let between_messages = done > 0
        && frame.behind_system_call()
        && identify(frame, observed).is_some_and(|known| known.nr == libc::SYS_recvmmsg)
        && partial::ended_between_messages(&frame.arguments(), done as u64);
    Interruption { at, observed, between_messages }
}

/// Completes the interrupted call, or has it made again, as if no signal had come.
pub fn resume(frame: &mut Frame<'_>, interruption: &Interruption, restarted: bool) {
    let at = interruption.at;
    let skipped = if restarted { state::skipped() } else { 0 };
    let (stopped, observed) = (Stopped { at, skipped }, interruption.observed);
    if arch::stub_at(frame.pc()) == Some(Stub::Tracked) {
        // SAFETY: as in `suspend`.
        unsafe { &mut *(frame.rbx() as *mut Call) }.postpone(stopped.skipped);
    }
    let result = frame.result();
    if frame.behind_system_call() {
        if result == EINTR {
            interrupted(frame, observed, stopped);
        } else if result > 0 {
            short(frame, interruption, stopped);
        }
    } else if frame.at_system_call() && result == libc::SYS_restart_syscall {
        // The call was to go on after a stop (SIGSTOP): rt_sigreturn(2) makes the kernel forget how.
        frame.finish(EINTR);
        interrupted(frame, None, stopped);
    } else if frame.at_system_call()
        && result == libc::SYS_read
        && let Some(given) = kept_events(&frame.arguments())
    {
        frame.finish(given);
    } else if frame.at_system_call()
        && let Some(entry) = table::of(result)
    {
        // A handler of the program without SA_RESTART that is due now has the call end (signal(7)).
        let due = signals::handled(frame.mask());
        if due.is_some_and(|action| action.flags & libc::SA_RESTART as u64 == 0)
            && can_be_interrupted(result, &frame.arguments())
        {
            frame.finish(EINTR);
        } else if entry.between.is_some() {
            let was_postponed = arch::stub_at(frame.pc()) == Some(Stub::Tracked);
            let skipped = if was_postponed { 0 } else { skipped };
            // As if it had given EINTR: where the thread goes on is behind the call.
            frame.finish(EINTR);
            let record = identify(frame, Some(result)).and_then(|known| known.record);
            shorten_between(frame, result, &entry, record, Stopped { at, skipped });
            frame.call_again(result);
        }
    }
}

/// What waited for read(2) in an inotify, and came while the thread slept there: the kernel would not find it.
fn kept_events(&[fd, buffer, size, ..]: &[u64; 6]) -> Option<i64> {
    if unread_events::WAITING.load(Ordering::Relaxed) == 0 {
        return None;
    }
    // SAFETY: the buffer of the thread's call.
    unsafe { unread_events::read(fd as i32, buffer as *mut u8, size as usize) }.map(|given| given as i64)
}

/// Takes what is over off the time-out that is looked at between messages. The record of the call, which may be new.
fn shorten_between<'a>(
    frame: &mut Frame<'_>,
    nr: i64,
    entry: &Entry,
    record: Option<&'a mut Call>,
    stopped: Stopped,
) -> Option<&'a mut Call> {
    let Some(position) = entry.between.filter(|&position| frame.arguments()[position] != 0) else {
        return record;
    };
    let record = record.or_else(|| inject(frame, nr))?;
    remaining::shorten_between(&frame.arguments(), position, record, stopped);
    Some(record)
}

/// Whether a handler without SA_RESTART ends the call: not those that give ERESTARTNOINTR.
fn can_be_interrupted(nr: i64, arguments: &[u64; 6]) -> bool {
    let operation = arguments[1] as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    const FUTEX_LOCK_PI2: i32 = 13;
    !(nr == libc::SYS_futex && matches!(operation, libc::FUTEX_LOCK_PI | FUTEX_LOCK_PI2))
}

/// The call gave EINTR.
fn interrupted(frame: &mut Frame<'_>, observed: Option<i64>, stopped: Stopped) {
    let Some(Known { nr, mut record }) = identify(frame, observed) else { return };
    let Some(entry) = table::of(nr) else {
        // Seen in /proc, and known to nobody: what gives EINTR has done nothing.
        if signals::handled(frame.mask()).is_none() {
            frame.call_again(nr);
        }
        return;
    };
    if entry.outcome == Outcome::Finished {
        return frame.set_result(0);
    }
    let arguments = frame.arguments();
    let deadline = remaining::deadline(entry.time, &arguments, record.as_deref_mut(), stopped);
    let record = shorten_between(frame, nr, &entry, record, stopped);
    make_again(frame, nr, &entry, record, deadline);
    // Last, because a signal that comes from here on, until the call is made, is handled before it.
    if signals::interrupts(&entry, &arguments, frame.mask()) {
        if let Some(deadline) = deadline {
            remaining::write_back(entry.time, &arguments, remaining::left(deadline));
        }
        frame.finish(EINTR);
    }
}

/// Has the thread make the call once more, with the time that is left.
fn make_again(
    frame: &mut Frame<'_>,
    nr: i64,
    entry: &Entry,
    record: Option<&mut Call>,
    deadline: Option<i64>,
) {
    let arguments = frame.arguments();
    let Some(deadline) = deadline else {
        if let Time::Sleep { asked, left, .. } = entry.time
            && arguments[left] != 0
            && remaining::counts_processor_time(arguments[0])
        {
            frame.set_argument(asked, arguments[left]);
        }
        return frame.call_again(nr);
    };
    let left = remaining::left(deadline);
    if let Time::Socket { .. } = entry.time
        && let Some(record) = record
    {
        // A time that is over is a timer that fires at once. Only a wrapper can be told that it has.
        if !record.is_pooled() {
            expiry::arm(record, deadline);
        }
        return frame.call_again(nr);
    }
    match record.or_else(|| take_over(frame, nr, entry)) {
        Some(record) => {
            record.deadline = deadline;
            remaining::set(frame, entry.time, left, Some(&mut record.time));
        }
        None => remaining::set(frame, entry.time, left, None),
    }
    frame.call_again(nr);
}

/// The call gave a count: perhaps less than asked for, because the signal came.
fn short(frame: &mut Frame<'_>, interruption: &Interruption, stopped: Stopped) {
    let Some(Known { nr, mut record }) = identify(frame, interruption.observed) else { return };
    let Some(entry) = table::of(nr).filter(|entry| entry.part != table::Part::None) else { return };
    let (done, arguments) = (frame.result() as u64, frame.arguments());
    let goal =
        if interruption.between_messages { Some(u64::MAX) } else { partial::goal(nr, &arguments, done) };
    let Some(goal) = goal.filter(|_| signals::handled(frame.mask()).is_none()) else { return };
    let Some(rest) = partial::rest(entry.part, &arguments, done, goal) else { return };
    let deadline = match &mut record {
        Some(record) if record.started != 0 => {
            if entry.between.is_some() {
                // SO_RCVTIMEO counts anew for each message; nobody knows when the last one came.
                (record.started, record.deadline) = (stopped.at, Call::UNKNOWN);
            }
            remaining::deadline(entry.time, &arguments, Some(record), stopped)
        }
        record if matches!(entry.time, Time::Relative(_)) => {
            remaining::deadline(entry.time, &arguments, record.as_deref_mut(), stopped)
        }
        _ => None,
    };
    if deadline.is_some_and(|deadline| remaining::left(deadline) == 0) {
        return rest.give_up();
    }
    let Some(record) = shorten_between(frame, nr, &entry, record, stopped).or_else(|| inject(frame, nr))
    else {
        return rest.give_up();
    };
    record.done += done;
    for (index, value) in rest.place(record).into_iter().enumerate() {
        frame.set_argument(index, value);
    }
    match (deadline, entry.time) {
        (Some(deadline), Time::Socket { .. }) => expiry::arm(record, deadline),
        (Some(deadline), time) => {
            record.deadline = deadline;
            remaining::set(frame, time, remaining::left(deadline), Some(&mut record.time));
        }
        _ => {}
    }
    frame.call_again(nr);
}

/// Takes a call over that has to be made again with other arguments than the program's, or whose end is to
/// be remembered, if it has to.
fn take_over(frame: &mut Frame<'_>, nr: i64, entry: &Entry) -> Option<&'static mut Call> {
    match entry.time {
        Time::None | Time::Socket { .. } => None,
        _ => inject(frame, nr),
    }
}

/// Has the thread go on in `injected_call`, which comes back to where it stands now.
fn inject(frame: &mut Frame<'_>, nr: i64) -> Option<&'static mut Call> {
    let record = call::claim(process::gettid(), frame.sp())?;
    let tid = record.tid.load(Ordering::Relaxed);
    *record = Call { pc: frame.pc(), rbx: frame.rbx(), sp: frame.sp(), ..Call::new(nr, frame.arguments()) };
    record.tid.store(tid, Ordering::Release);
    frame.set_rbx(&raw const *record as u64);
    frame.set_pc(arch::behind_injection());
    Some(record)
}
