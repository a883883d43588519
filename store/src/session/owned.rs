//! Pages that the server itself hands to a session: moved from another pack, or imported.

use std::sync::Arc;

use super::{Session, State};
use crate::{
    error::StoreError,
    hash::{Hash, PAGE_SIZE},
    pack::{
        AlignedPage, Form, Place,
        block::Block,
        writer::{Job, PackFile, Source},
    },
    store::Store,
};

/// The most pages of one write. With the writers' queue full, some 10 MiB of such pages are in memory.
const PAGES_AT_ONCE: usize = 256;

/// A write that is being put together.
struct Draft {
    file: Arc<PackFile>,
    offset: u64,
    pages: Vec<AlignedPage>,
}

impl Session {
    /// Gives every page a place, as [`Session::place`] does; they are being written when this returns.
    ///
    /// # Errors
    /// The session has failed, or there is no room.
    pub fn place_owned(
        self: &Arc<Self>,
        store: &Store,
        pages: Vec<(Hash, AlignedPage)>,
    ) -> Result<Vec<Place>, StoreError> {
        let len = (pages.len() * PAGE_SIZE) as u64;
        self.place_by(store, len, |state, jobs| self.append_owned(store, state, pages, jobs))
    }

    /// Gives places to the pages of blocks, in compressed packs; they are being written when this returns, or when a footer
    /// is. A session that has placed pages otherwise cannot do that.
    ///
    /// # Errors
    /// The session has failed, or there is no room.
    pub fn place_blocks(self: &Arc<Self>, store: &Store, blocks: &[Block]) -> Result<(), StoreError> {
        let len = blocks.iter().map(|block| block.bytes.len() as u64).sum();
        self.place_by(store, len, |state, jobs| self.append_blocks(store, state, blocks, jobs))
    }

    /// Has `append` give places to `len` bytes, and what it asks for written.
    fn place_by<T>(
        &self,
        store: &Store,
        len: u64,
        append: impl FnOnce(&mut State, &mut Vec<Job>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        store.directory().check_room(len)?;
        let mut jobs = Vec::new();
        let placed = {
            let mut state = self.lock();
            state.check()?;
            append(&mut state, &mut jobs)
        };
        // Also after an error: what has a place must be written, or the footer would lie.
        for job in jobs {
            store.writers().submit(job);
        }
        placed.map_err(|error| self.fail(error))
    }

    fn append_blocks(
        self: &Arc<Self>,
        store: &Store,
        state: &mut State,
        blocks: &[Block],
        jobs: &mut Vec<Job>,
    ) -> Result<(), StoreError> {
        for block in blocks {
            if state.packs.last().is_none_or(|pack| pack.room() < block.names.len() as u64) {
                if let Some(full) = state.packs.last_mut() {
                    jobs.extend(self.footer_job(full));
                }
                state.packs.push(store.pool().lease(Form::Compressed)?);
            }
            let Some(pack) = state.packs.last_mut() else { continue };
            let first = pack.append_block(block);
            for (name, slot) in block.names.iter().zip(first.slot..) {
                state.written.insert(*name, Place { slot, ..first });
            }
            let file = Arc::clone(&pack.file);
            if let Some((pages, offset)) = pack.take_blocks() {
                jobs.push(self.owned_job(Draft { file, offset, pages }));
            }
        }
        Ok(())
    }

    fn append_owned(
        self: &Arc<Self>,
        store: &Store,
        state: &mut State,
        pages: Vec<(Hash, AlignedPage)>,
        jobs: &mut Vec<Job>,
    ) -> Result<Vec<Place>, StoreError> {
        let mut places = Vec::with_capacity(pages.len());
        let mut draft: Option<Draft> = None;
        for (name, page) in pages {
            if let Some(place) = state.written.get(&name) {
                places.push(place);
                continue;
            }
            if state.packs.last().is_none_or(|pack| pack.room() == 0) {
                jobs.extend(draft.take().map(|draft| self.owned_job(draft)));
                if let Some(full) = state.packs.last_mut() {
                    jobs.extend(self.footer_job(full));
                }
                match store.pool().lease(Form::Plain) {
                    Ok(pack) => state.packs.push(pack),
                    Err(error) => return Err(error),
                }
            }
            let Some(pack) = state.packs.last_mut() else { continue };
            match &mut draft {
                Some(draft) if draft.pages.len() < PAGES_AT_ONCE => draft.pages.push(page),
                other => {
                    let file = Arc::clone(&pack.file);
                    let fresh = Draft { file, offset: pack.end(), pages: vec![page] };
                    jobs.extend(other.replace(fresh).map(|draft| self.owned_job(draft)));
                }
            }
            let place = pack.append(name);
            state.written.insert(name, place);
            places.push(place);
        }
        jobs.extend(draft.map(|draft| self.owned_job(draft)));
        Ok(places)
    }

    fn owned_job(self: &Arc<Self>, draft: Draft) -> Job {
        let ticket = self.outstanding.begin();
        let session = Arc::clone(self);
        let done = move |result: Result<(), StoreError>| session.written(ticket, result, None);
        Job {
            pack: draft.file,
            offset: draft.offset,
            source: Source::Owned(draft.pages),
            done: Box::new(done),
        }
    }
}
