//! The index: what must be looked up or committed together, in RocksDB. No page data.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `pages` | page name | kind u8, pack u32, slot u32 |
//! | `nodes` | node name | a manifest node (`manifest`) |
//! | `default` | `c` sequence u64 BE | checkpoint record |
//! | | `i` id | its sequence |
//! | | `l` label | the sequence of its last checkpoint |
//! | | `f` sequence u64 BE | nothing: the checkpoint was taken elsewhere and imported |
//! | | `p` pack u32 BE | pack record |
//! | | `d` pack u32 BE | its damaged pages: first slots and how many there are from each on |
//! | | `w` sequence u64 BE, pid u32 BE | what the process touched first after a restart |
//! | | `n` | the highest number of a pack that is gone |
//! | | `u` number u32 BE | names of nodes whose checkpoint is being committed |
//! | | `s` | the highest sequence ever given, where its checkpoint is deleted |
//! | | `g` | how many durable changes there have been ([`count`]) |
//! | | `r` | nothing: `pages` is damaged, and made anew when the store is opened next ([`names`]) |
//! | | `k` | what the store's secret is known by |
//!
//! `pages` may lag behind the packs but never names bytes that are not durable in a pack that has a
//! record. Its entries do not go through the write-ahead log, where each synced commit would have to
//! wait for them: after a crash, what had not been flushed is read again from the packs' footers
//! ([`PackRecord::indexed`]).
//!
//! Not here: when what is written.

mod count;
mod names;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBPinnableSlice, Direction,
    IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use stasis_protocol::{
    store::{CheckpointRecord, WorkingSet, kind},
    wire,
};

use count::{Count, Told};

use crate::{
    directory::{CURRENT, is_at},
    error::StoreError,
    hash::Hash,
    limit,
    manifest::Node,
    pack::{Form, PAGE, Place},
    usable::KEY_FILE,
};

const PAGES: &str = "pages";
const NODES: &str = "nodes";

const CHECKPOINT: u8 = b'c';
const ID: u8 = b'i';
const LABEL: u8 = b'l';
const IMPORTED: u8 = b'f';
const PACK: u8 = b'p';
const DAMAGED: u8 = b'd';
const WORKING_SET: u8 = b'w';
const UNCOMMITTED: u8 = b'u';
const SEQUENCE: u8 = b's';
const REMOVED_PACK: u8 = b'n';
const COUNT: u8 = b'g';
const KEY: u8 = b'k';
const REBUILD: u8 = b'r';

/// What RocksDB's message of ENOSPC holds (strerror(3), in the C locale, which this program never leaves).
const NO_ROOM: &str = "No space left on device";

/// The same of EFBIG.
const TOO_LARGE: &str = "File too large";

/// The same of ENOENT.
const MISSING: &str = "No such file or directory";

/// What can be done about damage.
const PUT_BACK: &str =
    "a file of the index is not what it was: put it back as it was, or use another store (--store DIR)";

/// How its message begins of what is damaged.
const CORRUPTION: &str = "Corruption";

/// Bits per key of the bloom filters: 1 % of look-ups of unknown names touch a table.
const BLOOM_BITS: f64 = 10.0;

/// What is known of a pack; all lengths in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRecord {
    /// Up to here it is synced and belongs to committed checkpoints.
    pub committed: u64,
    /// Up to here its pages are in `pages`, for good.
    pub indexed: u64,
    /// How many pages it holds.
    pub pages: u64,
    pub form: Form,
    /// Up to here it was found not to be worth compressing.
    pub not_worth: u64,
}

impl PackRecord {
    /// Of a pack without a page.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self { committed: PAGE, indexed: PAGE, pages: 0, form, not_worth: 0 }
    }
}

/// Up to format 2 of the store.
#[derive(Deserialize)]
struct PlainPackRecord {
    committed: u64,
    indexed: u64,
    pages: u64,
}

fn decode_pack(value: &[u8]) -> Result<PackRecord, StoreError> {
    if let Ok(PlainPackRecord { committed, indexed, pages }) = wire::decode(value) {
        return Ok(PackRecord { committed, indexed, pages, ..PackRecord::default() });
    }
    decode(value, "a pack record")
}

