//! The dump of one process: pages come in, are named, looked up, placed; at the end there is a
//! manifest.
//!
//! A page is compared first with the page of the same address in the base, which costs nothing, then
//! looked up in the index with its whole block, in sorted order, and then among what this checkpoint
//! has written.
//!
//! Not here: the writing (`session`), what makes the manifest part of a checkpoint (`store`).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use stasis_protocol::store::{DumpStats, Hash, PageRange, Space, StagedRun};

use crate::{
    error::StoreError,
    hash::PAGE_SIZE,
    leaves::Held,
    manifest::{
        Draft, Inner, LEAF_PAGES, MAX_PAGE, Manifest, Node, NodeSource, Reader, Root, Version, rebuild,
    },
    nodelog::{Layered, NodeLog},
    pack::Place,
    release::Hold,
    session::{Candidate, FinishedDump, Session},
    staging::Staging,
    store::Store,
};

/// Pages that are named and looked up together: 4 MiB, one write.
const BLOCK: usize = 1024;

/// The most leaves (2 MiB each) of one dump: 2 TiB of pages that a process really touched.
const MAX_LEAVES: usize = 1 << 20;

const LEAF: u64 = LEAF_PAGES as u64;

/// A dump under way.
pub struct Dump {
    session: Arc<Session>,
    base: Option<Manifest>,
    nodes: BaseNodes,
    /// Leaves that differ, or may differ, from the base's.
    leaves: BTreeMap<(Space, u64), Draft>,
    held: Held,
    /// Those that have been stored since.
    stored: BTreeMap<(Space, u64), Stored>,
    /// Their nodes, and all others that are new.
    log: NodeLog,
    /// Pages that the base has in those leaves, by space.
    replaced: BTreeMap<Space, u64>,
    stats: DumpStats,
}

/// The base's nodes above its leaves, as far as they have been read.
#[derive(Default)]
struct BaseNodes(Inner);

impl BaseNodes {
    fn reader<'a>(&mut self, store: &'a Store, source: &'a dyn NodeSource) -> Reader<'a> {
        let known = std::mem::take(&mut self.0);
        Reader::knowing(source, store.node_names(), store.hasher().zero(), known)
    }

    fn keep(&mut self, reader: Reader<'_>) {
        self.0 = reader.into_inner();
    }
}

/// A leaf that has been stored.
#[derive(Clone, Copy)]
struct Stored {
    /// `None`: there is no page in it.
    name: Option<Hash>,
    pages: u64,
}

/// A staged page and where it belongs.
#[derive(Clone, Copy)]
struct Staged {
    space: Space,
    number: u64,
    /// Where it lies in the staging buffer, in bytes.
    at: usize,
}

impl Dump {
    /// Starts a dump that takes part in `session`.
    ///
    /// # Errors
    /// The base is not in the store; the session takes no more.
    pub fn begin(store: &Store, session: Arc<Session>, name: Option<Hash>) -> Result<Self, StoreError> {
        let base = name.map(|name| Manifest::load(store.index(), store.node_names(), &name)).transpose()?;
        if let Some(base) = base.as_ref().filter(|_| store.catalog().has_damage()) {
            check_whole(store, base)?;
        }
        session.join()?;
        if let Some(base) = name {
            session.use_base(base);
        }
        Ok(Self {
            session,
            base,
            nodes: BaseNodes::default(),
            leaves: BTreeMap::new(),
            held: store.leaves().hold(),
            stored: BTreeMap::new(),
            log: NodeLog::new(store.shared_directory()),
            replaced: BTreeMap::new(),
            stats: DumpStats::default(),
        })
    }

    /// Notes which connection dumps.
    pub fn note_dumper(&self, number: u64) {
        self.session.note_dumper(number);
    }

    /// Takes pages out of the staging buffer. They are being written when this returns; `hold` is
    /// released when they have been.
    ///
    /// # Errors
    /// A run lies outside the buffer or the address space; the pages cannot be written.
    pub fn take(
        &mut self,
        store: &Store,
        staging: &Arc<Staging>,
        runs: &[StagedRun],
        hold: &Hold,
    ) -> Result<(), StoreError> {
        let mut block: Vec<Staged> = Vec::with_capacity(BLOCK);
        for run in runs {
            let outside = || {
                StoreError::Refused(format!(
                    "{} pages at page {:#x} of space {} and offset {:#x} of the staging buffer lie outside \
                     of one of them",
                    run.pages, run.first_page, run.space, run.staging_offset
                ))
            };
            let start = usize::try_from(run.staging_offset).map_err(|_| outside())?;
            let end = run.first_page.checked_add(u64::from(run.pages)).ok_or_else(outside)?;
            if end > MAX_PAGE || start % PAGE_SIZE != 0 {
                return Err(outside());
            }
            staging.pages(start, run.pages as usize).ok_or_else(outside)?;
            for index in 0..run.pages {
                let number = run.first_page + u64::from(index);
                block.push(Staged { space: run.space, number, at: start + index as usize * PAGE_SIZE });
                if block.len() == BLOCK {
                    self.take_block(store, staging, &block, hold)?;
                    block.clear();
                }
            }
        }
        self.take_block(store, staging, &block, hold)
    }

