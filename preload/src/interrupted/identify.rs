//! Which system call did the stop signal interrupt?
//!
//! The signal frame holds the arguments but not the number: the result has overwritten it.

use core::sync::atomic::Ordering;

use stasis_sys::process;

use super::call::Call;
use crate::{
    arch::{Frame, Stub, stub_at},
    threads::Slot,
    wrappers::table,
};

/// An interrupted call, and its record if there is one.
pub struct Known<'a> {
    pub nr: i64,
    pub record: Option<&'a mut Call>,
}

/// The call behind whose `syscall` instruction the thread stands.
pub fn identify<'a>(frame: &mut Frame<'_>, observed: Option<i64>) -> Option<Known<'a>> {
    match stub_at(frame.pc()) {
        Some(Stub::TrackedReturned | Stub::InjectedReturned) => {
            // SAFETY: there, RBX points to the record, which the interrupted thread alone uses, and the
            // interrupted thread is this one.
            let record = unsafe { &mut *(frame.rbx() as *mut Call) };
            return Some(Known { nr: record.nr, record: Some(record) });
        }
        Some(Stub::Tracked) => return None,
        None => {}
    }
    // A call that the kernel restarted itself after a stop (restart_syscall(2)) tells no more than that.
    let nr = observed.filter(|&nr| nr != libc::SYS_restart_syscall).or_else(|| decode(frame))?;
    Some(Known { nr, record: None })
}

/// The number that was seen in /proc before the stop signal was sent, if it was seen in this very call.
pub fn observed(frame: &mut Frame<'_>, slot: &Slot) -> Option<i64> {
    let nr = slot.call.load(Ordering::Acquire);
    let same = slot.call_pc.load(Ordering::Relaxed) == frame.pc()
        && slot.call_sp.load(Ordering::Relaxed) == frame.sp()
        && slot.call_arguments.iter().zip(frame.arguments()).all(|(a, b)| a.load(Ordering::Relaxed) == b);
    (nr != u64::MAX && same).then_some(nr as i64)
}

/// How far in front of the `syscall` instruction its number is looked for, in bytes. glibc 2.36 has it
/// 5 to 9 bytes before (INTERNAL_SYSCALL), or in front of the arguments' last moves.
const REACH: usize = 24;

/// The number, read from the instructions in front of the `syscall`: for threads that entered the call
/// between the look at /proc and the signal. Only numbers of calls that sleep are believed.
fn decode(frame: &mut Frame<'_>) -> Option<i64> {
    let mut code = [0u8; REACH];
    let end = frame.pc() as usize - 2;
    // The page in front may not be mapped: the kernel finds out.
    let start = end.saturating_sub(REACH).max((end - 1) & !0xfff);
    let read = process::read_memory(start, &mut code[REACH - (end - start)..]).unwrap_or(0);
    if read != end - start {
        return None;
    }
    from_register(frame, &code).or_else(|| (1..=read).find_map(|back| number_at(&code, REACH - back)))
}

/// The number, where the last instruction moved it to EAX from a register that the call has kept: a loop around a
/// call, or a function that makes any call.
fn from_register(frame: &mut Frame<'_>, code: &[u8; REACH]) -> Option<i64> {
    let (prefix, instruction) = (code[REACH - 3], [code[REACH - 2], code[REACH - 1]]);
    // REX with or without W and the extension bit that goes with the source.
    let is_rex = |extension: u8| prefix & !(1 << 3 | extension) == 0x40;
    let (number, extended) = match instruction {
        // mov %r32,%eax: from the register field (bit 2 of REX extends it).
        [0x89, modrm] if modrm & 0xc7 == 0xc0 => (modrm >> 3 & 7, is_rex(1 << 2) && prefix & 1 << 2 != 0),
        // mov %r32,%eax in its other encoding: from the r/m field (bit 0 of REX).
        [0x8b, modrm] if modrm & 0xf8 == 0xc0 => (modrm & 7, is_rex(1) && prefix & 1 != 0),
        _ => return None,
    };
    let number = number | if extended { 8 } else { 0 };
    if matches!(number, 0 | 1 | 11) {
        return None;
    }
    let nr = i64::from(frame.numbered(number) as i32);
    table::of(nr).map(|_| nr)
}

/// The number that the instruction at `at` puts into EAX.
fn number_at(code: &[u8; REACH], at: usize) -> Option<i64> {
    let nr = match code[at..] {
        // mov $imm32,%eax
        [0xb8, a, b, c, d, ..] => i64::from(i32::from_ne_bytes([a, b, c, d])),
        // xor %eax,%eax, right in front but for moves of arguments
        [0x31, 0xc0, ..] => 0,
        _ => return None,
    };
    table::of(nr).map(|_| nr)
}