/// The open database.
pub struct Index {
    directory: PathBuf,
    /// The directory itself: what has its name may be another store's by now.
    held: File,
    /// `None` after a failed attempt to open it again.
    db: RwLock<Option<DB>>,
    changing: Mutex<Changing>,
    /// `pages` cannot be read, or what RocksDB does in the background has met damage.
    is_damaged: AtomicBool,
}

/// What durable changes have in common.
struct Changing {
    /// How many there have been.
    number: u64,
    /// What the store's secret is known by, until the database has it.
    mark: Option<Hash>,
    count: Count,
}

/// A working set, by the sequence of its checkpoint and the pid of its process.
pub type KeptWorkingSet = ((u64, u32), WorkingSet);

/// Changes that are made together.
#[derive(Default)]
pub struct Changes {
    pub nodes: Vec<Node>,
    pub packs: Vec<(u32, PackRecord)>,
    /// Nodes that were announced are theirs.
    pub checkpoints: Vec<CheckpointRecord>,
    /// They were taken elsewhere.
    pub is_imported: bool,
    /// Checkpoints to delete, by sequence and id; their working sets go with them.
    pub deleted: Vec<(u64, String)>,
    pub working_sets: Vec<KeptWorkingSet>,
    /// Labels and the sequence that they mean from now on, if any.
    pub labels: Vec<(String, Option<u64>)>,
    /// No sequence up to this is given again.
    pub sequence: Option<u64>,
    pub removed_packs: Vec<u32>,
    /// By pack, the pages that are damaged: first slots and how many there are from each on.
    pub damaged: Vec<(u32, Vec<(u32, u32)>)>,
    /// No pack gets a number up to this again.
    pub last_removed_pack: Option<u32>,
}

impl Index {
    /// Opens the database in `directory`; with `make`, makes it where there is none.
    ///
    /// # Errors
    /// It cannot be opened, or has lost something: nothing was changed then. Or `key` is not the store's secret.
    pub fn open(directory: &Path, make: bool, key: &[u8; 32]) -> Result<Self, StoreError> {
        let held = File::open(directory).map_err(StoreError::io("cannot open", directory))?;
        let failed = |source| error(directory, source);
        let is_new = !directory.join(CURRENT).exists();
        if !is_new && let Some(told) = Told::read(directory) {
            told.check_manifest(directory)?;
            // To open it for writing removes the log as far as it cannot be read.
            let found = names::open_the_rest(directory).and_then(|db| changes_in(&db)).map_err(failed)?;
            told.check_changes(directory, found)?;
        }
        let db = match open(directory, make) {
            // Something of an index that was deleted with its store while a server wrote to it came here, by its path. Nothing
            // is in an index that is being made.
            Err(_) if make && is_new => {
                for entry in
                    fs::read_dir(directory).map_err(StoreError::io("cannot read", directory))?.flatten()
                {
                    let _ = fs::remove_file(entry.path());
                }
                open(directory, make).map_err(failed)?
            }
            Err(Problem(problem)) if is_damage(&problem) && names::open_the_rest(directory).is_ok() => {
                renew_names(directory, &problem).map_err(failed)?
            }
            Ok(db) if names::is_asked_for(&db).map_err(failed)? => {
                drop(db);
                renew_names(directory, "as was found earlier").map_err(failed)?
            }
            opened => opened.map_err(failed)?,
        };
        let mark = *blake3::keyed_hash(key, &[KEY]).as_bytes();
        let known = db.get([KEY]).map_err(Problem::from).map_err(failed)?;
        if known.as_ref().is_some_and(|known| known[..] != mark) {
            return Err(StoreError::Damaged(format!(
                "{} holds another secret than the one that the store was made with; nothing was changed: put it back as it \
                 was, or use another store (--store DIR)",
                directory.with_file_name(KEY_FILE).display()
            )));
        }
        let number = changes_in(&db).map_err(failed)?;
        let mut count = Count::open(directory);
        count.note(number);
        let changing = Changing { number, mark: known.is_none().then_some(mark), count };
        let (db, changing) = (RwLock::new(Some(db)), Mutex::new(changing));
        Ok(Self { directory: directory.to_owned(), held, db, changing, is_damaged: AtomicBool::new(false) })
    }

