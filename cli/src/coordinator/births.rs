//! The list of births, as the coordinator sees it: see [`stasis_protocol::births`].

use std::{
    fs::{self, OpenOptions},
    io,
    num::NonZeroUsize,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use stasis_protocol::births::{LEN, PENDING, SLOTS, SUFFIX};

use crate::address::Address;

pub struct Births {
    path: PathBuf,
    list: NonNull<AtomicU32>,
}

impl Births {
    /// Makes the list that belongs to a socket; one that a coordinator left there is nobody's any more.
    ///
    /// # Errors
    /// When the file cannot be made or mapped.
    pub fn create(address: &Address) -> io::Result<Self> {
        let path = address.beside(SUFFIX);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        file.set_len(LEN as u64)?;
        const LENGTH: NonZeroUsize = NonZeroUsize::new(LEN).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel finds room.
        let list = unsafe { mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self { path, list: list.cast() })
    }

    fn slots(&self) -> &[AtomicU32] {
        // SAFETY: as many are mapped as long as this value lives; processes change them by atomic operations.
        unsafe { std::slice::from_raw_parts(self.list.as_ptr(), SLOTS) }
    }

    /// A process has come, or is gone; whether it was in the list.
    pub fn settle(&self, pid: u32) -> bool {
        let remove =
            |slot: &AtomicU32| slot.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        self.slots().iter().filter(|slot| remove(slot)).count() != 0
    }

    /// The children, by their pids as their parents know them, that have been made and have not come. One whose parent
    /// is still calling fork(2) is in that parent's list of children, if it is there at all.
    pub fn awaited(&self) -> Vec<u32> {
        let pids = self.slots().iter().map(|slot| slot.load(Ordering::Acquire));
        pids.filter(|&pid| pid != 0 && pid & PENDING == 0).collect()
    }
}

impl Drop for Births {
    fn drop(&mut self) {
        // Another coordinator's may be there by now only if this one was taken for dead.
        let _ = fs::remove_file(&self.path);
        // SAFETY: mapped by `create`, and no reference outlives this value.
        let _ = unsafe { munmap(self.list.cast(), LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_awaited_until_it_comes() {
        let directory = tempfile::tempdir().unwrap();
        let address =
            Address::resolve(Some(format!("unix:{}/c", directory.path().display()).as_ref())).unwrap();
        let births = Births::create(&address).unwrap();
        assert!(births.awaited().is_empty());
        births.slots()[7].store(PENDING | 3, Ordering::Relaxed);
        births.slots()[9].store(12, Ordering::Relaxed);
        assert_eq!(births.awaited(), [12]);
        births.settle(12);
        assert!(births.awaited().is_empty());
        drop(births);
        assert!(!address.beside(SUFFIX).exists());
    }
}
