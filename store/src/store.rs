//! The store: opening and recovering it, and the checkpoints that are being taken.
//!
//! Not here: connections (`server`); collecting garbage (`gc`).

mod importing;
mod nodes;
mod sharing;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use stasis_protocol::store::{CheckpointDraft, CheckpointRecord, Hash, Usage};

use crate::{
    catalog::{Catalog, Indexer},
    directory::{Directory, sync_directory},
    dump::Dump,
    error::{StoreError, hex},
    hash::{PAGE_SIZE, PageHasher},
    index::{Index, PackRecord},
    label,
    lease::Leases,
    leaves::Leaves,
    manifest::NodeNames,
    naming::Namer,
    nodelog::NodeLog,
    pack::{
        self, Form, PAGE,
        pool::PackPool,
        reader::{PackReader, list},
        writer::Writers,
    },
    peers::Peers,
    session::{End, FinishedDump, Outcome, Session},
};

pub use sharing::Sweeping;

/// How long dumps that have ended wait for their commit.
const ABANDONED: Duration = Duration::from_secs(600);

/// An open store. One process has it at a time.
///
/// Dropping it runs through the fields from the first to the last: what is being written ends first,
/// and the lock of the directory goes when the index is closed.
pub struct Store {
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
    /// Told when a session is over.
    session_over: Condvar,
    peers: Arc<Peers>,
    writers: Writers,
    indexer: Indexer,
    catalog: Arc<Catalog>,
    pool: Arc<PackPool>,
    namer: Namer,
    node_names: NodeNames,
    sharing: sharing::Sharing,
    /// The right to commit.
    committing: Mutex<()>,
    leases: Arc<Leases>,
    leaves: Leaves,
    compresses: bool,
    directory: Arc<Directory>,
}

impl Store {
    /// Opens the store in `directory`; see [`Directory::open`]. Packs and parts of packs that belong
    /// to no committed checkpoint are removed.
    ///
    /// # Errors
    /// It cannot be opened or is not ours to open.
    pub fn open(directory: &Path, wait: bool) -> Result<Self, StoreError> {
        let mut directory = Directory::open(directory, wait)?;
        let index = Index::open(&directory.index(), !directory.is_finished(), directory.key())?;
        directory.finish()?;
        index.withdraw_nodes()?;
        let catalog = Arc::new(Catalog::new(index)?);
        let known = catalog.packs();
        let next = recover_packs(&directory.packs(), &known)?;
        find_packs(&directory.packs(), &known, &catalog);
        let next = next.max(catalog.index().last_removed_pack()? + 1);
        let pool = Arc::new(PackPool::new(&directory.packs(), known, next));
        let threads = |source| StoreError::Io {
            action: "cannot start threads for",
            path: directory.path().to_owned(),
            source,
        };
        let indexer =
            Indexer::start(Arc::clone(&catalog), PackReader::new(&directory.packs())).map_err(threads)?;
        let writers = Writers::start().map_err(threads)?;
        let ready = Arc::clone(&pool);
        // A dump that comes before this is done makes its own; one that fails says why.
        let _ = thread::Builder::new().name("first-pack".into()).spawn(move || ready.prepare());
        Ok(Self {
            namer: Namer::start(PageHasher::new(directory.key())).map_err(threads)?,
            node_names: NodeNames::new(directory.key()),
            directory: Arc::new(directory),
            catalog,
            indexer,
            pool,
            writers,
            sharing: sharing::Sharing::default(),
            committing: Mutex::default(),
            leases: Arc::default(),
            leaves: Leaves::default(),
            compresses: !is_disabled("compression"),
            sessions: Mutex::default(),
            session_over: Condvar::new(),
            peers: Arc::default(),
        })
    }

    /// Ends what goes on in the background. There are no checkpoints afterwards.
    pub fn close(&self) {
        self.indexer.close();
    }

    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    #[must_use]
    pub fn hasher(&self) -> &PageHasher {
        self.namer.hasher()
    }

    #[must_use]
    pub fn namer(&self) -> &Namer {
        &self.namer
    }

    #[must_use]
    pub fn node_names(&self) -> &NodeNames {
        &self.node_names
    }

    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    #[must_use]
    pub fn index(&self) -> &Index {
        self.catalog.index()
    }

    #[must_use]
    pub fn pool(&self) -> &PackPool {
        &self.pool
    }

    #[must_use]
    pub fn writers(&self) -> &Writers {
        &self.writers
    }

    #[must_use]
    pub fn indexer(&self) -> &Indexer {
        &self.indexer
    }

    /// Whether pages that are moved are compressed.
    #[must_use]
    pub fn compresses(&self) -> bool {
        self.compresses
    }

    #[must_use]
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    #[must_use]
    pub fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    #[must_use]
    pub fn leaves(&self) -> &Leaves {
        &self.leaves
    }

