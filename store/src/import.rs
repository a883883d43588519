//! Reading checkpoints from a stream: all of it, or nothing.
//!
//! Pages get their names anew, with this store's key, and are looked up: only those that are not there are written. The
//! checkpoints appear in one write, when the stream has come to its end and every checksum was right.

mod table;

use std::{collections::BTreeSet, io, io::Read, sync::Arc};

use stasis_protocol::store::{CheckpointRecord, DumpStats, Hash, Imported};

use table::PageTable;

use crate::{
    error::StoreError,
    hash::Page,
    label,
    manifest::{Draft, LEAF_PAGES, MAX_PAGE, Manifest, Node, Reader as Trees, Root, rebuild},
    nodelog::NodeLog,
    pack::{AlignedPage, Place},
    session::Session,
    store::Store,
    stream::{self, CheckpointFrame, EndFrame, Frame, LeafFrame, ProcessFrame, Reader, StreamError},
};

struct Import<'a> {
    store: &'a Store,
    session: Arc<Session>,
    pages: PageTable,
    leaves: Vec<LeafName>,
    nodes: NodeLog,
    processes: Vec<(Hash, u64)>,
    checkpoints: Vec<CheckpointRecord>,
    written: u64,
}

/// A leaf of the stream.
#[derive(Clone, Copy)]
struct LeafName {
    name: Hash,
    pages: u16,
}

/// The leaves of a space, by number and in order.
type SpaceLeaves = (u32, Vec<(u64, LeafName)>);

/// Imports all checkpoints of a stream that are not there.
///
/// # Errors
/// The stream is not whole, or the store cannot be written: nothing was imported.
pub fn import(store: &Store, source: impl Read) -> Result<Imported, StoreError> {
    let pages = PageTable::new(store.directory())?;
    let session = store.begin_import()?;
    let mut import = Import {
        store,
        session: Arc::clone(&session),
        pages,
        leaves: Vec::new(),
        nodes: NodeLog::new(store.shared_directory()),
        processes: Vec::new(),
        checkpoints: Vec::new(),
        written: 0,
    };
    if let Err(error) = import.read(source) {
        store.give_up(&session, "the import has failed");
        return Err(error);
    }
    let Import { pages, nodes, checkpoints, written, .. } = import;
    let given = checkpoints.len();
    let new = store.commit_import(&session, checkpoints, nodes)?;
    let written = if new.is_empty() { 0 } else { written };
    Ok(Imported { known: (given - new.len()) as u64, checkpoints: new, pages: pages.len(), written })
}

fn refused(error: StreamError) -> StoreError {
    StoreError::Refused(format!("nothing was imported: the stream cannot be used: {error}"))
}

