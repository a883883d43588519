//! What the store knows of committed checkpoints and of where pages lie.
//!
//! A commit is one synced batch: nodes, pack records, checkpoint record. The names of its new pages
//! are at once known from memory ([`Catalog::places`]) and are put into the index afterwards, by a
//! thread of its own; what a crash leaves out is read back from the footers of the packs.
//!
//! Not here: how pages get into packs (`session`); pages that move (`moves`).

mod damage;
mod moves;
mod working_sets;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, mpsc},
    thread::{self, JoinHandle},
    time::{SystemTime, UNIX_EPOCH},
};

use stasis_protocol::store::{CheckpointDraft, CheckpointRecord};

use crate::{
    error::{StoreError, hex},
    failpoint::FailPoint,
    hash::Hash,
    index::{Changes, Index, PackRecord},
    manifest::Node,
    names::NameMap,
    pack::{Form, Place, footer::Footer, reader::PackReader, set::PlaceSet, state::PackStates},
    written::{AT_ONCE, WrittenPages},
};

pub use moves::Moves;

/// Index entries per batch: small enough that commits need not wait for long.
const ENTRIES_AT_ONCE: usize = 4096;

/// Index entries that may be lost in a crash, to be read again from the packs: 32 MiB of footers.
const UNFLUSHED: usize = 1 << 20;

/// Names of committed pages that may wait in memory for the index: those of two large checkpoints, 20 MiB. Of more, the index
/// learns from the footers, and until then they may be written twice.
const RECENT: usize = 4 * AT_ONCE;

/// A pack that a checkpoint has added to; lengths in bytes.
#[derive(Clone, Copy, Debug)]
pub struct PackGrowth {
    pub number: u32,
    pub from: u64,
    pub to: u64,
    pub pages: u64,
    pub form: Form,
}

/// What is known of where pages lie.
type Places = Result<Vec<Option<Place>>, StoreError>;

/// The committed state of a store.
pub struct Catalog {
    index: Index,
    /// Also taken for the whole of a commit.
    records: Mutex<BTreeMap<u32, PackRecord>>,
    /// The same packs, for those who must not wait for a commit.
    states: RwLock<PackStates>,
    /// Pages that are not what was written.
    damaged: RwLock<PlaceSet>,
    /// Those of them that the disk does not give, which is not kept. Taken after `damaged`.
    unreadable: Mutex<PlaceSet>,
    /// Names of committed pages that are not in the index yet.
    recent: RwLock<Vec<Arc<NameMap>>>,
}

/// What is to be put into the index.
enum Task {
    /// The pages of a checkpoint just committed.
    Committed { written: WrittenPages, grown: Vec<PackGrowth> },
    /// The pages of packs whose entries a crash has left out.
    Recover { grown: Vec<PackGrowth> },
    /// Pages that have moved. Answered when that, and all before, is durable.
    Moved { moves: Moves, done: mpsc::SyncSender<Result<(), StoreError>> },
}

/// What is in the index and may be lost in a crash.
#[derive(Default)]
struct Added {
    entries: usize,
    grown: Vec<PackGrowth>,
}

/// The thread that fills the index.
pub struct Indexer {
    catalog: Arc<Catalog>,
    queue: Mutex<Option<mpsc::Sender<Task>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Catalog {
    /// # Errors
    /// The index cannot be read.
    pub fn new(index: Index) -> Result<Self, StoreError> {
        let records: BTreeMap<u32, PackRecord> = index.packs()?.into_iter().collect();
        let mut states = PackStates::default();
        states.add(records.iter().map(|(number, record)| (*number, record.form)));
        let mut damaged = PlaceSet::default();
        for (pack, slot, count) in index.damaged()? {
            damaged.insert(Place { pack, slot }, count as usize);
        }
        let (records, states) = (Mutex::new(records), RwLock::new(states));
        Ok(Self {
            index,
            records,
            states,
            damaged: RwLock::new(damaged),
            unreadable: Mutex::default(),
            recent: RwLock::default(),
        })
    }

    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The packs that belong to committed checkpoints.
    #[must_use]
    pub fn packs(&self) -> BTreeMap<u32, PackRecord> {
        self.records().clone()
    }

    /// What is known of a pack; `None`: it is not committed yet, or given up.
    #[must_use]
    pub fn pack(&self, pack: u32) -> Option<PackRecord> {
        self.records().get(&pack).copied()
    }

    /// The places of the pages called `names`, which must be sorted, for who is going to refer to them.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn places(&self, names: &[Hash]) -> Result<Vec<Option<Place>>, StoreError> {
        self.places_in(names, Index::places_if_whole, PackStates::is_staying)
    }

