//! What only smaps tells of a mapping. Reading it walks page tables, 16 ms a GiB, so checkpoints that follow each other closely
//! go by what the last one has read, as far as nothing is seen to have changed since.

use stasis_protocol::image::{Backing, Mapping, flag};
use stasis_sys::sync;

use super::mappings::range;
use crate::{procfs, wrappers::advice::changes};

/// More mappings than this are read each time.
const MOST: usize = 2048;

/// For so long at least, and for so many times as long as it took to read it, what was read holds (nanoseconds): changes that nobody
/// sees here (a system call that is made without libc; a mapping made anew at the same place, of the same kind) are late by that.
const HOLDS: i64 = 1_000_000_000;
const HOLDS_TIMES: i64 = 50;

/// What smaps says of a mapping beyond maps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    pub flags: u32,
    pub protection_key: u8,
}

const NONE: Advice = Advice { flags: 0, protection_key: 0 };

#[derive(Clone, Copy)]
struct Known {
    start: u64,
    end: u64,
    /// See [`kind`].
    kind: u64,
    advice: Advice,
}

/// What was read last. It is kept in place: no arena outlives a checkpoint.
pub struct Read {
    known: [Known; MOST],
    len: usize,
    /// See [`changes`].
    changes: u32,
    /// Of CLOCK_MONOTONIC.
    until: i64,
}

/// A mapping and what smaps says of it, in address order.
pub type Advised = alloc::vec::Vec<(u64, u64, Advice)>;

impl Read {
    pub const fn new() -> Self {
        Self {
            known: [Known { start: 0, end: 0, kind: 0, advice: NONE }; MOST],
            len: 0,
            changes: 0,
            until: 0,
        }
    }

    /// In another process, nothing of it holds.
    pub const fn forget(&mut self) {
        self.len = 0;
    }

    /// What smaps says of these mappings, which are in address order: as it was read before, where that holds for all of them,
    /// unless it is to be `exact`.
    pub fn look<'a>(&mut self, exact: bool, mappings: impl Iterator<Item = &'a Mapping> + Clone) -> Advised {
        let (begun, changes) = (sync::monotonic_ns() as i64, changes());
        if !exact
            && changes == Some(self.changes)
            && begun < self.until
            && let Some(known) = self.all(mappings.clone())
        {
            return known;
        }
        let read = read();
        self.len = 0;
        let count = mappings.clone().count();
        if let Some(changes) = changes.filter(|_| count <= MOST) {
            for (known, mapping) in self.known.iter_mut().zip(mappings) {
                let advice = of(&read, mapping);
                *known = Known {
                    start: mapping.start,
                    end: mapping.end,
                    kind: kind(mapping),
                    advice: advice.unwrap_or(NONE),
                };
            }
            let now = sync::monotonic_ns() as i64;
            (self.len, self.changes) = (count, changes);
            self.until = now + HOLDS.max((now - begun).saturating_mul(HOLDS_TIMES));
        }
        read
    }

    /// What is known of all of them; `None` where there is one of which nothing is.
    fn all<'a>(&self, mappings: impl Iterator<Item = &'a Mapping>) -> Option<Advised> {
        let known = &self.known[..self.len];
        mappings
            .map(|mapping| {
                let at = known.binary_search_by_key(&mapping.start, |known| known.start).ok()?;
                let found = &known[at];
                let same = found.end == mapping.end && found.kind == kind(mapping);
                same.then_some((mapping.start, mapping.end, found.advice))
            })
            .collect()
    }
}

/// The one that a mapping lies in.
pub fn of(advised: &[(u64, u64, Advice)], mapping: &Mapping) -> Option<Advice> {
    let at = advised.partition_point(|&(_, end, _)| end <= mapping.start);
    advised.get(at).filter(|&&(start, _, _)| start <= mapping.start).map(|&(_, _, advice)| advice)
}

/// What maps tells of it, in one number.
fn kind(mapping: &Mapping) -> u64 {
    let backing = match &mapping.backing {
        Backing::Anonymous => 0,
        Backing::File(file) => file.inode ^ file.device.rotate_left(32),
        Backing::Object(id) => u64::from(*id).rotate_left(16) ^ 1,
        Backing::Kernel(_) => 2,
    };
    [u64::from(mapping.protection), u64::from(mapping.shared), mapping.offset]
        .iter()
        .fold(backing, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23))
}

fn read() -> Advised {
    let content = procfs::read(c"/proc/thread-self/smaps").unwrap_or_default();
    let mut advised = Advised::new();
    for line in procfs::lines(&content) {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            if let Some((_, _, advice)) = advised.last_mut() {
                advice.flags = vm_flags(flags);
            }
        } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
            if let Some((_, _, advice)) = advised.last_mut() {
                advice.protection_key = procfs::decimal(key.trim_ascii()).unwrap_or(0) as u8;
            }
        } else if let Some((start, end)) = range(line) {
            advised.push((start, end, NONE));
        }
    }
    advised
}

/// VmFlags, proc(5).
fn vm_flags(text: &[u8]) -> u32 {
    procfs::words(text).fold(0, |flags, word| {
        flags
            | match word {
                b"gd" => flag::GROWSDOWN,
                b"lo" => flag::LOCKED,
                b"nr" => flag::NORESERVE,
                b"dc" => flag::DONTFORK,
                b"dd" => flag::DONTDUMP,
                b"wf" => flag::WIPEONFORK,
                b"hg" => flag::HUGEPAGE,
                b"nh" => flag::NOHUGEPAGE,
                b"mg" => flag::MERGEABLE,
                b"sr" => flag::SEQUENTIAL,
                b"rr" => flag::RANDOM,
                b"ht" => flag::HUGETLB,
                b"mw" => flag::MAY_WRITE,
                b"lf" => flag::LOCK_ON_FAULT,
                b"sl" => flag::SEALED,
                b"dp" => flag::DROPPABLE,
                _ => 0,
            }
    })
}