    fn take_block(
        &mut self,
        store: &Store,
        staging: &Arc<Staging>,
        block: &[Staged],
        hold: &Hold,
    ) -> Result<(), StoreError> {
        self.stats.received += block.len() as u64;
        let zero = *store.hasher().zero();
        let offsets: Vec<usize> = block.iter().map(|staged| staged.at).collect();
        let names = store.namer().name(staging, &offsets);
        let mut filled: Vec<Staged> = Vec::with_capacity(block.len());
        let mut candidates = Vec::with_capacity(block.len());
        for (staged, name) in block.iter().zip(names) {
            let leaf = self.leaf(store, staged.space, staged.number / LEAF)?;
            let slot = (staged.number % LEAF) as usize;
            if name == zero {
                leaf.set(slot, zero, Place::ZERO);
                self.stats.zero += 1;
            } else {
                let place = leaf.leaf().get(slot).and_then(|(old, place)| (*old == name).then_some(place));
                let place = place.filter(|place| !store.catalog().is_damaged(*place));
                filled.push(*staged);
                candidates.push(Candidate { name, staged: staged.at, place });
            }
        }
        store.look_up(&self.session, &mut candidates)?;
        let written = self.session.place(store, &mut candidates, staging, hold)?;
        self.stats.written += written;
        self.stats.bytes += written * PAGE_SIZE as u64;
        for (staged, candidate) in filled.iter().zip(candidates) {
            if let Some(place) = candidate.place {
                let leaf = self.leaf(store, staged.space, staged.number / LEAF)?;
                leaf.set((staged.number % LEAF) as usize, candidate.name, place);
            }
        }
        Ok(())
    }

    /// Makes holes of pages.
    ///
    /// # Errors
    /// The base cannot be read.
    pub fn forget(&mut self, store: &Store, ranges: &[PageRange]) -> Result<(), StoreError> {
        ranges.iter().try_for_each(|range| self.forget_range(store, *range))
    }

    fn forget_range(&mut self, store: &Store, range: PageRange) -> Result<(), StoreError> {
        let PageRange { space, first_page, pages } = range;
        let end = first_page.saturating_add(pages).min(MAX_PAGE);
        if first_page >= end {
            return Ok(());
        }
        let touched = first_page / LEAF..end.div_ceil(LEAF);
        let mut numbers: BTreeSet<u64> =
            self.leaves.range((space, touched.start)..(space, touched.end)).map(|(key, _)| key.1).collect();
        let stored = self.stored.range((space, touched.start)..(space, touched.end));
        numbers.extend(stored.map(|(key, _)| key.1));
        if let Some(root) = self.base.as_ref().and_then(|base| base.root(space)) {
            let mut reader = self.nodes.reader(store, store.index());
            let found = reader.leaves_in(root.name, touched);
            self.nodes.keep(reader);
            numbers.extend(found?);
        }
        for number in numbers {
            let leaf = self.leaf(store, space, number)?;
            let (start, stop) = (first_page.max(number * LEAF), end.min((number + 1) * LEAF));
            if stop - start == LEAF {
                leaf.clear();
            } else {
                (start..stop).for_each(|page| leaf.remove((page % LEAF) as usize));
            }
        }
        Ok(())
    }

    /// The dump is whole: makes its pages durable and its manifest.
    ///
    /// # Errors
    /// Something could not be written: the checkpoint has failed.
    pub fn finish(mut self, store: &Store, record: Vec<u8>) -> Result<(Hash, DumpStats), StoreError> {
        match self.complete(store, record) {
            Ok(finished) => {
                let told = (finished.manifest, self.stats);
                store.leave(&self.session, Some(finished));
                Ok(told)
            }
            Err(error) => {
                self.abort(store);
                Err(error)
            }
        }
    }

    /// Forgets the dump.
    pub fn abort(self, store: &Store) {
        store.leave(&self.session, None);
    }

    fn complete(&mut self, store: &Store, record: Vec<u8>) -> Result<FinishedDump, StoreError> {
        // The tree is made while the last pages are being written.
        let leaves = self.store_leaves(store)?;
        let (manifest, nodes) = self.manifest(store, record)?;
        self.log.extend(nodes)?;
        self.session.make_durable(store)?;
        self.stats.pages = manifest.roots.iter().map(|root| root.pages).sum();
        let (name, bytes) = manifest.encode(store.node_names())?;
        self.log.push((name, bytes))?;
        let log = std::mem::replace(&mut self.log, NodeLog::new(store.shared_directory()));
        let held = std::mem::replace(&mut self.held, store.leaves().hold());
        Ok(FinishedDump { manifest: name, nodes: Some(log), leaves, _held: held, stats: self.stats })
    }

