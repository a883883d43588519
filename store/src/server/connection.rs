//! One connection: who it is, what it asks, what it is told.
//!
//! Requests that are not answered (`BeginDump`, `Staging`, `Forget`) leave their problem for the next
//! one that is. Not here: the work itself.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::{
    sys::socket::MsgFlags,
    unistd::{geteuid, getpid},
};
use stasis_protocol::{
    VERSION,
    store::{Reply, Request, StagedRun},
    wire::WireError,
};

use super::{
    Shared,
    restricted::{self, Restriction},
};
use crate::{
    difference, du,
    dump::Dump,
    error::StoreError,
    export::export,
    gc,
    import::import,
    lease::Lease,
    manifest::Manifest,
    peers::Peer,
    process::{Listing, Part, Reading},
    reference,
    release::Releases,
    staging::Staging,
    transport::{self, TransportError},
    verify::{Report, verify},
};

/// How long a connection may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// How long a client may take to read a reply.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a shutdown waits for checkpoints under way.
const LAST_CHECKPOINTS: Duration = Duration::from_secs(600);

struct Connection<'a> {
    shared: &'a Arc<Shared>,
    stream: Arc<UnixStream>,
    releases: Arc<Releases>,
    staging: Option<Arc<Staging>>,
    dump: Option<Dump>,
    /// What went wrong with the dump and has not been told.
    problem: Option<String>,
    /// What may be asked, if not everything.
    restriction: Option<&'a Restriction>,
    /// The restricted connections that were asked for.
    lent: Vec<Arc<Restriction>>,
    /// `None` of a restricted connection.
    peer: Option<Peer>,
    /// Once it was told where pages lie, until it asks for something else.
    lease: Option<Lease>,
    /// Whose pages were asked for last.
    reading: Option<Reading>,
}

/// Serves a connection until it ends.
pub fn serve(shared: &Arc<Shared>, stream: UnixStream) {
    Connection::new(shared, Arc::new(stream), None).serve();
}

/// Serves a restricted connection until it ends.
pub fn serve_restricted(shared: &Arc<Shared>, restriction: &Restriction) {
    Connection::new(shared, Arc::clone(restriction.stream()), Some(restriction)).serve();
    // Whoever asked for it knows the stream as well.
    restriction.end();
}

impl<'a> Connection<'a> {
    fn new(shared: &'a Arc<Shared>, stream: Arc<UnixStream>, restriction: Option<&'a Restriction>) -> Self {
        Self {
            shared,
            releases: Releases::new(Arc::clone(&stream)),
            stream,
            staging: None,
            dump: None,
            problem: None,
            restriction,
            lent: Vec::new(),
            peer: restriction.is_none().then(|| shared.store.peers().enter()),
            lease: None,
            reading: None,
        }
    }

    fn serve(mut self) {
        if let Err(error) = self.run() {
            log!("a connection ended: {error}");
        }
        self.end_lent(None);
        self.abort_dump();
        if self.peer.take().is_some() {
            self.shared.store.drop_orphaned();
        }
    }

