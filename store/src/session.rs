//! A checkpoint being taken: the dumps of all its processes, under one token.
//!
//! They share packs and the names of what has been written, so that pages common to several
//! processes are written once, and they share the sync that makes them durable. If a write fails, the
//! checkpoint has failed, for all of them: nothing that was written for it is referred to by anything
//! else, and its packs are cut back to what was committed before.
//!
//! Not here: the pages of one process (`dump`), making the checkpoint visible (`store`).

mod owned;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use stasis_protocol::store::{DumpStats, Hash};

use crate::{
    catalog::PackGrowth,
    directory::Directory,
    error::StoreError,
    failpoint::FailPoint,
    hash::PAGE_SIZE,
    leaves::Held,
    manifest::Version,
    nodelog::NodeLog,
    pack::{
        Form, Place,
        open::OpenPack,
        pool::PackPool,
        set::PlaceSet,
        writer::{DraftWrite, Job, MAX_PAGES, Outstanding, PackFile, Source},
    },
    peers::Peers,
    release::Hold,
    staging::Staging,
    store::Store,
    written::{Written, WrittenPages},
};

/// With this much free, in bytes, room may be allocated before it is needed.
const ROOMY: u64 = 1 << 30;

/// A dump that has ended and waits for its checkpoint.
pub struct FinishedDump {
    pub manifest: Hash,
    /// Until the commit.
    pub nodes: Option<NodeLog>,
    /// Leaves that the next checkpoint may change.
    pub leaves: Vec<Version>,
    pub _held: Held,
    pub stats: DumpStats,
}

/// A page that the store may have to write.
pub struct Candidate {
    pub name: Hash,
    /// Where it lies in the staging buffer, in bytes.
    pub staged: usize,
    /// Where it lies in a pack, once that is known.
    pub place: Option<Place>,
}

pub struct Session {
    pub token: u64,
    /// Connections with lower numbers were there when it began.
    born: u64,
    directory: Arc<Directory>,
    outstanding: Outstanding,
    state: Mutex<State>,
    /// Taken by the one who syncs; the others find their pages synced as well.
    syncing: Mutex<()>,
}

struct State {
    /// The last is the one that is appended to.
    packs: Vec<OpenPack>,
    /// What has been written for this checkpoint.
    written: Written,
    /// Why nothing more is taken.
    closed: Option<String>,
    /// Why the checkpoint cannot be made.
    failed: Option<String>,
    finished: Vec<FinishedDump>,
    /// Places of earlier checkpoints' pages that this one may refer to: they are not garbage.
    used: PlaceSet,
    /// Manifests that unchanged pages are taken from.
    bases: Vec<Hash>,
    /// Dumps that have not ended.
    live: usize,
    /// The connections that have dumped.
    dumpers: Vec<u64>,
    touched: Instant,
}

/// What becomes of what a session has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It belongs to a committed checkpoint.
    Commit,
    /// Nothing refers to it: it is cut off the packs.
    Rewind,
    /// Nobody knows: the packs are left as they are and not appended to.
    Abandon,
}

/// What a session has come to, handed to the commit.
pub struct Outcome {
    pub finished: Vec<FinishedDump>,
    pub written: WrittenPages,
    pub grown: Vec<PackGrowth>,
}

impl Session {
    #[must_use]
    pub fn new(token: u64, directory: Arc<Directory>, born: u64) -> Arc<Self> {
        Arc::new(Self {
            token,
            born,
            directory,
            outstanding: Outstanding::default(),
            state: Mutex::new(State {
                packs: Vec::new(),
                written: Written::default(),
                closed: None,
                failed: None,
                finished: Vec::new(),
                used: PlaceSet::default(),
                bases: Vec::new(),
                live: 0,
                dumpers: Vec::new(),
                touched: Instant::now(),
            }),
            syncing: Mutex::new(()),
        })
    }