    /// Stores all leaves that were changed; returns them as they are now.
    fn store_leaves(&mut self, store: &Store) -> Result<Vec<Version>, StoreError> {
        let mut versions = Vec::with_capacity(self.leaves.len());
        for (key, draft) in std::mem::take(&mut self.leaves) {
            let pages = draft.leaf().len() as u64;
            let settled = draft.settle(store.node_names());
            self.stored.insert(key, Stored { name: settled.as_ref().map(|leaf| leaf.version.name()), pages });
            if let Some(leaf) = settled {
                leaf.node.map_or(Ok(()), |node| self.log.push(node))?;
                versions.push(leaf.version);
            }
        }
        Ok(versions)
    }

    fn manifest(&mut self, store: &Store, record: Vec<u8>) -> Result<(Manifest, Vec<Node>), StoreError> {
        let mut reader = self.nodes.reader(store, store.index());
        let mut changed: BTreeMap<Space, Vec<(u64, Option<Hash>)>> = BTreeMap::new();
        let mut pages: BTreeMap<Space, u64> = BTreeMap::new();
        for ((space, number), leaf) in std::mem::take(&mut self.stored) {
            changed.entry(space).or_default().push((number, leaf.name));
            *pages.entry(space).or_default() += leaf.pages;
        }
        let old: &[Root] = self.base.as_ref().map_or(&[], |base| &base.roots);
        let spaces: BTreeSet<Space> =
            old.iter().map(|root| root.space).chain(changed.keys().copied()).collect();
        let (mut roots, mut nodes) = (Vec::new(), Vec::new());
        for space in spaces {
            let base = old.iter().find(|root| root.space == space);
            let leaves = changed.remove(&space).unwrap_or_default();
            let rebuilt = rebuild(&mut reader, base.map(|root| root.name), &leaves)?;
            nodes.extend(rebuilt.nodes);
            if let Some(name) = rebuilt.root {
                let replaced = self.replaced.get(&space).copied().unwrap_or_default();
                let kept = base.map_or(0, |root| root.pages).saturating_sub(replaced);
                let pages = kept + pages.get(&space).copied().unwrap_or_default();
                roots.push(Root { space, name, pages });
            }
        }
        Ok((Manifest::new(roots, record), nodes))
    }

    /// The leaf to change, as the base has it if it was not changed yet.
    fn leaf(&mut self, store: &Store, space: Space, number: u64) -> Result<&mut Draft, StoreError> {
        if !self.leaves.contains_key(&(space, number)) && self.held.are_many() {
            self.store_leaves(store)?;
            self.held.release();
        }
        let count = self.leaves.len() + self.stored.len();
        match self.leaves.entry((space, number)) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(_) if count >= MAX_LEAVES => Err(StoreError::Refused(format!(
                "the dump has pages in more than {MAX_LEAVES} ranges of 2 MiB; that is more than the store takes"
            ))),
            Entry::Vacant(entry) => {
                let source = Layered { log: &self.log, index: store.index() };
                let mut reader = self.nodes.reader(store, &source);
                let draft = match self.stored.remove(entry.key()) {
                    Some(Stored { name: None, .. }) => Ok(Draft::default()),
                    Some(Stored { name: Some(name), .. }) => reader.named_leaf(&name).map(Draft::from),
                    None => {
                        let root = self.base.as_ref().and_then(|base| base.root(space));
                        let leaf = root.map_or(Ok(None), |root| read(store, &mut reader, root, number));
                        if let Ok(Some(leaf)) = &leaf {
                            *self.replaced.entry(space).or_default() += leaf.leaf().len() as u64;
                        }
                        leaf.map(|leaf| leaf.map(Draft::from).unwrap_or_default())
                    }
                };
                self.nodes.keep(reader);
                self.held.add();
                Ok(entry.insert(draft?))
            }
        }
    }
}

/// Whether all pages of a base can be read, as far as is known. Where not, a full dump stores them again.
fn check_whole(store: &Store, base: &Manifest) -> Result<(), StoreError> {
    for root in &base.roots {
        let mut reader = Reader::new(store.index(), store.node_names(), store.hasher().zero());
        reader.each_leaf(root.name, &mut |_| true, &mut |first, _, leaf| {
            let mut leaf = leaf?.into_leaf();
            store.catalog().correct_to_read(&mut leaf)?;
            let mut pages = leaf.present().iter().filter_map(|at| Some((at, leaf.get(at)?.1)));
            match pages.find(|(_, place)| store.catalog().is_damaged(*place)) {
                Some((at, _)) => Err(StoreError::Damaged(format!(
                    "the page {:#x} (space {}) of the checkpoint before; all pages are stored again",
                    first + at as u64,
                    root.space
                ))),
                None => Ok(()),
            }
        })?;
    }
    Ok(())
}

/// A leaf of the base: from memory, if the last checkpoint has left it there.
fn read(
    store: &Store,
    reader: &mut Reader<'_>,
    root: &Root,
    number: u64,
) -> Result<Option<Version>, StoreError> {
    let Some(name) = reader.leaf_name(root.name, number)? else { return Ok(None) };
    match store.leaves().take(&name) {
        Some(version) => Ok(Some(version)),
        None => reader.named_leaf(&name).map(Some),
    }
}
