//! Room for what is left of arrays of iovec that are too long for a [`Call`].

use core::sync::atomic::{AtomicUsize, Ordering};

use stasis_sys::memory;

use super::call::Call;

/// UIO_MAXIOV (linux/uio.h).
pub const LONGEST: usize = 1024;

pub type Array = [[u64; 2]; LONGEST];

const COUNT: usize = 256;

/// Where they are, and whose each is: the address of the call's record; 0: free.
static ROOM: AtomicUsize = AtomicUsize::new(0);
static OWNERS: [AtomicUsize; COUNT] = [const { AtomicUsize::new(0) }; COUNT];

/// Taken, and nobody's yet.
const TAKEN: usize = 1;

/// Where they are: address space is taken when the first one is needed, and memory as they are used.
fn room() -> Option<usize> {
    let room = ROOM.load(Ordering::Acquire);
    if room != 0 {
        return Some(room);
    }
    let len = COUNT * size_of::<Array>();
    let new = memory::reserve(len).ok()?;
    match ROOM.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(new),
        Err(others) => {
            // SAFETY: mapped a moment ago, and told nobody.
            let _ = unsafe { memory::unmap(new, len) };
            Some(others)
        }
    }
}

/// One of the arrays. Given back by its call: when a wrapper has finished, or when the record is in the pool again.
pub struct Room(usize);

impl Room {
    pub fn claim() -> Option<Self> {
        room()?;
        OWNERS.iter().enumerate().find_map(|(index, owner)| {
            let now = owner.load(Ordering::Acquire);
            let free = now == 0 || now != TAKEN && is_left(now, index);
            let taken =
                free && owner.compare_exchange(now, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            taken.then_some(Self(index))
        })
    }

    pub fn give_back(self) {
        OWNERS[self.0].store(0, Ordering::Release);
    }

    /// Has it filled in for a call, whose it is until that has ended. What the call had before may be what it is filled from.
    pub fn keep_for(self, call: &mut Call, fill: impl FnOnce(&mut Array)) -> *mut Array {
        let index = self.0;
        let array = (ROOM.load(Ordering::Acquire) + index * size_of::<Array>()) as *mut Array;
        // SAFETY: in the room, which is never unmapped, and nobody else's.
        fill(unsafe { &mut *array });
        free(call);
        call.array = index as i32;
        OWNERS[index].store(&raw const *call as usize, Ordering::Release);
        array
    }
}

/// Whether a record of the pool does not need the array any more: `injected_call` gives back no more than the record.
fn is_left(owner: usize, index: usize) -> bool {
    super::call::in_pool(owner).is_some_and(|call| !call.is_pooled() || call.array != index as i32)
}

/// To be called when a call has ended.
pub fn free(call: &mut Call) {
    let index = core::mem::replace(&mut call.array, -1);
    if let Some(owner) = usize::try_from(index).ok().and_then(|index| OWNERS.get(index)) {
        owner.store(0, Ordering::Release);
    }
}