    /// The places of the pages called `names`, which must be sorted.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn places(&self, names: &[Hash]) -> Result<Vec<Option<Place>>, StoreError> {
        self.look_up(names, Err)
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// The database cannot be read. That there is none is for the caller to judge.
    pub fn node(&self, name: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|db| Ok(db.get_cf(family(db, NODES)?, name)?))
    }

    /// As [`Index::places`]; what cannot be read because it is damaged is not known.
    ///
    /// # Errors
    /// As [`Index::places`].
    pub fn places_if_whole(&self, names: &[Hash]) -> Result<Vec<Option<Place>>, StoreError> {
        self.look_up(names, |error| {
            if !is_damage(error.as_ref()) {
                return Err(error);
            }
            self.note_damage(error.as_ref());
            Ok(None)
        })
    }

    /// The places of pages; `instead` of one that cannot be read.
    fn look_up(
        &self,
        names: &[Hash],
        instead: impl Fn(rocksdb::Error) -> Result<Option<Place>, rocksdb::Error>,
    ) -> Result<Vec<Option<Place>>, StoreError> {
        self.read(|db| {
            let found = db.batched_multi_get_cf(family(db, PAGES)?, names, true).into_iter();
            let place = |value: Option<DBPinnableSlice<'_>>| value.and_then(|value| decode_place(&value));
            found.map(|value| Ok(value.map(place).or_else(&instead)?)).collect()
        })
    }

    /// Reads all names of pages; returns what is damaged, which no checkpoint needs.
    #[must_use]
    pub fn check_pages(&self) -> Option<String> {
        let problem = self.read(names::check).err()?.to_string();
        self.note_damage(&problem);
        Some(
            problem.replace(
                PUT_BACK,
                "these are names of pages, which the next server reads from the packs again",
            ),
        )
    }

    /// `pages` is to be made anew when the store is opened next.
    fn note_damage(&self, problem: &str) {
        if !self.is_damaged.swap(true, Ordering::Relaxed) {
            log!("names of pages in {} are damaged: {problem}", self.directory.display());
        }
    }

    /// The nodes called `names`, in order.
    ///
    /// # Errors
    /// As [`Index::node`].
    pub fn nodes(&self, names: &[Hash]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.read(|db| {
            let found = db.batched_multi_get_cf(family(db, NODES)?, names, false);
            found.into_iter().map(|value| Ok(value?.map(|value| value.to_vec()))).collect()
        })
    }

    /// Which of the nodes called `names` there are that are `good`, which is told their numbers.
    ///
    /// # Errors
    /// As [`Index::node`].
    pub fn check_nodes(
        &self,
        names: &[Hash],
        good: impl Fn(usize, &[u8]) -> bool,
    ) -> Result<Vec<bool>, StoreError> {
        self.read(|db| {
            let found = db.batched_multi_get_cf(family(db, NODES)?, names, false).into_iter().enumerate();
            found.map(|(at, value)| Ok(value?.is_some_and(|value| good(at, &value)))).collect()
        })
    }

    /// Nodes in the order of their names, behind `after`: at least one if there is any, until they have
    /// `bytes` bytes.
    ///
    /// # Errors
    /// As [`Index::node`].
    pub fn nodes_after(&self, after: Option<&Hash>, bytes: usize) -> Result<Vec<Node>, StoreError> {
        self.read(|db| {
            let mut options = ReadOptions::default();
            options.fill_cache(false);
            let mode = after.map_or(IteratorMode::Start, |name| IteratorMode::From(name, Direction::Forward));
            let mut nodes = Vec::new();
            let mut left = bytes;
            for entry in db.iterator_cf_opt(family(db, NODES)?, options, mode) {
                let (name, node) = entry?;
                let Ok(name) = Hash::try_from(&name[..]) else { continue };
                if Some(&name) == after {
                    continue;
                }
                left = left.saturating_sub(node.len());
                nodes.push((name, node.into_vec()));
                if left == 0 {
                    break;
                }
            }
            Ok(nodes)
        })
    }

    /// Removes nodes and writes others anew. Durable with the next [`Index::write`].
    ///
    /// # Errors
    /// They cannot be written.
    pub fn change_nodes(&self, removed: &[Hash], changed: &[Node]) -> Result<(), StoreError> {
        self.change(|db| {
            let mut batch = WriteBatch::default();
            let family = family(db, NODES)?;
            for name in removed {
                batch.delete_cf(family, name);
            }
            for (name, node) in changed {
                batch.put_cf(family, name, node);
            }
            Ok(db.write(batch)?)
        })
    }

    /// Adds nodes that the next [`Index::write`] commits; [`Index::withdraw_nodes`] removes them again.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn announce_nodes(&self, nodes: &[Node]) -> Result<(), StoreError> {
        let number = self.uncommitted()?.last().map_or(0, |(number, _)| number + 1);
        self.change(|db| {
            let mut batch = WriteBatch::default();
            let family = family(db, NODES)?;
            for (name, node) in nodes {
                batch.put_cf(family, name, node);
            }
            let names: Vec<Hash> = nodes.iter().map(|(name, _)| *name).collect();
            put(&mut batch, &key(UNCOMMITTED, &number.to_be_bytes()), &names);
            Ok(db.write(batch)?)
        })
    }

    /// Removes nodes that were announced and not committed.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn withdraw_nodes(&self) -> Result<(), StoreError> {
        for (number, names) in self.uncommitted()? {
            self.change(|db| {
                let mut batch = WriteBatch::default();
                let family = family(db, NODES)?;
                names.iter().for_each(|name| batch.delete_cf(family, name));
                batch.delete(key(UNCOMMITTED, &number.to_be_bytes()));
                Ok(db.write(batch)?)
            })?;
        }
        Ok(())
    }

    fn uncommitted(&self) -> Result<Vec<(u32, Vec<Hash>)>, StoreError> {
        self.scan(UNCOMMITTED, |key, value| {
            let number = key.get(1..).and_then(|digits| digits.try_into().ok()).map_or(0, u32::from_be_bytes);
            Ok((number, decode(value, "a list of nodes")?))
        })
    }

    /// Gives back the room of removed nodes.
    ///
    /// # Errors
    /// As [`Index::node`].
    pub fn compact_nodes(&self) -> Result<(), StoreError> {
        self.read(|db| {
            db.compact_range_cf(family(db, NODES)?, None::<&[u8]>, None::<&[u8]>);
            Ok(())
        })
    }

    /// Makes `changes`, all or none, durable when this returns.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self, changes: &Changes) -> Result<(), StoreError> {
        let announced = if changes.checkpoints.is_empty() { Vec::new() } else { self.uncommitted()? };
        let mut changing = self.changing();
        // Also where it fails: it may be in the log nevertheless.
        changing.number += 1;
        self.change(|db| {
            let mut batch = WriteBatch::default();
            let nodes = family(db, NODES)?;
            for (name, node) in &changes.nodes {
                batch.put_cf(nodes, name, node);
            }
            for (number, record) in &changes.packs {
                put(&mut batch, &key(PACK, &number.to_be_bytes()), record);
            }
            for record in &changes.checkpoints {
                put(&mut batch, &key(CHECKPOINT, &record.sequence.to_be_bytes()), record);
                put(&mut batch, &key(ID, record.id.as_bytes()), &record.sequence);
                if changes.is_imported {
                    batch.put(key(IMPORTED, &record.sequence.to_be_bytes()), []);
                }
                if let Some(label) = &record.draft.label {
                    put(&mut batch, &key(LABEL, label.as_bytes()), &record.sequence);
                }
            }
            for (number, _) in &announced {
                batch.delete(key(UNCOMMITTED, &number.to_be_bytes()));
            }
            for (sequence, id) in &changes.deleted {
                batch.delete(key(CHECKPOINT, &sequence.to_be_bytes()));
                batch.delete(key(ID, id.as_bytes()));
                batch.delete(key(IMPORTED, &sequence.to_be_bytes()));
                let (first, behind) = (sequence.to_be_bytes(), (sequence + 1).to_be_bytes());
                batch.delete_range(key(WORKING_SET, &first), key(WORKING_SET, &behind));
            }
            for ((sequence, pid), set) in &changes.working_sets {
                put(&mut batch, &working_set_key(*sequence, *pid), set);
            }
            for (label, sequence) in &changes.labels {
                let key = key(LABEL, label.as_bytes());
                match sequence {
                    Some(sequence) => put(&mut batch, &key, sequence),
                    None => batch.delete(key),
                }
            }
            for number in &changes.removed_packs {
                batch.delete(key(PACK, &number.to_be_bytes()));
                batch.delete(key(DAMAGED, &number.to_be_bytes()));
            }
            for (number, runs) in &changes.damaged {
                let key = key(DAMAGED, &number.to_be_bytes());
                if runs.is_empty() {
                    batch.delete(key);
                } else {
                    put(&mut batch, &key, runs);
                }
            }
            if let Some(number) = &changes.last_removed_pack {
                put(&mut batch, &[REMOVED_PACK], number);
            }
            if let Some(sequence) = &changes.sequence {
                put(&mut batch, &[SEQUENCE], sequence);
            }
            put(&mut batch, &[COUNT], &changing.number);
            if self.is_damaged.load(Ordering::Relaxed) {
                batch.put([REBUILD], []);
            }
            if let Some(mark) = &changing.mark {
                batch.put([KEY], mark);
            }
            let mut options = WriteOptions::default();
            options.set_sync(true);
            Ok(db.write_opt(batch, &options)?)
        })?;
        changing.mark = None;
        let number = changing.number;
        changing.count.note(number);
        Ok(())
    }

    /// Adds names of pages. They are lost in a crash that comes before [`Index::flush_pages`].
    ///
    /// # Errors
    /// They cannot be written.
    pub fn add_pages(&self, pages: &[(Hash, Place)]) -> Result<(), StoreError> {
        self.change(|db| {
            let mut batch = WriteBatch::default();
            let family = family(db, PAGES)?;
            for (name, place) in pages {
                batch.put_cf(family, name, encode_place(*place));
            }
            let mut options = WriteOptions::default();
            options.disable_wal(true);
            Ok(db.write_opt(batch, &options)?)
        })
    }

    /// Removes names of pages. They may be there again after a crash.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn remove_pages(&self, names: &[Hash]) -> Result<(), StoreError> {
        self.change(|db| {
            let mut batch = WriteBatch::default();
            let family = family(db, PAGES)?;
            for name in names {
                batch.delete_cf(family, name);
            }
            let mut options = WriteOptions::default();
            options.disable_wal(true);
            Ok(db.write_opt(batch, &options)?)
        })
    }

    /// Makes durable what [`Index::add_pages`] has added.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush_pages(&self) -> Result<(), StoreError> {
        self.change(|db| Ok(db.flush_cf(family(db, PAGES)?)?))
    }

    /// Makes a change. After one that failed (a full disk) RocksDB refuses all others: it is opened
    /// again.
    fn change(&self, make: impl FnOnce(&DB) -> Result<(), Problem>) -> Result<(), StoreError> {
        let written = self.read(make);
        if let Err(problem) = &written {
            let problem = problem.to_string();
            if problem.contains(CORRUPTION) {
                self.note_damage(&problem);
            }
            let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
            drop(db.take());
            *db = self.open_again().ok();
        }
        written
    }

    /// All checkpoints, oldest first: in the order in which they were taken here, whatever the clock was set to; those from
    /// elsewhere before the first one that was taken later.
    ///
    /// # Errors
    /// The database cannot be read, or a record in it is not one.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointRecord>, StoreError> {
        let all: Vec<CheckpointRecord> =
            self.scan(CHECKPOINT, |_, value| decode(value, "a checkpoint record"))?;
        let imported: BTreeSet<u64> =
            self.scan(IMPORTED, |key, _| Ok(sequence_of(key)))?.into_iter().collect();
        Ok(in_order(all, &imported))
    }

    /// Records with the labels that are still theirs: a label belongs to the last checkpoint that was given it.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn with_own_labels(
        &self,
        mut records: Vec<CheckpointRecord>,
    ) -> Result<Vec<CheckpointRecord>, StoreError> {
        for record in &mut records {
            if let Some(label) = &record.draft.label
                && self.by_label(label)?.is_none_or(|bearer| bearer.sequence != record.sequence)
            {
                record.draft.label = None;
            }
        }
        Ok(records)
    }

    /// The labels of checkpoints that are about to be imported, and whose they are then.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn labels_with(&self, new: &[CheckpointRecord]) -> Result<Vec<(String, Option<u64>)>, StoreError> {
        let mut all: Vec<CheckpointRecord> =
            self.scan(CHECKPOINT, |_, value| decode(value, "a checkpoint record"))?;
        let mut imported: BTreeSet<u64> =
            self.scan(IMPORTED, |key, _| Ok(sequence_of(key)))?.into_iter().collect();
        imported.extend(new.iter().map(|record| record.sequence));
        all.extend_from_slice(new);
        let all = in_order(all, &imported);
        let labels: BTreeSet<&str> = new.iter().filter_map(|record| record.draft.label.as_deref()).collect();
        let bearer =
            |label: &str| all.iter().rev().find(|record| record.draft.label.as_deref() == Some(label));
        Ok(labels
            .into_iter()
            .map(|label| (label.to_owned(), bearer(label).map(|record| record.sequence)))
            .collect())
    }

    /// The last checkpoint.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn last_checkpoint(&self) -> Result<Option<CheckpointRecord>, StoreError> {
        let value = self.read(|db| {
            let end = [CHECKPOINT + 1];
            match db.iterator(IteratorMode::From(&end, Direction::Reverse)).next() {
                Some(entry) => Ok(Some(entry?)),
                None => Ok(None),
            }
        })?;
        match value {
            Some((key, value)) if key.first() == Some(&CHECKPOINT) => {
                decode(&value, "a checkpoint record").map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The highest sequence that was ever given to a checkpoint.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn last_sequence(&self) -> Result<u64, StoreError> {
        let last = self.last_checkpoint()?.map_or(0, |record| record.sequence);
        match self.read(|db| Ok(db.get([SEQUENCE])?))? {
            Some(value) => Ok(last.max(decode(&value, "the last sequence")?)),
            None => Ok(last),
        }
    }

    /// The highest number of a pack that is gone, or 0.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn last_removed_pack(&self) -> Result<u32, StoreError> {
        match self.read(|db| Ok(db.get([REMOVED_PACK])?))? {
            Some(value) => decode(&value, "the number of the last pack"),
            None => Ok(0),
        }
    }

    /// The checkpoint with this id.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn by_id(&self, id: &str) -> Result<Option<CheckpointRecord>, StoreError> {
        self.by_name(&key(ID, id.as_bytes()))
    }

    /// The last checkpoint with this label.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn by_label(&self, label: &str) -> Result<Option<CheckpointRecord>, StoreError> {
        self.by_name(&key(LABEL, label.as_bytes()))
    }

    fn by_name(&self, name: &[u8]) -> Result<Option<CheckpointRecord>, StoreError> {
        let Some(value) = self.read(|db| Ok(db.get(name)?))? else { return Ok(None) };
        let sequence: u64 = decode(&value, "a name of a checkpoint")?;
        match self.read(|db| Ok(db.get(key(CHECKPOINT, &sequence.to_be_bytes()))?))? {
            Some(value) => decode(&value, "a checkpoint record").map(Some),
            None => Ok(None),
        }
    }

    /// What was kept for a process of a checkpoint.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn working_set(&self, sequence: u64, pid: u32) -> Result<Option<WorkingSet>, StoreError> {
        match self.read(|db| Ok(db.get(working_set_key(sequence, pid))?))? {
            Some(value) => decode(&value, "a working set").map(Some),
            None => Ok(None),
        }
    }

    /// The lowest sequence of a checkpoint that has a working set.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn first_working_set(&self) -> Result<Option<u64>, StoreError> {
        let first = self.read(|db| {
            let mut entries = db.iterator(IteratorMode::From(&[WORKING_SET], Direction::Forward));
            Ok(entries.next().transpose()?.map(|(key, _)| key))
        })?;
        let first = first.filter(|key| key.first() == Some(&WORKING_SET));
        Ok(first.and_then(|key| Some(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?))))
    }

    /// All packs that have a record.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn packs(&self) -> Result<Vec<(u32, PackRecord)>, StoreError> {
        self.scan(PACK, |key, value| {
            let number = key.get(1..).and_then(|digits| digits.try_into().ok()).map(u32::from_be_bytes);
            let number = number.ok_or_else(|| StoreError::Damaged("a pack record has no number".into()))?;
            Ok((number, decode_pack(value)?))
        })
    }

    /// Pages that are damaged: packs, first slots, how many there are from each on.
    ///
    /// # Errors
    /// As [`Index::checkpoints`].
    pub fn damaged(&self) -> Result<Vec<(u32, u32, u32)>, StoreError> {
        let packs = self.scan(DAMAGED, |key, value| {
            let number = key.get(1..).and_then(|digits| digits.try_into().ok()).map_or(0, u32::from_be_bytes);
            let runs: Vec<(u32, u32)> = decode(value, "a list of damaged pages")?;
            Ok(runs.into_iter().map(move |(first, count)| (number, first, count)))
        })?;
        Ok(packs.into_iter().flatten().collect())
    }

    fn scan<T>(
        &self,
        prefix: u8,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let entries = self.read(|db| {
            let entries = db
                .iterator(IteratorMode::From(&[prefix], Direction::Forward))
                .take_while(|entry| !matches!(entry, Ok((key, _)) if key.first() != Some(&prefix)))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(entries)
        })?;
        entries.iter().map(|(key, value)| take(key, value)).collect()
    }

    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_again(&self) -> Result<DB, StoreError> {
        if !is_at(&self.held, &self.directory)? {
            return Err(error(&self.directory, Problem("was deleted or moved away".into())));
        }
        open(&self.directory, false).map_err(|source| error(&self.directory, source))
    }

    fn read<T>(&self, ask: impl FnOnce(&DB) -> Result<T, Problem>) -> Result<T, StoreError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = &*db {
            return ask(db).map_err(|source| error(&self.directory, source));
        }
        drop(db);
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        let open = match db.take() {
            Some(open) => open,
            None => self.open_again()?,
        };
        let answer = ask(&open).map_err(|source| error(&self.directory, source));
        *db = Some(open);
        answer
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        if self.is_damaged.load(Ordering::Relaxed) {
            let _ = self.write(&Changes::default());
        }
        // Closing it may write tables, and to its MANIFEST.
        drop(self.db.write().unwrap_or_else(PoisonError::into_inner).take());
        let mut changing = self.changing();
        let number = changing.number;
        changing.count.note(number);
    }
}