impl Import<'_> {
    fn read(&mut self, source: impl Read) -> Result<(), StoreError> {
        let mut reader = Reader::new(source).map_err(refused)?;
        loop {
            let frame = reader.frame().map_err(refused)?;
            let wrong = |what| refused(StreamError::Contradiction(reader.at, what));
            match frame {
                Frame::Pages(bytes) => self.take_pages(stream::pages(&bytes))?,
                Frame::Leaf(frame) => {
                    let leaf =
                        self.leaf(&frame)?.ok_or_else(|| wrong("a leaf of pages that are not there"))?;
                    self.leaves.push(leaf);
                }
                Frame::Process(frame) => {
                    let leaves =
                        self.spaces(&frame).ok_or_else(|| wrong("a process of leaves that are not there"))?;
                    self.process(leaves, frame.record)?;
                }
                Frame::Checkpoint(frame) => {
                    let record = self.checkpoint(frame).ok_or_else(|| wrong("a checkpoint that is none"))?;
                    record
                        .draft
                        .label
                        .as_deref()
                        .map_or(Ok(()), label::check)
                        .map_err(StoreError::Refused)?;
                    self.checkpoints.push(record);
                }
                Frame::End(end) => {
                    let count = EndFrame {
                        pages: self.pages.len(),
                        leaves: self.leaves.len() as u64,
                        processes: self.processes.len() as u64,
                        checkpoints: self.checkpoints.len() as u64,
                    };
                    if count != end {
                        return Err(wrong("it counts itself wrongly"));
                    }
                    return self.session.make_durable(self.store);
                }
            }
        }
    }

    fn take_pages(&mut self, pages: &[Page]) -> Result<(), StoreError> {
        let store = self.store;
        let mut names = vec![[0; 32]; pages.len()];
        store.hasher().name_pages(&pages.iter().collect::<Vec<_>>(), &mut names);
        let zero = store.hasher().zero();
        let mut order: Vec<usize> = (0..names.len()).filter(|at| names[*at] != *zero).collect();
        order.sort_unstable_by_key(|at| names[*at]);
        let sorted: Vec<Hash> = order.iter().map(|at| names[*at]).collect();
        let mut places: Vec<Option<Place>> = vec![Some(Place::ZERO); names.len()];
        for (at, place) in order.into_iter().zip(store.find_places(&self.session, &sorted)?) {
            places[at] = place;
        }
        let missing: Vec<usize> = (0..names.len()).filter(|at| places[*at].is_none()).collect();
        self.written += missing.len() as u64;
        let copies = missing.iter().map(|at| (names[*at], AlignedPage(pages[*at]))).collect();
        for (at, place) in missing.iter().zip(self.session.place_owned(store, copies)?) {
            places[*at] = Some(place);
        }
        store.directory().check_room((names.len() * 64) as u64)?;
        for (name, place) in names.iter().zip(places) {
            self.pages.push(name, place.unwrap_or_default()).map_err(|error| self.no_table(error))?;
        }
        Ok(())
    }

    /// `None`: it contradicts itself.
    fn leaf(&mut self, frame: &LeafFrame) -> Result<Option<LeafName>, StoreError> {
        let mut leaf = Draft::default();
        for run in &frame.runs {
            let (first, pages) = (usize::from(run.first), usize::from(run.pages));
            if first + pages > LEAF_PAGES {
                return Ok(None);
            }
            let zeros = || vec![(*self.store.hasher().zero(), Place::ZERO); pages];
            let found = match run.start {
                None => Some(zeros()),
                Some(start) => self.pages.get(start, pages).map_err(|error| self.no_table(error))?,
            };
            let Some(found) = found else { return Ok(None) };
            found.into_iter().zip(first..).for_each(|((name, place), at)| leaf.set(at, name, place));
        }
        let pages = leaf.leaf().len() as u16;
        let Some(settled) = leaf.settle(self.store.node_names()) else { return Ok(None) };
        if let Some(node) = settled.node {
            self.nodes.push(node)?;
        }
        Ok(Some(LeafName { name: settled.version.name(), pages }))
    }

    fn no_table(&self, source: io::Error) -> StoreError {
        let action = "cannot keep the pages of the stream beside";
        StoreError::Io { action, path: self.store.directory().path().to_owned(), source }
    }

    /// The leaves of each space, in order.
    fn spaces(&self, frame: &ProcessFrame) -> Option<Vec<SpaceLeaves>> {
        let mut spaces = Vec::new();
        for (space, numbers) in &frame.spaces {
            let mut leaves: Vec<(u64, LeafName)> = Vec::new();
            for (at, number) in numbers {
                let ordered = leaves.last().is_none_or(|(last, _)| last < at);
                if !ordered || *at >= MAX_PAGE / LEAF_PAGES as u64 {
                    return None;
                }
                leaves.push((*at, self.leaves.get(usize::try_from(*number).ok()?).copied()?));
            }
            if leaves.is_empty() || spaces.last().is_some_and(|(last, _)| last >= space) {
                return None;
            }
            spaces.push((*space, leaves));
        }
        Some(spaces)
    }

    fn process(&mut self, spaces: Vec<SpaceLeaves>, record: Vec<u8>) -> Result<(), StoreError> {
        let store = self.store;
        let (mut roots, mut nodes): (Vec<Root>, Vec<Node>) = (Vec::new(), Vec::new());
        for (space, leaves) in spaces {
            let mut trees = Trees::new(store.index(), store.node_names(), store.hasher().zero());
            let pages = leaves.iter().map(|(_, leaf)| u64::from(leaf.pages)).sum();
            let leaves: Vec<_> = leaves.into_iter().map(|(number, leaf)| (number, Some(leaf.name))).collect();
            let rebuilt = rebuild(&mut trees, None, &leaves)?;
            nodes.extend(rebuilt.nodes);
            roots.extend(rebuilt.root.map(|name| Root { space, name, pages }));
        }
        let pages = roots.iter().map(|root| root.pages).sum();
        let (manifest, bytes) = Manifest::new(roots, record).encode(store.node_names())?;
        nodes.push((manifest, bytes));
        self.nodes.extend(nodes)?;
        self.processes.push((manifest, pages));
        Ok(())
    }

    fn checkpoint(&self, frame: CheckpointFrame) -> Option<CheckpointRecord> {
        let CheckpointFrame { id, taken_us, mut draft, processes } = frame;
        let is_id = id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let twice = self.checkpoints.iter().any(|record| record.id == id);
        if !is_id || twice || draft.processes.is_empty() || draft.processes.len() != processes.len() {
            return None;
        }
        let mut pids = BTreeSet::new();
        for (process, number) in draft.processes.iter_mut().zip(processes) {
            let (manifest, pages) = *self.processes.get(usize::try_from(number).ok()?)?;
            if !pids.insert(process.pid) {
                return None;
            }
            process.manifest = manifest;
            // What was counted elsewhere is told as it was, within reason.
            let DumpStats { received, written, zero, bytes, .. } = process.stats;
            process.stats = DumpStats {
                pages,
                received: received.min(pages),
                written: written.min(pages),
                zero: zero.min(pages),
                bytes: bytes.min(pages.saturating_mul(stasis_protocol::PAGE_SIZE as u64)),
            };
        }
        Some(CheckpointRecord { id, sequence: 0, taken_us, draft })
    }
}