    #[must_use]
    pub fn shared_directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }

    /// Starts a dump for the checkpoint `token`.
    ///
    /// # Errors
    /// The base is not in the store, or the checkpoint has failed.
    pub fn begin_dump(&self, token: u64, base: Option<Hash>) -> Result<Dump, StoreError> {
        let session = {
            let mut sessions = self.sessions();
            let fresh = || Session::new(token, Arc::clone(&self.directory), self.peers.next());
            Arc::clone(sessions.entry(token).or_insert_with(fresh))
        };
        let begun = {
            let _gate = self.sharing.shared();
            match base.filter(|base| self.sharing.is_going(base)) {
                Some(base) => Err(StoreError::Refused(format!(
                    "the manifest {}, which unchanged pages were to be taken from, belongs to a checkpoint that was \
                     deleted; dump the process in full",
                    hex(&base)
                ))),
                None => Dump::begin(self, Arc::clone(&session), base),
            }
        };
        if begun.is_err() && session.is_empty() {
            self.drop_session(&session, "the dump could not be started");
        }
        begun
    }

    /// A dump of `session` is over.
    pub fn leave(&self, session: &Arc<Session>, finished: Option<FinishedDump>) {
        if session.leave(finished) {
            self.drop_session(session, "no dump is left");
        }
    }

    /// Makes a checkpoint of the dumps made under `token`; durable when this returns.
    ///
    /// # Errors
    /// A process that the draft names has not been dumped: nothing has changed. Or the checkpoint could
    /// not be written: its dumps are gone.
    pub fn commit(&self, token: u64, mut draft: CheckpointDraft) -> Result<CheckpointRecord, StoreError> {
        draft.label.as_deref().map_or(Ok(()), label::check).map_err(StoreError::Refused)?;
        let refuse = |problem: String| Err(StoreError::Refused(problem));
        if draft.processes.is_empty() {
            return refuse(format!("the checkpoint {token:#x} names no process"));
        }
        let Some(session) = self.sessions().get(&token).cloned() else {
            return refuse(format!(
                "nothing has been dumped for the checkpoint {token:#x}, or it was dropped after {} minutes",
                ABANDONED.as_secs() / 60
            ));
        };
        for process in &draft.processes {
            if !session.has(&process.manifest) {
                return refuse(format!(
                    "pid {} ({}) has not been dumped for the checkpoint {token:#x}: its manifest {} is unknown",
                    process.pid,
                    process.command,
                    hex(&process.manifest)
                ));
            }
        }
        session.close("the checkpoint was committed without this dump");
        let manifests: BTreeSet<Hash> = draft.processes.iter().map(|process| process.manifest).collect();
        let _gate = self.sharing.shared();
        let _turn = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let away = session.packs_away();
        away.iter().for_each(|(number, _)| self.catalog.note_away(*number, 0));
        let in_place = away.into_iter().next().map_or(Ok(()), |(_, path)| Err(StoreError::PackGone { path }));
        let prepared = in_place.and_then(|()| session.outcome()).and_then(|mut outcome| {
            // Not as the draft has them: a process tells them, and one that is restricted does not know them.
            for process in &mut draft.processes {
                let same = |dump: &&FinishedDump| dump.manifest == process.manifest;
                if let Some(dump) = outcome.finished.iter().rev().find(same) {
                    process.stats = dump.stats;
                }
            }
            let own: Vec<u32> = outcome.grown.iter().map(|growth| growth.number).collect();
            outcome.finished.retain(|dump| manifests.contains(&dump.manifest));
            let logs: Vec<NodeLog> =
                outcome.finished.iter_mut().filter_map(|dump| dump.nodes.take()).collect();
            let nodes = self.store_nodes(&logs, &own)?;
            Ok((outcome, nodes))
        });
        let (outcome, nodes) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.end_session(&session, End::Rewind);
                return Err(error);
            }
        };
        let Outcome { finished, written, grown } = outcome;
        match self.indexer.commit(draft, nodes, written, grown) {
            Ok(record) => {
                // They are kept for speed alone.
                let _ = self.keep_leaves(finished);
                self.end_session(&session, End::Commit);
                Ok(record)
            }
            // The batch may be in the log nevertheless: only the next start of the server can tell.
            Err(error) => {
                self.end_session(&session, End::Abandon);
                Err(error)
            }
        }
    }

    /// Forgets every dump made under `token`.
    pub fn discard(&self, token: u64) {
        let session = self.sessions().get(&token).cloned();
        if let Some(session) = session {
            self.drop_session(&session, "the checkpoint was given up");
        }
    }

    /// Forgets dumps that ended long ago and were never committed.
    pub fn drop_abandoned(&self) {
        let old: Vec<Arc<Session>> = self
            .sessions()
            .values()
            .filter(|session| session.quiet_since().is_some_and(|since| since.elapsed() > ABANDONED))
            .cloned()
            .collect();
        for session in old {
            self.drop_session(&session, "the checkpoint was never committed");
        }
    }

    /// A connection has closed: forgets dumps that nobody is left to make a checkpoint of.
    pub fn drop_orphaned(&self) {
        let orphaned: Vec<Arc<Session>> =
            self.sessions().values().filter(|session| session.is_orphaned(&self.peers)).cloned().collect();
        for session in orphaned {
            self.drop_session(&session, "everybody who could have committed the checkpoint is gone");
        }
        // Who waits for sessions may not have to wait for one any more.
        self.session_over.notify_all();
    }

    /// Whether a checkpoint is being taken.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.sessions().is_empty()
    }

    /// Waits until no checkpoint is being taken, or for `limit`.
    pub fn wait_for_sessions(&self, limit: Duration) {
        self.wait_while(limit, |_| true);
    }

    /// Waits until no checkpoint is being taken that somebody else than the connection `but` can still make, or for
    /// `limit`.
    pub fn wait_for_checkpoints(&self, limit: Duration, but: Option<u64>) {
        self.wait_while(limit, |session| session.is_awaited(&self.peers, but));
    }

    fn wait_while(&self, limit: Duration, is_waited_for: impl Fn(&Session) -> bool) {
        let end = Instant::now() + limit;
        let mut sessions = self.sessions();
        while sessions.values().any(|session| is_waited_for(session)) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sessions =
                self.session_over.wait_timeout(sessions, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// # Errors
    /// The index or the directory cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let checkpoints = self.index().checkpoints()?;
        let processes = checkpoints.iter().flat_map(|record| &record.draft.processes);
        let pages: u64 = processes.map(|process| process.stats.pages).sum();
        let distinct: u64 = self.catalog.packs().values().map(|record| record.pages).sum();
        Ok(Usage {
            checkpoints: checkpoints.len() as u64,
            logical: pages * PAGE_SIZE as u64,
            unique: distinct * PAGE_SIZE as u64,
            on_disk: self.packs_on_disk()? + self.index_on_disk()?,
        })
    }

    /// Bytes of the packs, as the disk counts them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn packs_on_disk(&self) -> Result<u64, StoreError> {
        disk_usage(&self.directory.packs())
    }

    /// Bytes of the index, as the disk counts them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn index_on_disk(&self) -> Result<u64, StoreError> {
        disk_usage(&self.directory.index())
    }

    fn drop_session(&self, session: &Arc<Session>, why: &str) {
        session.close(why);
        self.end_session(session, End::Rewind);
    }

    fn end_session(&self, session: &Arc<Session>, end: End) {
        session.end(&self.pool, end);
        let mut sessions = self.sessions();
        if sessions.get(&session.token).is_some_and(|known| Arc::ptr_eq(known, session)) {
            sessions.remove(&session.token);
        }
        self.session_over.notify_all();
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether STASIS_DISABLE, names with commas between, names this part.
fn is_disabled(part: &str) -> bool {
    std::env::var("STASIS_DISABLE").is_ok_and(|names| names.split(',').any(|name| name == part))
}

/// Removes packs without a record and cuts the others to what is committed; returns the number for
/// the next pack.
fn recover_packs(packs: &Path, known: &BTreeMap<u32, PackRecord>) -> Result<u32, StoreError> {
    let mut removed = false;
    for number in list(packs)? {
        let path = pack::path(packs, number);
        let Some(record) = known.get(&number) else {
            fs::remove_file(&path).map_err(StoreError::io("cannot remove the unused", &path))?;
            removed = true;
            continue;
        };
        let metadata = fs::metadata(&path).map_err(StoreError::io("cannot look at", &path))?;
        if metadata.len() > record.committed {
            let file = fs::OpenOptions::new().write(true).open(&path);
            file.and_then(|file| file.set_len(record.committed))
                .map_err(StoreError::io("cannot truncate", &path))?;
        }
    }
    if removed {
        sync_directory(packs)?;
    }
    Ok(known.last_key_value().map_or(1, |(number, _)| number + 1))
}

/// Notes which packs are not there, or not whole: no new checkpoint may rely on them.
fn find_packs(packs: &Path, known: &BTreeMap<u32, PackRecord>, catalog: &Catalog) {
    for (number, record) in known {
        let path = pack::path(packs, *number);
        let problem = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() >= record.committed => continue,
            Ok(metadata) => {
                // Where pages lie in a compressed pack is known to its footers only.
                let is_plain = record.form == Form::Plain;
                catalog.note_away(*number, if is_plain { (metadata.len() / PAGE) as u32 } else { 0 });
                format!("has {} bytes of {}", metadata.len(), record.committed)
            }
            Err(error) => {
                catalog.note_away(*number, 0);
                error.to_string()
            }
        };
        log!("{}: {problem}; `stasis verify` names the checkpoints that need it", path.display());
    }
}

/// Bytes of the files in a directory, as the disk counts them.
fn disk_usage(directory: &Path) -> Result<u64, StoreError> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(directory).map_err(StoreError::io("cannot list", directory))? {
        match entry.and_then(|entry| entry.metadata()) {
            Ok(metadata) => bytes += metadata.blocks() * 512,
            // The index removes files as it goes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("cannot list", directory)(error)),
        }
    }
    Ok(bytes)
}
