//! Which System V objects the computation uses, and what ends of processes would undo: neither is to be asked of the
//! kernel. Both are noted in memory that all processes share, see [`stasis_protocol::births`].

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use alloc::vec::Vec;

use stasis_protocol::{
    births::{Kind, OBJECTS, SLOTS, UNDOS, of_undo, undo},
    image::SemaphoreUndo,
};
use stasis_sys::{process, system_v};

use crate::births;

struct Shared {
    objects: &'static [AtomicU64],
    undo_names: &'static [AtomicU64],
    undo_values: &'static [AtomicU32],
}

fn shared() -> Option<Shared> {
    let (start, len) = births::range();
    if len == 0 {
        return None;
    }
    let objects = (start + SLOTS * size_of::<u32>()) as *const AtomicU64;
    // SAFETY: inside the mapping, which stays; whoever changes it does so by atomic operations.
    unsafe {
        let undo_names = objects.add(OBJECTS);
        Some(Shared {
            objects: core::slice::from_raw_parts(objects, OBJECTS),
            undo_names: core::slice::from_raw_parts(undo_names, UNDOS),
            undo_values: core::slice::from_raw_parts(undo_names.add(UNDOS).cast(), UNDOS),
        })
    }
}

/// Of the first word: something found no room; something may be to be undone.
const OVERFLOWED: u64 = 1;
const UNDOES: u64 = 2;

const KINDS: [Kind; 3] = [Kind::Segment, Kind::Semaphores, Kind::Messages];

fn name(kind: Kind, id: i32) -> u64 {
    (kind as u64 + 1) << 32 | u64::from(id as u32)
}

/// Notes an object that this process has been given.
pub fn note(kind: Kind, id: i32) {
    let (Some(shared), name) = (shared(), name(kind, id)) else { return };
    let Some((full, slots)) = shared.objects.split_first() else { return };
    if slots.iter().any(|slot| slot.load(Relaxed) == name) {
        return;
    }
    let take = || slots.iter().any(|slot| slot.compare_exchange(0, name, Relaxed, Relaxed).is_ok());
    if !take() {
        forget_removed(slots);
        if !take() {
            full.fetch_or(OVERFLOWED, Relaxed);
        }
    }
}

fn is_there((kind, id): (Kind, i32)) -> bool {
    let gone = |error: stasis_sys::Errno| matches!(error.0, libc::EINVAL | libc::EIDRM);
    match kind {
        Kind::Segment => !system_v::shm_stat(id).is_err_and(gone),
        Kind::Semaphores => !system_v::sem_stat(id).is_err_and(gone),
        Kind::Messages => !system_v::msg_stat(id).is_err_and(gone),
    }
}

fn object(name: u64) -> Option<(Kind, i32)> {
    let kind = (name >> 32).checked_sub(1).and_then(|kind| KINDS.get(kind as usize))?;
    Some((*kind, name as u32 as i32))
}

fn forget_removed(slots: &[AtomicU64]) {
    for slot in slots {
        let name = slot.load(Relaxed);
        if object(name).is_some_and(|object| !is_there(object)) {
            let _ = slot.compare_exchange(name, 0, Relaxed, Relaxed);
        }
    }
}

/// The objects that were noted and not removed since, each once, in an order of their own.
pub fn noted() -> Vec<(Kind, i32)> {
    let Some(shared) = shared() else { return Vec::new() };
    let slots = &shared.objects[1..];
    if slots.iter().all(|slot| slot.load(Relaxed) == 0) {
        return Vec::new();
    }
    forget_removed(slots);
    let mut names: Vec<u64> = slots.iter().map(|slot| slot.load(Relaxed)).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(object).collect()
}

/// Whether something could not be noted.
pub fn has_overflowed() -> bool {
    shared().is_some_and(|shared| shared.objects[0].load(Relaxed) & OVERFLOWED != 0)
}

