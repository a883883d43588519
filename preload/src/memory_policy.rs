//! Memory policies (numa(7)): on which nodes of the machine memory is to be, by set_mempolicy(2) for a thread and by mbind(2) for a
//! range. The kernel is asked for them only where the program may have any, which a wrapper notes, or the constructor sees of
//! what it was executed with (numactl(8)).
//!
//! Not here: set_mempolicy_home_node(2), which the kernel tells nobody.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};
use stasis_sys::process;

use crate::{snapshot::mappings::Found, threads::Slot};

/// Nodes that are known of, 64 in each word; a machine that may have more has its policies left alone (EINVAL).
pub const WORDS: usize = 4;

// linux/mempolicy.h
const MPOL_DEFAULT: u32 = 0;
const MPOL_F_ADDR: usize = 1 << 1;
const MPOL_MF_MOVE: usize = 1 << 1;

static MAY_HAVE: AtomicBool = AtomicBool::new(false);

/// Whether the program may have asked for a policy.
pub fn may_have() -> bool {
    MAY_HAVE.load(Relaxed)
}

/// Says that it is about to.
pub fn note() {
    MAY_HAVE.store(true, Relaxed);
}

/// Looks for a policy that the program was executed with.
pub fn look() {
    if Policy::of_this_thread().is_some() {
        note();
    }
}

/// A policy other than the default.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// MPOL_*, and its MPOL_F_*.
    mode: u32,
    nodes: [u64; WORDS],
}

impl Policy {
    fn of_this_thread() -> Option<Self> {
        Self::ask(0, 0)
    }

    /// That of the mapping at an address, if it has one of its own.
    fn of_mapping(address: u64) -> Option<Self> {
        Self::ask(address, MPOL_F_ADDR)
    }

    fn ask(address: u64, flags: usize) -> Option<Self> {
        let (mut mode, mut nodes) = (0u32, [0u64; WORDS]);
        let arguments = [&raw mut mode as usize, 0, most(), address as usize, flags, 0];
        // SAFETY: get_mempolicy(2) fills in an int and as many bits as the words have.
        unsafe { process::with(libc::SYS_get_mempolicy, arguments, 1, &mut nodes) }.ok()?;
        (mode != MPOL_DEFAULT).then_some(Self { mode, nodes })
    }
}

/// The kernel counts one bit more than it reads (mm/mempolicy.c, `get_nodes`).
const fn most() -> usize {
    WORDS * 64 + 1
}

/// A mapping with a policy of its own.
#[derive(Serialize, Deserialize)]
pub struct Range {
    start: u64,
    end: u64,
    policy: Policy,
}

/// Those of the process.
pub fn capture(mappings: &[Found]) -> Vec<Range> {
    if !may_have() {
        return Vec::new();
    }
    mappings
        .iter()
        .filter_map(|Found { mapping, .. }| {
            let policy = Policy::of_mapping(mapping.start)?;
            Some(Range { start: mapping.start, end: mapping.end, policy })
        })
        .collect()
}

/// Gives ranges their policies again, and what is in them its place. Where the machine has no such nodes, they go without.
pub fn put_back(ranges: &[Range]) {
    for Range { start, end, policy } in ranges {
        let mut nodes = policy.nodes;
        let len = end.saturating_sub(*start) as usize;
        let arguments = [*start as usize, len, policy.mode as usize, 0, most(), MPOL_MF_MOVE];
        // SAFETY: mbind(2) reads as many bits as the words have; no content is changed.
        let _ = unsafe { process::with(libc::SYS_mbind, arguments, 3, &mut nodes) };
    }
}

/// What a slot has of its thread's policy; mode 0 is the default.
#[derive(Default)]
pub struct Kept {
    mode: AtomicU32,
    nodes: [AtomicU64; WORDS],
}

/// Called by the thread itself.
pub fn describe(slot: &Slot) {
    let policy = if may_have() { Policy::of_this_thread() } else { None };
    let policy = policy.unwrap_or(Policy { mode: MPOL_DEFAULT, nodes: [0; WORDS] });
    let kept = &slot.memory_policy;
    kept.mode.store(policy.mode, Relaxed);
    for (word, nodes) in kept.nodes.iter().zip(policy.nodes) {
        word.store(nodes, Relaxed);
    }
}

/// The same.
pub fn put_back_own(slot: &Slot) {
    let kept = &slot.memory_policy;
    let mode = kept.mode.load(Relaxed);
    if mode == MPOL_DEFAULT {
        return;
    }
    let mut nodes = kept.nodes.each_ref().map(|word| word.load(Relaxed));
    // SAFETY: set_mempolicy(2) reads as many bits as the words have.
    let _ =
        unsafe { process::with(libc::SYS_set_mempolicy, [mode as usize, 0, most(), 0, 0, 0], 1, &mut nodes) };
}