    /// The same for who reads them now.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn places_to_read(&self, names: &[Hash]) -> Result<Vec<Option<Place>>, StoreError> {
        self.places_in(names, Index::places, |states, place| states.is_known(place.pack))
    }

    /// The index may name packs that are gone: a crash may have brought such entries back.
    fn places_in(
        &self,
        names: &[Hash],
        look_up: fn(&Index, &[Hash]) -> Places,
        accept: fn(&PackStates, Place) -> bool,
    ) -> Result<Vec<Option<Place>>, StoreError> {
        // Recent names first: they leave the table only after they are in the index.
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut places = look_up(&self.index, names)?;
        let (states, damaged) = (self.states(), self.damaged());
        for (name, place) in names.iter().zip(&mut places) {
            *place = place.filter(|place| accept(&states, *place) && !damaged.contains(*place));
            if place.is_none() {
                // A page that was damaged may have been stored again, by a later checkpoint.
                let whole = |place: &Place| !damaged.contains(*place);
                *place = recent.iter().find_map(|table| table.get(name).copied().filter(whole));
            }
        }
        Ok(places)
    }

    /// Makes a checkpoint: durable when this returns.
    ///
    /// # Errors
    /// It could not be written; then there is no such checkpoint.
    fn commit(
        &self,
        draft: CheckpointDraft,
        nodes: Vec<Node>,
        grown: &[PackGrowth],
    ) -> Result<CheckpointRecord, StoreError> {
        let taken = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut records = self.records();
        let sequence = self.index.last_sequence()? + 1;
        let record =
            CheckpointRecord { id: self.new_id()?, sequence, taken_us: taken.as_micros() as u64, draft };
        let changes = Changes { nodes, checkpoints: vec![record.clone()], ..Changes::default() };
        self.write(&mut records, changes, grown)?;
        Ok(record)
    }

    /// Makes the checkpoints that are not there by their ids, all at once; returns them.
    ///
    /// # Errors
    /// They could not be written; then there is none of them.
    fn import(
        &self,
        mut checkpoints: Vec<CheckpointRecord>,
        nodes: Vec<Node>,
        grown: &[PackGrowth],
    ) -> Result<Vec<CheckpointRecord>, StoreError> {
        let mut records = self.records();
        let known: HashSet<String> = self.index.checkpoints()?.into_iter().map(|record| record.id).collect();
        checkpoints.retain(|record| !known.contains(&record.id));
        for (record, sequence) in checkpoints.iter_mut().zip(self.index.last_sequence()? + 1..) {
            record.sequence = sequence;
        }
        if !checkpoints.is_empty() {
            let is_imported = true;
            let changes =
                Changes { nodes, checkpoints: checkpoints.clone(), is_imported, ..Changes::default() };
            let labels = self.index.labels_with(&checkpoints)?;
            self.write(&mut records, Changes { labels, ..changes }, grown)?;
        }
        Ok(checkpoints)
    }

    fn write(
        &self,
        records: &mut BTreeMap<u32, PackRecord>,
        changes: Changes,
        grown: &[PackGrowth],
    ) -> Result<(), StoreError> {
        let changes = Changes { packs: grown_records(records, grown), ..changes };
        FailPoint::BatchBuilt.hit();
        if let Err(error) = self.index.write(&changes) {
            // The log may have kept the batch although its sync failed. The index has been opened
            // again since, which makes durable what it found there.
            let first = changes.checkpoints.first().map(|record| &record.id[..]).unwrap_or_default();
            if !matches!(self.index.by_id(first), Ok(Some(_))) {
                return Err(error);
            }
        }
        FailPoint::BatchWritten.hit();
        self.states_mut().add(changes.packs.iter().map(|(number, record)| (*number, record.form)));
        records.extend(changes.packs);
        Ok(())
    }

    /// Deletes the checkpoints with these ids, durably and all at once; returns those that there were,
    /// oldest first. A label goes back to the last checkpoint left that was given it.
    ///
    /// # Errors
    /// It could not be written; then they are all still there.
    pub fn prune(&self, ids: &[String]) -> Result<Vec<CheckpointRecord>, StoreError> {
        let _commits = self.records();
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.index.checkpoints()?.into_iter().partition(|record| ids.contains(&record.id));
        if gone.is_empty() {
            return Ok(gone);
        }
        let removed = self.index.with_own_labels(gone.clone())?;
        let mut labels: BTreeMap<&str, Option<u64>> = BTreeMap::new();
        for label in removed.iter().filter_map(|record| record.draft.label.as_deref()) {
            let bearer = kept.iter().rev().find(|record| record.draft.label.as_deref() == Some(label));
            labels.insert(label, bearer.map(|record| record.sequence));
        }
        let changes = Changes {
            working_sets: self.inherited(&gone, &kept)?,
            deleted: gone.iter().map(|record| (record.sequence, record.id.clone())).collect(),
            labels: labels.into_iter().map(|(label, bearer)| (label.to_owned(), bearer)).collect(),
            sequence: Some(self.index.last_sequence()?),
            ..Changes::default()
        };
        self.index.write(&changes)?;
        FailPoint::Pruned.hit();
        Ok(removed)
    }

    fn new_id(&self) -> Result<String, StoreError> {
        loop {
            let mut bytes = [0; 8];
            random(&mut bytes).map_err(StoreError::io("cannot read", "/dev/urandom"))?;
            let id = hex(&bytes);
            if self.index.by_id(&id)?.is_none() {
                return Ok(id);
            }
        }
    }

    fn perform(&self, task: Task, added: &mut Added, reader: &mut PackReader) -> Result<(), StoreError> {
        match task {
            Task::Committed { written, grown } => {
                let result = if written.is_whole {
                    self.insert(written.iter()).map(|()| {
                        added.entries += written.len();
                        added.grown.extend(grown);
                    })
                } else {
                    self.insert_from_footers(grown, added, reader)
                };
                let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
                recent.retain(|table| !written.tables.iter().any(|gone| Arc::ptr_eq(table, gone)));
                result
            }
            Task::Recover { grown } => self.insert_from_footers(grown, added, reader),
            Task::Moved { moves, done } => {
                let result = self.move_pages(moves, added).and_then(|()| self.flush(added));
                let told = result.as_ref().map_err(|error| StoreError::Refused(error.to_string())).copied();
                let _ = done.send(result);
                told
            }
        }
    }

    fn insert_from_footers(
        &self,
        grown: Vec<PackGrowth>,
        added: &mut Added,
        reader: &mut PackReader,
    ) -> Result<(), StoreError> {
        let mut result = Ok(());
        for growth in grown {
            match reader.footers(growth.number, growth.from, growth.to) {
                Ok(footers) => {
                    for footer in footers {
                        // A damaged page may have been stored again elsewhere.
                        let damaged = self.damaged().clone();
                        let whole =
                            entries(growth.number, &footer).filter(|(_, place)| !damaged.contains(*place));
                        self.insert(whole)?;
                        added.entries += footer.names.len();
                    }
                    added.grown.push(growth);
                }
                // The other packs are not damaged for that.
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Makes durable what has been added to the index, and notes that it is.
    fn flush(&self, added: &mut Added) -> Result<(), StoreError> {
        let Added { entries, grown } = std::mem::take(added);
        if grown.is_empty() && entries == 0 {
            return Ok(());
        }
        self.index.flush_pages()?;
        FailPoint::IndexWritten.hit();
        self.mark_indexed(&grown)
    }

    fn insert(&self, entries: impl Iterator<Item = (Hash, Place)>) -> Result<(), StoreError> {
        let mut entries = entries.peekable();
        while entries.peek().is_some() {
            let pages: Vec<(Hash, Place)> = entries.by_ref().take(ENTRIES_AT_ONCE).collect();
            self.index.add_pages(&pages)?;
            FailPoint::IndexPartial.hit();
        }
        Ok(())
    }

    /// Notes that the index knows the pages of these ranges for good.
    fn mark_indexed(&self, grown: &[PackGrowth]) -> Result<(), StoreError> {
        let mut records = self.records();
        let mut packs: BTreeMap<u32, PackRecord> = BTreeMap::new();
        for growth in grown {
            // Not when an earlier range is missing: it could then never be recovered.
            let record = packs.get(&growth.number).or_else(|| records.get(&growth.number)).copied();
            if let Some(record) = record.filter(|record| record.indexed == growth.from) {
                packs.insert(growth.number, PackRecord { indexed: growth.to, ..record });
            }
        }
        let changes = Changes { packs: packs.into_iter().collect(), ..Changes::default() };
        self.index.write(&changes)?;
        records.extend(changes.packs);
        Ok(())
    }

    fn states_mut(&self) -> RwLockWriteGuard<'_, PackStates> {
        self.states.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<u32, PackRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Indexer {
    /// Starts the thread; it begins with what a crash has left out.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start(catalog: Arc<Catalog>, mut reader: PackReader) -> io::Result<Self> {
        let (queue, tasks) = mpsc::channel();
        let worker = Arc::clone(&catalog);
        let thread = thread::Builder::new().name("indexer".into()).spawn(move || {
            // Only dedup suffers: pages that the index does not know are written once more.
            let complain = |error: &StoreError| log!("not all pages were put into the index: {error}");
            let mut added = Added::default();
            for task in tasks {
                let _ = worker.perform(task, &mut added, &mut reader).inspect_err(complain);
                if added.entries >= UNFLUSHED {
                    let _ = worker.flush(&mut added).inspect_err(complain);
                }
            }
            let _ = worker.flush(&mut added).inspect_err(complain);
        })?;
        let left: Vec<PackGrowth> = catalog
            .packs()
            .iter()
            .filter(|(_, record)| record.indexed < record.committed)
            .map(|(number, record)| PackGrowth {
                number: *number,
                from: record.indexed,
                to: record.committed,
                pages: record.pages,
                form: record.form,
            })
            .collect();
        if !left.is_empty() {
            let _ = queue.send(Task::Recover { grown: left });
        }
        Ok(Self { catalog, queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) })
    }

    /// Makes a checkpoint: durable when this returns. `written` are the pages that were written for it,
    /// `grown` where.
    ///
    /// # Errors
    /// It could not be written; then there is no such checkpoint.
    pub fn commit(
        &self,
        draft: CheckpointDraft,
        nodes: Vec<Node>,
        written: WrittenPages,
        grown: Vec<PackGrowth>,
    ) -> Result<CheckpointRecord, StoreError> {
        let record = self.catalog.commit(draft, nodes, &grown)?;
        self.publish(written, grown);
        Ok(record)
    }

    /// Makes those checkpoints that are not there, all at once; durable when this returns.
    ///
    /// # Errors
    /// They could not be written; then there is none of them.
    pub fn import(
        &self,
        checkpoints: Vec<CheckpointRecord>,
        nodes: Vec<Node>,
        written: WrittenPages,
        grown: Vec<PackGrowth>,
    ) -> Result<Vec<CheckpointRecord>, StoreError> {
        let new = self.catalog.import(checkpoints, nodes, &grown)?;
        if !new.is_empty() {
            self.publish(written, grown);
        }
        Ok(new)
    }

    fn publish(&self, mut written: WrittenPages, grown: Vec<PackGrowth>) {
        if !written.tables.is_empty() {
            let mut recent = self.catalog.recent.write().unwrap_or_else(PoisonError::into_inner);
            let waiting: usize = recent.iter().map(|table| table.len()).sum();
            if waiting + written.len() > RECENT {
                written = WrittenPages { tables: Vec::new(), is_whole: false };
            }
            recent.extend(written.tables.iter().cloned());
            drop(recent);
            if let Some(queue) = &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
                let _ = queue.send(Task::Committed { written, grown });
            }
        }
    }

    /// Takes no more, and waits until all is durable.
    pub fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        self.close();
    }
}

/// The records of packs that have grown.
fn grown_records(records: &BTreeMap<u32, PackRecord>, grown: &[PackGrowth]) -> Vec<(u32, PackRecord)> {
    grown
        .iter()
        .map(|growth| {
            let old = records.get(&growth.number).copied();
            let old = old.unwrap_or(PackRecord::new(growth.form));
            (growth.number, PackRecord { committed: growth.to, pages: old.pages + growth.pages, ..old })
        })
        .collect()
}

/// The pages that a footer names.
pub fn entries(pack: u32, footer: &Footer) -> impl Iterator<Item = (Hash, Place)> {
    let runs = footer.runs.iter();
    let places = runs
        .flat_map(move |run| (0..run.pages).map(move |at| Place { pack, slot: run.slot.saturating_add(at) }));
    footer.names.iter().copied().zip(places)
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    use io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}