/// Adds to what this process' end would undo.
pub fn adjust(id: i32, number: u16, adjustment: i32) {
    let Some(shared) = shared() else { return };
    shared.objects[0].fetch_or(UNDOES, Relaxed);
    let pid = process::getpid() as u32;
    let Some(name) = undo(pid, id, number) else {
        shared.objects[0].fetch_or(OVERFLOWED, Relaxed);
        return;
    };
    let add = |index: usize| {
        let _ = shared.undo_values[index]
            .fetch_update(Relaxed, Relaxed, |value| Some((value as i32).wrapping_add(adjustment) as u32));
    };
    if let Some(index) = shared.undo_names.iter().position(|slot| slot.load(Relaxed) == name) {
        return add(index);
    }
    let take = || {
        shared.undo_names.iter().position(|slot| {
            // Another thread may have come first.
            slot.compare_exchange(0, name, Relaxed, Relaxed).map_or_else(|has| has == name, |_| true)
        })
    };
    let found = take().or_else(|| {
        shared.forget_undo(|(pid, ..)| process::kill(pid as i32, 0) == Err(stasis_sys::Errno(libc::ESRCH)));
        take()
    });
    match found {
        Some(index) => add(index),
        None => drop(shared.objects[0].fetch_or(OVERFLOWED, Relaxed)),
    }
}

impl Shared {
    fn forget_undo(&self, is_void: impl Fn((u32, i32, u16)) -> bool) {
        for (slot, value) in self.undo_names.iter().zip(self.undo_values) {
            let name = slot.load(Relaxed);
            if name != 0 && is_void(of_undo(name)) {
                value.store(0, Relaxed);
                let _ = slot.compare_exchange(name, 0, Relaxed, Relaxed);
            }
        }
    }
}

/// Forgets what any process would undo of a set, or of one of its semaphores (semctl(2), SETVAL, SETALL, IPC_RMID).
pub fn forget_set(set: i32, only: Option<u16>) {
    if let Some(shared) = shared() {
        shared.forget_undo(|(_, id, number)| id == set && only.is_none_or(|only| only == number));
    }
}

/// In the child of a fork, whose end undoes nothing: somebody may have had its pid before.
pub fn forget_own_undo() {
    let own = process::getpid() as u32;
    // One word for most: forks must not become slow by this.
    if let Some(shared) = shared().filter(|shared| shared.objects[0].load(Relaxed) & UNDOES != 0) {
        shared.forget_undo(|(pid, ..)| pid == own);
    }
}

/// What this process' end would undo.
pub fn own_undo() -> Vec<SemaphoreUndo> {
    let Some(shared) = shared() else { return Vec::new() };
    let own = process::getpid() as u32;
    let names = shared.undo_names.iter().zip(shared.undo_values);
    names
        .filter_map(|(name, value)| {
            let (name, adjustment) = (name.load(Relaxed), value.load(Relaxed) as i32);
            let (pid, id, number) = of_undo(name);
            (name != 0 && pid == own && adjustment != 0).then_some(SemaphoreUndo { id, number, adjustment })
        })
        .collect()
}

/// Puts back what was noted, in a restarted process.
pub fn note_again(objects: &[(u32, i32)], undo: &[SemaphoreUndo]) {
    for &(kind, id) in objects {
        if let Some(kind) = KINDS.get(kind as usize) {
            note(*kind, id);
        }
    }
    forget_own_undo();
    // What adds to a semaphore comes first, so that nobody waits for ever for what others add: `stasis restart` has set each
    // to what it was before all of this.
    let (adding, taking): (Vec<_>, Vec<_>) =
        undo.iter().copied().partition(|undo: &SemaphoreUndo| undo.adjustment < 0);
    for SemaphoreUndo { id, number, adjustment } in adding.into_iter().chain(taking) {
        // This thread shares its list of adjustments with the program's (clone(2), CLONE_SYSVSEM).
        if let Ok(operation) = i16::try_from(-adjustment)
            && system_v::sem_op(id, number, operation, libc::SEM_UNDO as i16).is_ok()
        {
            adjust(id, number, adjustment);
        }
    }
}