/// What RocksDB says.
struct Problem(String);

impl From<rocksdb::Error> for Problem {
    fn from(error: rocksdb::Error) -> Self {
        Self(error.into_string())
    }
}

fn error(directory: &Path, Problem(mut problem): Problem) -> StoreError {
    let remedy = if problem.contains(TOO_LARGE) {
        limit::explain()
    } else if is_damage(&problem) {
        PUT_BACK.to_owned()
    } else {
        String::new()
    };
    if !remedy.is_empty() {
        problem = format!("{problem}; {remedy}");
    }
    StoreError::Index { directory: directory.to_owned(), problem }
}

fn is_damage(problem: &str) -> bool {
    problem.starts_with(CORRUPTION) || problem.contains(MISSING)
}

/// Opens a database of which only the names of pages are damaged.
fn renew_names(directory: &Path, problem: &str) -> Result<DB, Problem> {
    log!(
        "names of pages in {} are damaged ({problem}): all are read from the packs again",
        directory.display()
    );
    names::drop_all(directory)?;
    open(directory, false)
}

fn open(directory: &Path, make: bool) -> Result<DB, Problem> {
    let (options, families) = options(make);
    match DB::open_cf_descriptors(&options, directory, families()) {
        // It writes what it finds in its log to tables. What is there can be read nevertheless; the first change that fails
        // opens it again.
        Err(error) if !make && error.as_ref().contains(NO_ROOM) => open_to_read(directory),
        opened => Ok(opened?),
    }
}