    fn run(&mut self) -> Result<(), TransportError> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(Some(HELLO))?;
        self.stream.set_write_timeout(Some(PATIENCE))?;
        if self.restriction.is_none() && !self.admit()? {
            return Ok(());
        }
        self.stream.set_read_timeout(None)?;
        loop {
            match transport::receive::<Request>(&self.stream) {
                Ok(None) => return Ok(()),
                Ok(Some((request, descriptors))) => {
                    if let Some(restriction) = self.restriction {
                        if restriction.is_over() {
                            return Ok(());
                        }
                        if let Some(why) = restriction.refuses(&request) {
                            return self.reply(&Reply::Refused(why));
                        }
                    }
                    let was_last = self.restriction.is_some() && matches!(request, Request::EndDump { .. });
                    self.handle(request, descriptors)?;
                    if was_last {
                        return Ok(());
                    }
                }
                Err(TransportError::Wire(error)) => {
                    // What follows cannot be told from garbage.
                    self.reply(&Reply::Refused(format!("{error}; the connection is closed")))?;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the client is one of us and speaks our version, and this is the store that it means.
    fn admit(&self) -> Result<bool, TransportError> {
        let peer = transport::peer(&self.stream)?;
        if peer.uid() != geteuid().as_raw() && peer.uid() != 0 {
            let (store, uid) = (self.shared.store.directory().path().display(), peer.uid());
            self.reply(&Reply::Refused(format!(
                "the store {store} belongs to uid {}, not to uid {uid}; use a store of your own (--store DIR)",
                geteuid()
            )))?;
            return Ok(false);
        }
        let version = match transport::receive::<Request>(&self.stream) {
            Ok(Some((Request::Hello { version }, _))) => version,
            Ok(Some(_)) | Err(TransportError::Wire(WireError::Malformed | WireError::TooLong(_))) => {
                self.reply(&Reply::Refused("a connection to the store must open with Hello".into()))?;
                return Ok(false);
            }
            Ok(None) => return Ok(false),
            Err(error) => return Err(error),
        };
        let server_pid = getpid().as_raw().unsigned_abs();
        if version != VERSION {
            self.reply(&Reply::Refused(format!(
                "the store server (pid {server_pid}) speaks protocol version {VERSION}, this program version \
                 {version}; end the server (`stasis store --stop`), or use the Stasis that started it"
            )))?;
            return Ok(false);
        }
        self.check_in_place()?;
        self.reply(&Reply::Welcome { version: VERSION, server_pid })?;
        Ok(true)
    }

    fn handle(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Result<(), TransportError> {
        match request {
            Request::BeginDump { token, base, .. } => self.begin_dump(token, base)?,
            Request::Staging { len } => self.map_staging(descriptors, len),
            Request::Pages { runs } => self.take_pages(&runs),
            Request::Forget { ranges } => {
                if let Some(dump) = &mut self.dump
                    && let Err(error) = dump.forget(&self.shared.store, &ranges)
                {
                    self.problem.get_or_insert(error.to_string());
                }
            }
            Request::AbortDump => self.abort_dump(),
            Request::ReadProcess { manifest, may_wait } => {
                let part = if may_wait.is_empty() { Part::All } else { Part::Outline(may_wait) };
                match self.list(&manifest, &part) {
                    Err(error) => self.reply(&Reply::Refused(error.to_string()))?,
                    Ok(listing) => {
                        let directory = self.shared.store.directory();
                        let reply = Reply::Process {
                            key: *directory.key(),
                            directory: directory.path().to_string_lossy().into_owned(),
                            extents: listing.extents,
                            pages: listing.pages,
                            later: listing.later,
                            later_pages: listing.later_pages,
                        };
                        self.reply_with(&reply, &listing.memfd)?;
                    }
                }
            }
            Request::ReadPages { manifest, first_page, end_page } => {
                match self.list(&manifest, &Part::Memory(first_page..end_page)) {
                    Err(error) => self.reply(&Reply::Refused(error.to_string()))?,
                    Ok(listing) => {
                        let reply = Reply::Pages { extents: listing.extents, pages: listing.pages };
                        self.reply_with(&reply, &listing.memfd)?;
                    }
                }
            }
            Request::Restrict { token } => match Restriction::begin(self.shared, token) {
                Err(problem) => self.reply(&Reply::Refused(problem))?,
                Ok((restriction, theirs)) => {
                    self.lent.push(restriction);
                    self.reply_with(&Reply::Restricted, &theirs)?;
                }
            },
            Request::Export { .. } | Request::Import => {
                let answer = self.stream(request, descriptors);
                self.shared.background.look();
                self.reply_or_refuse(answer)?;
            }
            other => {
                let is_dump = matches!(other, Request::EndDump { .. });
                let answer = self.answer(other);
                if is_dump && answer.is_err() {
                    self.check_in_place()?;
                }
                self.reply_or_refuse(answer)?;
            }
        }
        Ok(())
    }

    /// Where the store was deleted or moved away the connection closes without an answer: the client takes this server for one that is
    /// ending then, and goes to the next one.
    fn check_in_place(&self) -> Result<(), TransportError> {
        match self.shared.store.directory().check_in_place() {
            Err(error @ StoreError::Gone { .. }) => {
                self.shared.end();
                Err(TransportError::Io(io::Error::other(error.to_string())))
            }
            _ => Ok(()),
        }
    }

    /// A part of a process' pages.
    fn list(&mut self, manifest: &[u8; 32], part: &Part) -> Result<Listing, StoreError> {
        let store = &self.shared.store;
        self.lease.get_or_insert_with(|| store.leases().take());
        let mut reading = match self.reading.take().filter(|reading| reading.is_of(manifest)) {
            Some(reading) => reading,
            None => Reading::begin(store, manifest)?,
        };
        let listing = reading.list(store, part)?;
        self.reading = Some(reading);
        Ok(listing)
    }

    /// The requests that are answered with one message.
    fn answer(&mut self, request: Request) -> Result<Reply, StoreError> {
        // What was asked before is answered before.
        self.releases.wait();
        (self.lease, self.reading) = (None, None);
        let store = &self.shared.store;
        store.directory().check_in_place()?;
        Ok(match request {
            Request::EndDump { record } => self.end_dump(record)?,
            Request::Commit { token, draft } => {
                self.end_lent(Some(token));
                let record = store.commit(token, draft)?;
                store.directory().check_in_place()?;
                self.shared.background.look();
                Reply::Committed(record)
            }
            Request::Discard { token } => {
                self.end_lent(Some(token));
                store.discard(token);
                Reply::Done
            }
            Request::List => Reply::Checkpoints(store.index().with_own_labels(store.index().checkpoints()?)?),
            Request::Resolve { reference } => {
                Reply::Checkpoint(reference::resolve(store.index(), &reference)?)
            }
            Request::Verify { id } => {
                let Report { pages, damaged, damage, summary } = verify(store, id.as_deref())?;
                Reply::Verified { pages, damaged, damage, summary }
            }
            Request::Usage => Reply::Usage(store.usage()?),
            Request::DiskUsage => Reply::DiskUsage(du::usage(store)?),
            Request::Diff { from, to } => Reply::Differences(difference::between(store, &from, &to)?),
            Request::ReadRecord { manifest } => {
                Reply::Record(Manifest::load(store.index(), store.node_names(), &manifest)?.record)
            }
            Request::Collect { compress } => Reply::Collected(gc::collect(store, compress)?),
            Request::KeepWorkingSet { checkpoint, pid, set } => {
                store.catalog().keep_working_set(&checkpoint, pid, set)?;
                Reply::Done
            }
            Request::ReadWorkingSet { checkpoint, pid } => {
                Reply::WorkingSet(store.catalog().working_set(&checkpoint, pid)?)
            }
            Request::Prune { ids } => Reply::Pruned(store.catalog().prune(&ids)?),
            Request::Shutdown => {
                // No checkpoint begins any more; those under way may end.
                self.shared.stopping.store(true, Ordering::Release);
                store.wait_for_checkpoints(LAST_CHECKPOINTS, self.peer.as_ref().map(Peer::number));
                drop(store.collection());
                self.shared.end();
                Reply::Done
            }
            Request::Hello { .. } => return Err(StoreError::Refused("Hello was said already".into())),
            Request::BeginDump { .. }
            | Request::Staging { .. }
            | Request::Pages { .. }
            | Request::Forget { .. }
            | Request::AbortDump
            | Request::Restrict { .. }
            | Request::Export { .. }
            | Request::Import
            | Request::ReadProcess { .. }
            | Request::ReadPages { .. } => {
                return Err(StoreError::Refused("the request is not answered this way".into()));
            }
        })
    }

    /// The requests that come with a file or a pipe, which is closed when they are answered.
    fn stream(&mut self, request: Request, mut descriptors: Vec<OwnedFd>) -> Result<Reply, StoreError> {
        let store = &self.shared.store;
        store.directory().check_in_place()?;
        let missing = || StoreError::Refused("no file came beside the message".into());
        let file = File::from(descriptors.pop().ok_or_else(missing)?);
        match request {
            Request::Export { references } => {
                Ok(Reply::Exported(export(store, &references, BufWriter::new(file))?))
            }
            _ if self.shared.stopping.load(Ordering::Acquire) => {
                Err(StoreError::Refused("the store server is ending; import again".into()))
            }
            _ => Ok(Reply::Imported(import(store, BufReader::with_capacity(1 << 20, file))?)),
        }
    }

    fn begin_dump(&mut self, token: u64, base: Option<[u8; 32]>) -> Result<(), TransportError> {
        self.abort_dump();
        self.check_in_place()?;
        let mut has_base = false;
        if self.shared.stopping.load(Ordering::Acquire) {
            self.problem = Some("the store server is ending; take the checkpoint again".into());
        } else {
            let store = &self.shared.store;
            has_base = base.is_some();
            let mut begun = store.begin_dump(token, base);
            if let (Err(error), true) = (&begun, has_base) {
                log!("a dump begins without its base: {error}");
                (begun, has_base) = (store.begin_dump(token, None), false);
            }
            match begun {
                Ok(dump) => {
                    if let Some(peer) = &self.peer {
                        peer.dumps();
                        dump.note_dumper(peer.number());
                    }
                    self.dump = Some(dump);
                }
                Err(error) => self.problem = Some(error.to_string()),
            }
        }
        if base.is_some() { self.reply(&Reply::Begun { base: has_base }) } else { Ok(()) }
    }

    fn map_staging(&mut self, mut descriptors: Vec<OwnedFd>, len: u64) {
        let mapped = match descriptors.pop() {
            Some(memfd) => Staging::map(memfd, len),
            None => Err("no staging buffer came beside the message".into()),
        };
        match mapped {
            Ok(staging) => self.staging = Some(Arc::new(staging)),
            Err(problem) => self.problem = Some(problem),
        }
    }

    /// Answered when the last holder of `hold` lets go.
    fn take_pages(&mut self, runs: &[StagedRun]) {
        let mut staging = self.staging.clone();
        if self.restriction.is_some() {
            // One copy at a time: what a connection can make the server hold has a limit.
            self.releases.wait();
            match staging.map(|staging| restricted::copy(&staging, runs)).transpose() {
                Ok(copy) => staging = copy.map(Arc::new),
                Err(problem) => {
                    self.problem.get_or_insert(problem);
                    staging = None;
                }
            }
        }
        let hold = self.releases.begin();
        let result = match (&self.problem, &mut self.dump, &staging) {
            (Some(problem), ..) => Err(problem.clone()),
            (None, None, _) => Err("there are pages, but no dump was begun".into()),
            (None, _, None) => Err("there are pages, but no staging buffer".into()),
            (None, Some(dump), Some(staging)) => {
                dump.take(&self.shared.store, staging, runs, &hold).map_err(|error| error.to_string())
            }
        };
        if let Err(problem) = result {
            hold.refuse(&problem);
            self.problem.get_or_insert(problem);
        }
    }

    fn end_dump(&mut self, record: Vec<u8>) -> Result<Reply, StoreError> {
        if let Some(problem) = self.problem.take() {
            self.abort_dump();
            return Err(StoreError::Refused(problem));
        }
        let Some(dump) = self.dump.take() else {
            return Err(StoreError::Refused("the dump ends, but none was begun".into()));
        };
        let finished = dump.finish(&self.shared.store, record);
        if let Some(staging) = &self.staging {
            staging.rest();
        }
        let (manifest, stats) = finished?;
        let stats = if self.restriction.is_some() { restricted::told(stats) } else { stats };
        Ok(Reply::Dumped { manifest, stats })
    }

    /// Ends the restricted connections for a checkpoint (`None`: for all).
    fn end_lent(&mut self, token: Option<u64>) {
        let over = |restriction: &Arc<Restriction>| token.is_none_or(|token| restriction.token() == token);
        for restriction in self.lent.extract_if(.., |restriction| over(restriction)) {
            restriction.end();
        }
    }

    fn abort_dump(&mut self) {
        self.problem = None;
        if let Some(dump) = self.dump.take() {
            dump.abort(&self.shared.store);
        }
    }

    fn reply_or_refuse(&self, answer: Result<Reply, StoreError>) -> Result<(), TransportError> {
        let is_gone = matches!(answer, Err(StoreError::Gone { .. }));
        let told = self.reply(&answer.unwrap_or_else(|error| Reply::Refused(error.to_string())));
        if is_gone {
            self.shared.end();
        }
        told
    }

    fn reply(&self, reply: &Reply) -> Result<(), TransportError> {
        self.releases.wait();
        match transport::send(&self.stream, reply, &[], MsgFlags::empty()) {
            Err(TransportError::Wire(error)) => {
                let reply = Reply::Refused(format!("the answer cannot be sent: {error}"));
                transport::send(&self.stream, &reply, &[], MsgFlags::empty())
            }
            other => other,
        }
    }

    fn reply_with(&self, reply: &Reply, memfd: &OwnedFd) -> Result<(), TransportError> {
        self.releases.wait();
        match transport::send(&self.stream, reply, &[memfd.as_fd()], MsgFlags::empty()) {
            Err(TransportError::Wire(error)) => Err(io::Error::other(error.to_string()).into()),
            other => other,
        }
    }
}