    /// One more dump takes part.
    ///
    /// # Errors
    /// The checkpoint has failed or is over.
    pub fn join(&self) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.check()?;
        state.live += 1;
        state.touched = Instant::now();
        Ok(())
    }

    /// Notes which connection dumps.
    pub fn note_dumper(&self, number: u64) {
        self.lock().dumpers.push(number);
    }

    /// Whether a dump is under way, or somebody else than `but` is connected who was there when it began and can make
    /// the checkpoint.
    #[must_use]
    pub fn is_awaited(&self, peers: &Peers, but: Option<u64>) -> bool {
        self.lock().live > 0 || peers.has_other(self.born, but)
    }

    /// Whether nobody is left who could make the checkpoint.
    #[must_use]
    pub fn is_orphaned(&self, peers: &Peers) -> bool {
        !self.is_awaited(peers, None) && !self.lock().dumpers.iter().any(|number| peers.is_open(*number))
    }

    /// Notes where pages lie that were found.
    pub fn use_places(&self, places: impl Iterator<Item = Place>) {
        let mut state = self.lock();
        places.for_each(|place| state.used.insert(place, 1));
    }

    /// Notes the base of a dump.
    pub fn use_base(&self, base: Hash) {
        self.lock().bases.push(base);
    }

    /// Notes that pages have moved.
    pub fn follow(&self, moves: &[(Place, Place)]) {
        let mut state = self.lock();
        for (from, to) in moves {
            if state.used.contains(*from) {
                state.used.insert(*to, 1);
            }
        }
    }

    /// Adds to `places` what the session may refer to; returns the bases of its dumps.
    pub fn in_use(&self, places: &mut PlaceSet) -> Vec<Hash> {
        let state = self.lock();
        places.extend(&state.used);
        state.bases.clone()
    }

    /// A dump that has joined is over; returns whether nothing is left of the session.
    pub fn leave(&self, finished: Option<FinishedDump>) -> bool {
        let mut state = self.lock();
        state.live -= 1;
        state.touched = Instant::now();
        state.finished.extend(finished);
        state.live == 0 && state.finished.is_empty()
    }

    /// Whether a dump with this manifest has ended.
    #[must_use]
    pub fn has(&self, manifest: &Hash) -> bool {
        self.lock().finished.iter().any(|dump| dump.manifest == *manifest)
    }

    /// Whether no dump takes part or has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.live == 0 && state.finished.is_empty()
    }

    /// When something last happened, unless a dump is under way.
    #[must_use]
    pub fn quiet_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.live == 0).then_some(state.touched)
    }

    /// Gives every candidate a place: of the same page written before under this token, or a new one,
    /// where it is being written when this returns. `hold` is released when it has been.
    /// Returns how many are being written.
    ///
    /// # Errors
    /// The checkpoint has failed, or there is no room.
    pub fn place(
        self: &Arc<Self>,
        store: &Store,
        candidates: &mut [Candidate],
        staging: &Arc<Staging>,
        hold: &Hold,
    ) -> Result<u64, StoreError> {
        let unknown = candidates.iter().filter(|candidate| candidate.place.is_none()).count();
        if unknown == 0 {
            return Ok(0);
        }
        let bytes = (unknown * PAGE_SIZE) as u64;
        store.directory().check_room(bytes)?;
        let roomy = store.directory().check_room(bytes + ROOMY).is_ok();
        let mut jobs: Vec<Job> = Vec::new();
        let placed = {
            let mut state = self.lock();
            state.check()?;
            if let Some(pack) = state.packs.last_mut().filter(|_| roomy) {
                pack.allocate_ahead();
            }
            self.append(store, &mut state, candidates, staging, hold, &mut jobs)
        };
        // Also after an error: what has a place must be written, or the footer would lie.
        for job in jobs {
            store.writers().submit(job);
        }
        placed.map_err(|error| self.fail(error))
    }

    fn append(
        self: &Arc<Self>,
        store: &Store,
        state: &mut State,
        candidates: &mut [Candidate],
        staging: &Arc<Staging>,
        hold: &Hold,
        jobs: &mut Vec<Job>,
    ) -> Result<u64, StoreError> {
        let mut draft: Option<DraftWrite> = None;
        let mut written = 0;
        for candidate in candidates.iter_mut().filter(|candidate| candidate.place.is_none()) {
            if let Some(place) = state.written.get(&candidate.name) {
                candidate.place = Some(place);
                continue;
            }
            if state.packs.last().is_none_or(|pack| pack.room() == 0) {
                jobs.extend(draft.take().map(|draft| self.job(draft, staging, hold)));
                if let Some(full) = state.packs.last_mut() {
                    jobs.extend(self.footer_job(full));
                }
                state.packs.push(store.pool().lease(Form::Plain)?);
            }
            let Some(pack) = state.packs.last_mut() else { continue };
            match &mut draft {
                Some(draft) if draft.pages < MAX_PAGES => draft.add(candidate.staged),
                other => {
                    let fresh = DraftWrite::new(Arc::clone(&pack.file), pack.end(), candidate.staged);
                    jobs.extend(other.replace(fresh).map(|draft| self.job(draft, staging, hold)));
                }
            }
            let place = pack.append(candidate.name);
            state.written.insert(candidate.name, place);
            candidate.place = Some(place);
            written += 1;
        }
        jobs.extend(draft.map(|draft| self.job(draft, staging, hold)));
        Ok(written)
    }

    /// Makes durable what has been placed so far.
    ///
    /// # Errors
    /// Something could not be written or synced: the checkpoint has failed.
    pub fn make_durable(self: &Arc<Self>, store: &Store) -> Result<(), StoreError> {
        let _turn = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = Vec::new();
        let mut ends: Vec<(Arc<PackFile>, u64)> = Vec::new();
        {
            let mut state = self.lock();
            state.check()?;
            for pack in &mut state.packs {
                jobs.extend(self.footer_job(pack));
                if pack.durable < pack.segment_start() {
                    ends.push((Arc::clone(&pack.file), pack.segment_start()));
                }
            }
        }
        for job in jobs {
            store.writers().submit(job);
        }
        self.outstanding.wait();
        self.lock().check()?;
        for (file, _) in &ends {
            // After a failed sync the kernel may have dropped the pages and forgotten the error
            // (fsync(2)): there is no second try.
            if let Err(error) = file.file.sync_data() {
                return Err(self.fail(StoreError::io("cannot sync", &file.path)(error)));
            }
        }
        FailPoint::PackSynced.hit();
        let mut state = self.lock();
        state.check()?;
        for (file, end) in ends {
            if let Some(pack) = state.packs.iter_mut().find(|pack| pack.file.number == file.number) {
                pack.durable = end;
            }
        }
        Ok(())
    }

    /// The checkpoint has failed; returns the error to tell.
    pub fn fail(&self, error: StoreError) -> StoreError {
        let error = if error.is_full() { self.directory.full() } else { error };
        let text = error.to_string();
        self.lock().failed.get_or_insert(text);
        error
    }

    /// Takes no more, and waits until nothing is being written.
    pub fn close(&self, why: &str) {
        self.lock().closed.get_or_insert_with(|| why.to_owned());
        self.outstanding.wait();
    }

    /// Packs that were written to, and are not where they will be looked for.
    #[must_use]
    pub fn packs_away(&self) -> Vec<(u32, PathBuf)> {
        let state = self.lock();
        let away =
            state.packs.iter().filter(|pack| pack.durable > pack.committed && !pack.file.is_in_place());
        away.map(|pack| (pack.file.number, pack.file.path.clone())).collect()
    }

    /// Of a closed session: what it has come to, unless it has failed.
    ///
    /// # Errors
    /// Why the checkpoint cannot be made.
    pub fn outcome(&self) -> Result<Outcome, StoreError> {
        let mut state = self.lock();
        if let Some(failed) = &state.failed {
            return Err(StoreError::Refused(failed.clone()));
        }
        // What a dump that has not ended has added is about to be cut off: it must not become known.
        if state.packs.iter().any(|pack| pack.end() > pack.durable) {
            let plain = state.packs.iter().filter(|pack| pack.form == Form::Plain);
            let ends: BTreeMap<u32, u64> = plain.map(|pack| (pack.file.number, pack.durable)).collect();
            state.written.retain(|place| ends.get(&place.pack).is_some_and(|end| place.offset() < *end));
        }
        let grown = state
            .packs
            .iter()
            .filter(|pack| pack.durable > pack.committed)
            .map(|pack| PackGrowth {
                number: pack.file.number,
                from: pack.committed,
                to: pack.durable,
                pages: pack.pages,
                form: pack.form,
            })
            .collect();
        Ok(Outcome {
            finished: std::mem::take(&mut state.finished),
            written: std::mem::take(&mut state.written).finish(),
            grown,
        })
    }

    /// Of a closed session: lets go of its packs.
    pub fn end(&self, pool: &PackPool, end: End) {
        let packs = std::mem::take(&mut self.lock().packs);
        for mut pack in packs {
            match end {
                End::Commit => pack.commit(),
                End::Rewind => {}
                End::Abandon => continue,
            }
            if !pack.file.is_in_place() {
                continue;
            }
            match pack.rewind() {
                Ok(()) => pool.give_back(pack),
                // It is not appended to any more; the next start of the server cuts it.
                Err(error) => log!("giving up a pack: {error}"),
            }
        }
    }

    fn footer_job(self: &Arc<Self>, pack: &mut OpenPack) -> Option<Job> {
        let (pages, offset) = pack.close_segment()?;
        let ticket = self.outstanding.begin();
        let session = Arc::clone(self);
        let done = move |result: Result<(), StoreError>| session.written(ticket, result, None);
        Some(Job { pack: Arc::clone(&pack.file), offset, source: Source::Owned(pages), done: Box::new(done) })
    }

    fn job(self: &Arc<Self>, draft: DraftWrite, staging: &Arc<Staging>, hold: &Hold) -> Job {
        let ticket = self.outstanding.begin();
        let session = Arc::clone(self);
        let hold = hold.clone();
        let done = move |result: Result<(), StoreError>| session.written(ticket, result, Some(hold));
        Job {
            pack: draft.file,
            offset: draft.offset,
            source: Source::Staged(Arc::clone(staging), draft.ranges),
            done: Box::new(done),
        }
    }

    fn written(&self, ticket: u64, result: Result<(), StoreError>, hold: Option<Hold>) {
        if let Err(error) = result {
            let error = self.fail(error);
            if let Some(hold) = &hold {
                hold.refuse(&error.to_string());
            }
        }
        self.outstanding.end(ticket);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<(), StoreError> {
        match self.failed.as_ref().or(self.closed.as_ref()) {
            Some(why) => Err(StoreError::Refused(why.clone())),
            None => Ok(()),
        }
    }
}