fn open_to_read(directory: &Path) -> Result<DB, Problem> {
    let (options, families) = options(false);
    Ok(DB::open_cf_descriptors_read_only(&options, directory, families(), false)?)
}

/// How many durable changes the database has had.
fn changes_in(db: &DB) -> Result<u64, Problem> {
    let value = db.get([COUNT])?;
    let number = value.map_or(Ok(0), |value| wire::decode(&value));
    number.map_err(|_| Problem("how many changes it has had cannot be read".into()))
}

fn options(make: bool) -> (Options, impl Fn() -> [ColumnFamilyDescriptor; 3]) {
    // What is in memory has a limit whatever the size of the store: tables' indexes and filters are in the cache, and
    // memtables are small.
    let cache = Cache::new_lru_cache(32 << 20);
    let mut tables = BlockBasedOptions::default();
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    tables.set_bloom_filter(BLOOM_BITS, false);
    tables.set_block_cache(&cache);
    tables.set_format_version(5);

    let mut pages = Options::default();
    pages.set_block_based_table_factory(&tables);
    pages.set_write_buffer_size(8 << 20);
    // While a table is made, its filter is in memory.
    pages.set_target_file_size_base(16 << 20);
    // Names are evenly spread: whole-key probes of the memtable are worth a small filter, too.
    pages.set_memtable_prefix_bloom_ratio(0.02);
    pages.set_memtable_whole_key_filtering(true);
    let mut nodes = Options::default();
    nodes.set_block_based_table_factory(&tables);
    nodes.set_write_buffer_size(8 << 20);

    let mut options = Options::default();
    options.create_if_missing(make);
    options.create_missing_column_families(true);
    options.set_block_based_table_factory(&tables);
    options.set_write_buffer_size(4 << 20);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    // RocksDB allocates its logs ahead, the write-ahead log up to its largest size: in a small store
    // that would be the largest thing.
    options.set_manifest_preallocation_size(64 << 10);
    options.set_max_total_wal_size(16 << 20);
    options.set_skip_stats_update_on_db_open(true);
    let all = [("default", options.clone()), (PAGES, pages), (NODES, nodes)];
    (options, move || all.clone().map(|(name, options)| ColumnFamilyDescriptor::new(name, options)))
}

