//! What a program has asked of the kernel that nobody can read back, and that a restart would leave out without a word:
//! noted by the wrappers of the calls that ask for it, refused by name.

use alloc::{format, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use stasis_protocol::coordinator::Refusal;
use stasis_sys::process;

/// landlock_restrict_self(2).
pub const LANDLOCK: u32 = 1;
/// A session keyring of its own (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING).
pub const SESSION_KEYS: u32 = 1 << 1;
/// It may not read the processor's clock (PR_SET_TSC): which is put back, but must be known ([`crate::wrappers`]).
pub const CLOCK: u32 = 1 << 2;
/// Seccomp filters (seccomp(2)), which the kernel counts: so that those do not count as a container's.
pub const FILTERS: u32 = 1 << 3;
/// Keys in the keyring of the process, or of a thread.
pub const OWN_KEYS: u32 = 1 << 4;
/// PR_SET_SYSCALL_USER_DISPATCH: the stop handler's own calls would be caught.
pub const DISPATCH: u32 = 1 << 5;
/// A BPF program that chooses among sockets at one address (SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF): sockets with
/// SO_REUSEPORT are refused.
pub const REUSEPORT: u32 = 1 << 6;

/// Those that hold for the child of a fork, too, and for what it executes.
const INHERITED: u32 = LANDLOCK | SESSION_KEYS | CLOCK | FILTERS | REUSEPORT;

static NOTED: AtomicU32 = AtomicU32::new(0);

/// The name of the variable by which a program that is executed learns of them: the number follows.
pub const NAME: &[u8] = b"STASIS_CONFINED=";

/// The entries of the environment that there can be, by their numbers.
static ENTRIES: [[u8; NAME.len() + 3]; INHERITED as usize + 1] = {
    let mut entries = [[0; NAME.len() + 3]; INHERITED as usize + 1];
    let mut number = 0;
    while number < entries.len() {
        let entry = &mut entries[number];
        let mut at = 0;
        while at < NAME.len() {
            entry[at] = NAME[at];
            at += 1;
        }
        entry[at] = b'0' + number as u8 / 10;
        entry[at + 1] = b'0' + number as u8 % 10;
        number += 1;
    }
    entries
};

/// What a program is to be told that this one executes, a zero byte behind it; empty where there is nothing to tell.
pub fn entry() -> &'static [u8] {
    match NOTED.load(Relaxed) & INHERITED {
        0 => &[],
        noted => &ENTRIES[noted as usize][..NAME.len() + 2],
    }
}

/// Takes down what the program was told in its environment.
pub fn inherit(entry: &[u8]) {
    let digits = entry.get(NAME.len()..).unwrap_or_default();
    let number = digits.iter().fold(0u32, |number, digit| {
        number.wrapping_mul(10).wrapping_add(u32::from(digit.wrapping_sub(b'0')))
    });
    note(number & INHERITED);
}

pub fn note(what: u32) {
    NOTED.fetch_or(what, Relaxed);
}

pub fn withdraw(what: u32) {
    NOTED.fetch_and(!what, Relaxed);
}

pub fn has(what: u32) -> bool {
    NOTED.load(Relaxed) & what != 0
}

/// In the child of a fork.
pub fn forget() {
    NOTED.fetch_and(INHERITED, Relaxed);
}

/// Refuses what was noted.
pub fn check(refusals: &mut Vec<Refusal>) {
    for (what, reason, remedy) in [
        (
            LANDLOCK,
            "it is restricted by Landlock (landlock_restrict_self(2)), whose rules the kernel does not tell: restarted, \
             it would be without them",
            "let the program do without its sandbox",
        ),
        (
            SESSION_KEYS,
            "it is in a session keyring of its own (keyctl(2)), whose keys a restart would not bring back",
            "join it before `stasis launch`, and restart from it",
        ),
        (
            OWN_KEYS,
            "it has keys in the keyring of the process or of a thread (add_key(2)), which a restart would not bring back",
            "keep them in the session's keyring, and restart from the same session",
        ),
        (
            DISPATCH,
            "a thread has its system calls dispatched to a handler (PR_SET_SYSCALL_USER_DISPATCH): it could not be stopped",
            "turn that off before the checkpoint",
        ),
    ] {
        if has(what) {
            refusals.push(Refusal {
                what: format!("pid {}", process::getpid()),
                reason: reason.into(),
                remedy: remedy.into(),
            });
        }
    }
}
