//! Readers of packs, and pack files that wait for them.
//!
//! Whoever was told where pages lie (a restart) opens the packs later and by name. A pack that is given up
//! meanwhile keeps its name until all who may have been told of it are gone. Server or machine may
//! stop first: a pack without a record is removed when the store is opened.

use std::{
    collections::BTreeSet,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
pub struct Leases {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    live: BTreeSet<u64>,
    retired: Vec<Retired>,
}

/// A pack file that nothing refers to any more.
struct Retired {
    /// Leases with lower tickets may have been told of it.
    before: u64,
    path: PathBuf,
}

/// As long as this lives, packs that are in use now, or later, stay where they are.
pub struct Lease {
    leases: Arc<Leases>,
    ticket: u64,
}

impl Leases {
    /// To be taken before places are looked up.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Lease {
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        state.live.insert(ticket);
        Lease { leases: Arc::clone(self), ticket }
    }

    /// Removes files whose packs have no record any more: now, or when the last reader that may have been
    /// told of them is gone. Returns whether they are gone already.
    pub fn retire(&self, paths: impl IntoIterator<Item = PathBuf>) -> bool {
        let mut state = self.lock();
        let before = state.next;
        state.retired.extend(paths.into_iter().map(|path| Retired { before, path }));
        state.remove_free();
        state.retired.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove_free(&mut self) {
        let oldest = self.live.first().copied().unwrap_or(u64::MAX);
        self.retired.retain(|retired| {
            if retired.before > oldest {
                return true;
            }
            match fs::remove_file(&retired.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log!("{} stays until the server starts again: {error}", retired.path.display());
                }
                _ => {}
            }
            false
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.lock();
        state.live.remove(&self.ticket);
        state.remove_free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_with_the_last_reader_that_may_know_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let leases = Arc::new(Leases::default());
        for name in ["a", "b", "c"] {
            fs::write(path(name), "").unwrap();
        }
        assert!(leases.retire([path("a")]) && !path("a").exists());
        let first = leases.take();
        let second = leases.take();
        assert!(!leases.retire([path("b")]));
        let third = leases.take();
        drop(first);
        assert!(path("b").exists());
        drop(second);
        assert!(!path("b").exists(), "the third came later");
        assert!(!leases.retire([path("c"), path("never there")]));
        drop(third);
        assert!(!path("c").exists());
    }
}
