//! Children that nobody has in a list, should their parent end at once: see [`stasis_protocol::births`].

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use stasis_protocol::births::{LEN, PENDING, SLOTS, SUFFIX};
use stasis_sys::{file, memory, process};

use crate::link;

/// Where the list is mapped; 0: nowhere.
static LIST: AtomicUsize = AtomicUsize::new(0);

/// The range of addresses that the list takes: its start and length.
pub fn range() -> (usize, usize) {
    match LIST.load(Ordering::Relaxed) {
        0 => (0, 0),
        start => (start, LEN),
    }
}

/// Maps the coordinator's list. Without one, the children of parents that end at once may be missed by a checkpoint that
/// is taken at that moment.
pub fn open() {
    if let Some(list) = map(0) {
        LIST.store(list, Ordering::Release);
    }
}

/// The same in a restarted process, where the one that was mapped is missing: at the same place, since a thread may have
/// been stopped while it forked.
pub fn open_again() {
    let list = LIST.load(Ordering::Acquire);
    if list != 0 && map(list).is_none() {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: nothing of the image is at this place.
        let _ = unsafe { memory::map(list, LEN, protection, flags, -1, 0) };
    }
}

/// Maps the list, at an address or where the kernel finds room (0).
fn map(place: usize) -> Option<usize> {
    let address = core::str::from_utf8(link::coordinator::address()).ok()?;
    let path = path!("{address}{SUFFIX}");
    let fd = file::open(path.as_c_str(), libc::O_RDWR | libc::O_CLOEXEC | libc::O_NOFOLLOW, 0).ok()?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | if place == 0 { 0 } else { libc::MAP_FIXED };
    // SAFETY: where there is room, or where the list was and nothing of the image is.
    let list = unsafe { memory::map(place, LEN, protection, flags, fd, 0) };
    let _ = file::close(fd);
    list.ok()
}

/// A fork that is about to be.
pub struct Birth(Option<(&'static AtomicU32, u32)>);

/// Where this process stands in the list: the word's address; 0: nowhere.
static OWN: AtomicUsize = AtomicUsize::new(0);

/// Whether an address is one of the list's. A checkpoint may have been taken since it was found, and this may be the process
/// that was restarted from it: the list that it had is not mapped any more.
fn is_listed(address: usize) -> bool {
    let (start, len) = range();
    (start..start + len).contains(&address)
}

/// This process is about to end.
pub fn leave() {
    let own = OWN.load(Ordering::Acquire);
    if is_listed(own) {
        // SAFETY: inside the mapping, which stays.
        let slot = unsafe { &*(own as *const AtomicU32) };
        let _ = slot.compare_exchange(process::getpid() as u32, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl Birth {
    /// Before the fork. Where the list is full the child goes without.
    pub fn announce() -> Self {
        /// A list that is full nearby is full of children of this thread that live.
        const TRIES: usize = 64;
        let list = LIST.load(Ordering::Acquire);
        if list == 0 {
            return Self(None);
        }
        let tid = process::gettid() as u32;
        let pending = PENDING | tid;
        let free = (0..TRIES).find_map(|attempt| {
            let index = (tid as usize).wrapping_mul(0x9e37_79b1).wrapping_add(attempt) % SLOTS;
            // SAFETY: inside the mapping, which stays.
            let slot = unsafe { &*(list as *const AtomicU32).add(index) };
            let there = slot.load(Ordering::Relaxed);
            // One that was killed could not take itself off.
            let is_free = there == 0 || there & PENDING == 0 && !process::exists(there as i32);
            let take = || slot.compare_exchange(there, pending, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            (is_free && take()).then_some(slot)
        });
        Self(free.map(|slot| (slot, pending)))
    }

    /// Whether the child is in the list.
    pub fn is_listed(&self) -> bool {
        self.0.is_some()
    }

    /// After it, in both processes: `pid` is what it gave. Whoever comes first tells; the child may have said hello already,
    /// or ended, when its parent comes to it.
    pub fn tell(self, pid: i32) {
        let own = if pid == 0 { self.0.map_or(0, |(slot, _)| slot.as_ptr() as usize) } else { 0 };
        if pid == 0 {
            OWN.store(own, Ordering::Release);
        }
        if let Some((slot, pending)) = self.0
            && is_listed(slot.as_ptr() as usize)
        {
            let child = if pid == 0 { process::getpid() } else { pid.max(0) };
            let _ = slot.compare_exchange(pending, child as u32, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}
