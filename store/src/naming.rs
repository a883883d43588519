//! Naming a block of staged pages on two threads.
//!
//! Naming takes most of the processor time of a dump. One helper thread serves all connections: a
//! block is halved while the helper has nothing to do, and named by its own connection otherwise.
//!
//! Not here: the hash itself (`hash`).

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use crate::{
    hash::{Hash, Page, PageHasher, is_zero},
    staging::Staging,
};

/// Blocks with fewer pages are not worth waking a thread for (some 50 µs).
const WORTH_SHARING: usize = 256;

pub struct Namer {
    hasher: PageHasher,
    helper: mpsc::SyncSender<Job>,
}

struct Job {
    staging: Arc<Staging>,
    pages: Vec<usize>,
    answer: mpsc::SyncSender<Vec<Hash>>,
}

impl Namer {
    /// Starts the helper; it ends with the namer.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start(hasher: PageHasher) -> io::Result<Self> {
        // Without room in the channel: a job is taken only by a helper that waits for one.
        let (helper, jobs) = mpsc::sync_channel::<Job>(0);
        let own = hasher.clone();
        thread::Builder::new().name("namer".into()).spawn(move || {
            for job in jobs {
                let names = name(&own, &job.staging, &job.pages);
                let _ = job.answer.send(names);
            }
        })?;
        Ok(Self { hasher, helper })
    }

    #[must_use]
    pub fn hasher(&self) -> &PageHasher {
        &self.hasher
    }

    /// The names of the pages that start at these offsets of the buffer, in bytes. Pages of zeros have
    /// the name [`PageHasher::zero`]; so have pages outside of the buffer, of which there are none.
    #[must_use]
    pub fn name(&self, staging: &Arc<Staging>, pages: &[usize]) -> Vec<Hash> {
        if pages.len() < WORTH_SHARING {
            return name(&self.hasher, staging, pages);
        }
        let (ours, theirs) = pages.split_at(pages.len() / 2);
        let (answer, answered) = mpsc::sync_channel(1);
        let job = Job { staging: Arc::clone(staging), pages: theirs.to_vec(), answer };
        if self.helper.try_send(job).is_err() {
            return name(&self.hasher, staging, pages);
        }
        let mut names = name(&self.hasher, staging, ours);
        names.extend(answered.recv().unwrap_or_else(|_| name(&self.hasher, staging, theirs)));
        names
    }
}

fn name(hasher: &PageHasher, staging: &Staging, pages: &[usize]) -> Vec<Hash> {
    let mut names = vec![*hasher.zero(); pages.len()];
    let mut filled: Vec<&Page> = Vec::with_capacity(pages.len());
    let mut slots = Vec::with_capacity(pages.len());
    for (slot, at) in pages.iter().enumerate() {
        if let Some([page]) = staging.pages(*at, 1)
            && !is_zero(page)
        {
            filled.push(page);
            slots.push(slot);
        }
    }
    let mut filled_names = vec![[0; 32]; filled.len()];
    hasher.name_pages(&filled, &mut filled_names);
    for (slot, name) in slots.into_iter().zip(filled_names) {
        names[slot] = name;
    }
    names
}