fn family<'a>(db: &'a DB, name: &str) -> Result<&'a ColumnFamily, Problem> {
    db.cf_handle(name).ok_or_else(|| Problem(format!("there is no column family {name}")))
}

fn key(prefix: u8, rest: &[u8]) -> Vec<u8> {
    [&[prefix], rest].concat()
}

fn working_set_key(sequence: u64, pid: u32) -> Vec<u8> {
    [&[WORKING_SET], &sequence.to_be_bytes()[..], &pid.to_be_bytes()].concat()
}

fn sequence_of(key: &[u8]) -> u64 {
    key.get(1..).and_then(|digits| digits.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Puts those that were imported where their time belongs; the others are in the order of their sequences, and stay in it.
fn in_order(all: Vec<CheckpointRecord>, imported: &BTreeSet<u64>) -> Vec<CheckpointRecord> {
    let (mut others, own): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|record| imported.contains(&record.sequence));
    others.sort_by_key(|record| record.taken_us);
    let mut others = others.into_iter().peekable();
    let mut ordered = Vec::with_capacity(own.len() + others.len());
    for record in own {
        while let Some(other) = others.next_if(|other| other.taken_us < record.taken_us) {
            ordered.push(other);
        }
        ordered.push(record);
    }
    ordered.extend(others);
    ordered
}

fn put<T: Serialize>(batch: &mut WriteBatch, key: &[u8], value: &T) {
    // Encoding plain structs into a growing buffer does not fail.
    batch.put(key, wire::encode(value).unwrap_or_default());
}

fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, StoreError> {
    wire::decode(bytes)
        .map_err(|_| StoreError::Damaged(format!("{what} in the index cannot be read; see `stasis verify`")))
}

fn encode_place(place: Place) -> [u8; 9] {
    let mut value = [0; 9];
    value[0] = kind::RAW as u8;
    value[1..5].copy_from_slice(&place.pack.to_le_bytes());
    value[5..9].copy_from_slice(&place.slot.to_le_bytes());
    value
}

/// `None` for kinds that this program does not know: the page is then simply written again.
fn decode_place(value: &[u8]) -> Option<Place> {
    let value: &[u8; 9] = value.try_into().ok()?;
    let [raw, p0, p1, p2, p3, s0, s1, s2, s3] = *value;
    (u32::from(raw) == kind::RAW).then(|| Place {
        pack: u32::from_le_bytes([p0, p1, p2, p3]),
        slot: u32::from_le_bytes([s0, s1, s2, s3]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_packs_are_read_as_earlier_programs_wrote_them() {
        let old = wire::encode(&(300_000u64, 4096u64, 73u64)).unwrap();
        let record = decode_pack(&old).unwrap();
        assert_eq!((record.committed, record.indexed, record.pages), (300_000, 4096, 73));
        assert_eq!((record.form, record.not_worth), (Form::Plain, 0));
        let new = PackRecord { form: Form::Compressed, not_worth: 9, ..record };
        assert_eq!(decode_pack(&wire::encode(&new).unwrap()).unwrap(), new);
        assert!(decode_pack(&old[..old.len() - 1]).is_err());
    }

    #[test]
    fn an_index_is_made_where_one_that_was_deleted_has_left_something() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("000009.log"), "of another").unwrap();
        Index::open(directory.path(), true, &[7; 32]).unwrap();
        Index::open(directory.path(), false, &[7; 32]).unwrap();
    }
}
