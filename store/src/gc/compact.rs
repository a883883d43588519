//! Copying what lives in packs that are to go: those that are mostly dead, and those that are compressed.
//!
//! Each page is checked against its name on the way: a pack with a damaged one stays as it is, for `verify` to name
//! it. A thread reads, checks and compresses, which this one puts into their place: it may be slow, and nobody waits
//! for a lock that it holds.

use std::{
    collections::{BTreeSet, HashSet},
    hash::BuildHasherDefault,
    mem,
    sync::{Arc, mpsc},
    thread,
};

use stasis_protocol::store::kind;

use super::{Pace, Victim};
use crate::{
    catalog::{Moves, entries},
    error::{StoreError, hex},
    failpoint::FailPoint,
    hash::{Hash, PAGE_SIZE, Page},
    names::NameHasher,
    pack::{
        self, AlignedPage, PAGE, Place,
        block::{Block, Compressor},
        reader::PackReader,
        set::PlaceSet,
    },
    session::{End, Outcome, Session},
    store::Store,
};

/// Pages that are moved before the index is told: their names are in memory until then.
const PAGES_AT_ONCE: u64 = 128 << 10;

/// Packs that are: the names of all their pages are in memory, 2 MiB each.
const PACKS_AT_ONCE: usize = 8;

/// Pages that are read and handed on at a time: a millisecond's work.
const CHUNK: usize = 256;

/// Chunks that wait to be put into their place.
const QUEUE: usize = 4;

/// Room that is left for the index when pages are copied, in bytes.
const MARGIN: u64 = 1 << 20;

/// What has been copied.
#[derive(Default)]
pub struct Compacted {
    /// Packs from which every marked page was copied.
    pub emptied: Vec<Victim>,
    pub pages: u64,
    /// What they take where they are now.
    pub bytes: u64,
    /// Of them, those that were compressed.
    pub compressed_from: u64,
    pub compressed_to: u64,
    /// Packs that were left as they are, and why.
    pub left: Vec<String>,
    /// Those of them that cannot be read.
    pub damaged: BTreeSet<u32>,
    /// There was no time for the others.
    pub stopped: bool,
}

/// Copies the pages of `places` out of all packs that can be emptied, until `pace` says to stop.
///
/// # Errors
/// The index or a pack cannot be written.
pub fn all(
    store: &Store,
    victims: &[Victim],
    places: &PlaceSet,
    pace: Pace<'_>,
) -> Result<Compacted, StoreError> {
    let mut compacted = Compacted::default();
    let mut rest = victims;
    while !rest.is_empty() {
        let (mut pages, mut packs) = (0, 0);
        let end = rest.iter().position(|victim| {
            pages += victim.live;
            packs += 1;
            pages > PAGES_AT_ONCE || packs > PACKS_AT_ONCE
        });
        // At least one. What is interrupted is begun again: one then.
        let end = if matches!(pace, Pace::AtOnce) { end.unwrap_or(rest.len()).max(1) } else { 1 };
        let (batch, behind) = rest.split_at(end);
        match some(store, batch, places, pace, &mut compacted) {
            Ok(true) => rest = behind,
            Ok(false) => {
                compacted.stopped = true;
                break;
            }
            Err(error) if error.is_full() => {
                let bytes: u64 = rest.iter().map(|victim| victim.live * PAGE).sum();
                compacted.left.push(format!(
                    "{} not compacted: {} MiB would have to be copied, and the file system of {} is full ({}); \
                     make room there, and run `stasis gc` again",
                    if rest.len() == 1 { "1 pack was".into() } else { format!("{} packs were", rest.len()) },
                    (bytes >> 20) + 1,
                    store.directory().path().display(),
                    store.directory().full_in_numbers()
                ));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(compacted)
}

/// Returns whether it came to its end.
fn some(
    store: &Store,
    batch: &[Victim],
    places: &PlaceSet,
    pace: Pace<'_>,
    compacted: &mut Compacted,
) -> Result<bool, StoreError> {
    let session = Session::new(0, store.shared_directory(), 0);
    let result = copy(store, &session, batch, places, pace).and_then(|copied| {
        if !copied.stopped {
            session.make_durable(store)?;
            FailPoint::PagesCopied.hit();
        }
        Ok(copied)
    });
    session.close("the pages are moved");
    let (copied, outcome) = match result.and_then(|copied| Ok((copied, session.outcome()?))) {
        Ok((copied, _)) if copied.stopped => {
            session.end(store.pool(), End::Rewind);
            return Ok(false);
        }
        Ok(done) => done,
        Err(error) => {
            session.end(store.pool(), End::Rewind);
            return Err(error);
        }
    };
    let Outcome { written, grown, .. } = outcome;
    if let Err(error) = store.catalog().grow(&grown) {
        session.end(store.pool(), End::Abandon);
        return Err(error);
    }
    session.end(store.pool(), End::Commit);
    FailPoint::PackGrown.hit();
    let moved: Vec<(Hash, Place)> = written.iter().collect();
    store.indexer().move_pages(Moves { moved, grown, gone: copied.names })?;
    FailPoint::PagesMoved.hit();
    store.follow(|| {
        let to = |name: &Hash| written.tables.iter().find_map(|table| table.get(name).copied());
        copied.from.iter().filter_map(|(name, from)| Some((*from, to(name)?))).collect()
    });
    compacted.pages += written.len() as u64;
    compacted.bytes += copied.bytes;
    compacted.compressed_from += copied.compressed_from;
    compacted.compressed_to += copied.compressed_to;
    compacted.emptied.extend(copied.emptied);
    compacted.left.extend(copied.left);
    compacted.damaged.extend(copied.damaged);
    Ok(true)
}

#[derive(Default)]
struct Copied {
    emptied: Vec<Victim>,
    /// By pack, the names in it.
    names: Vec<(u32, Vec<Hash>)>,
    /// Pages that were copied, and where they were.
    from: Vec<(Hash, Place)>,
    bytes: u64,
    compressed_from: u64,
    compressed_to: u64,
    left: Vec<String>,
    damaged: BTreeSet<u32>,
    /// Not all was copied, and nothing counts.
    stopped: bool,
}

/// What the reading thread has come to.
enum Step {
    Blocks(Vec<Block>),
    /// Where nothing is compressed.
    Pages(Vec<(Hash, AlignedPage)>),
    /// All of a pack has been handed on. The names of all its pages, and what was copied.
    Emptied(Victim, Vec<Hash>, Vec<(Hash, Place)>),
    /// A pack cannot be read, or a page in it is damaged.
    Damaged(Victim, Option<Place>, StoreError),
    Stopped,
}

fn copy(
    store: &Store,
    session: &Arc<Session>,
    batch: &[Victim],
    places: &PlaceSet,
    pace: Pace<'_>,
) -> Result<Copied, StoreError> {
    let mut copied = Copied::default();
    store.directory().check_room(batch.iter().map(|victim| victim.live * PAGE).sum::<u64>() + MARGIN)?;
    thread::scope(|scope| {
        let (steps, receiver) = mpsc::sync_channel(QUEUE);
        let reading = thread::Builder::new().name("mover".into()).spawn_scoped(scope, move || {
            pace.set_priority();
            Mover::new(store, places, pace, steps).all(batch);
        });
        reading.map_err(StoreError::io("cannot start a thread for", store.directory().path()))?;
        // Where this ends early, so does the thread: nobody takes what it has.
        for step in receiver {
            match step {
                Step::Blocks(blocks) => {
                    session.place_blocks(store, &blocks)?;
                    for block in blocks {
                        copied.bytes += block.bytes.len() as u64;
                        if block.kind == kind::LZ4 {
                            copied.compressed_from += (block.names.len() * PAGE_SIZE) as u64;
                            copied.compressed_to += block.bytes.len() as u64;
                        }
                    }
                }
                Step::Pages(pages) => {
                    copied.bytes += (pages.len() * PAGE_SIZE) as u64;
                    session.place_owned(store, pages)?;
                }
                Step::Emptied(victim, names, from) => {
                    copied.names.push((victim.number, names));
                    copied.from.extend(from);
                    copied.emptied.push(victim);
                }
                Step::Damaged(victim, place, error) => {
                    let place = place.as_slice();
                    let (damaged, unreadable): (&[Place], &[Place]) =
                        if error.is_unreadable() { (&[], place) } else { (place, &[]) };
                    store.catalog().note_damage(damaged, unreadable, &[])?;
                    copied.damaged.insert(victim.number);
                    copied.left.push(format!(
                        "{} was left as it is: {error}; `stasis verify` names the checkpoints that need it",
                        pack::path(&store.directory().packs(), victim.number).display()
                    ));
                }
                Step::Stopped => copied.stopped = true,
            }
        }
        Ok(copied)
    })
}

/// The reading thread.
struct Mover<'a> {
    store: &'a Store,
    places: &'a PlaceSet,
    pace: Pace<'a>,
    steps: mpsc::SyncSender<Step>,
    packs: PackReader,
    /// `None`: pages stay raw.
    compressor: Option<Compressor>,
    /// What was handed on: a page may lie in two packs.
    known: HashSet<Hash, BuildHasherDefault<NameHasher>>,
}

/// The names of all pages of a pack, and where those are that were copied.
type Emptied = (Vec<Hash>, Vec<(Hash, Place)>);

/// Why a pack was not emptied.
enum Problem {
    /// Which page it is, where it is one.
    Damage(Option<Place>, StoreError),
    /// To be told, or nobody is left to be told.
    Stopped,
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::Damage(None, error)
    }
}

impl<'a> Mover<'a> {
    fn new(store: &'a Store, places: &'a PlaceSet, pace: Pace<'a>, steps: mpsc::SyncSender<Step>) -> Self {
        Self {
            store,
            places,
            pace,
            steps,
            packs: PackReader::new(&store.directory().packs()),
            compressor: store.compresses().then(Compressor::default),
            known: HashSet::default(),
        }
    }

    fn all(&mut self, batch: &[Victim]) {
        for victim in batch {
            let step = match self.one(victim) {
                Ok((names, from)) => Step::Emptied(*victim, names, from),
                Err(Problem::Damage(place, error)) => Step::Damaged(*victim, place, error),
                Err(Problem::Stopped) => {
                    let _ = self.steps.send(Step::Stopped);
                    return;
                }
            };
            if self.steps.send(step).is_err() {
                return;
            }
        }
    }

    /// Returns the names of all pages of the pack, and where those are that were copied.
    fn one(&mut self, victim: &Victim) -> Result<Emptied, Problem> {
        let footers = self.packs.footers(victim.number, PAGE, victim.record.committed)?;
        let mut pages: Vec<(Hash, Place)> =
            footers.iter().flat_map(|footer| entries(victim.number, footer)).collect();
        drop(footers);
        // In the order in which they lie, which is that of addresses.
        pages.sort_unstable_by_key(|(_, place)| *place);
        let live: Vec<(Hash, Place)> =
            pages.iter().filter(|(_, place)| self.places.contains(*place)).copied().collect();
        if live.len() as u64 != victim.live {
            let problem = format!("{} of its {} pages have a name", live.len(), victim.live);
            return Err(StoreError::Damaged(problem).into());
        }
        for chunk in live.chunks(CHUNK) {
            if !self.pace.go_on(self.store) {
                return Err(Problem::Stopped);
            }
            let bytes = self.read(chunk)?;
            self.hand_on(chunk, bytes.as_chunks::<PAGE_SIZE>().0)?;
        }
        Ok((pages.into_iter().map(|(name, _)| name).collect(), live))
    }

    fn read(&mut self, chunk: &[(Hash, Place)]) -> Result<Vec<u8>, Problem> {
        let mut bytes = vec![0; chunk.len() * PAGE_SIZE];
        let mut rest = &mut bytes[..];
        for run in chunk.chunk_by(|(_, a), (_, b)| a.slot + 1 == b.slot) {
            let Some((_, first)) = run.first() else { continue };
            let (now, behind) = mem::take(&mut rest).split_at_mut(run.len() * PAGE_SIZE);
            self.packs.read_pages(self.store.catalog(), *first, now)?;
            rest = behind;
        }
        let pages: Vec<&Page> = bytes.as_chunks::<PAGE_SIZE>().0.iter().collect();
        let mut found = vec![[0; 32]; pages.len()];
        self.store.hasher().name_pages(&pages, &mut found);
        for ((name, place), found) in chunk.iter().zip(found) {
            if *name != found {
                let offset = self.packs.stretch(self.store.catalog(), *place, 1)?.offset;
                let problem = format!("the page {} at offset {offset:#x} holds something else", hex(name));
                return Err(Problem::Damage(Some(*place), StoreError::Damaged(problem)));
            }
        }
        Ok(bytes)
    }

    fn hand_on(&mut self, chunk: &[(Hash, Place)], pages: &[Page]) -> Result<(), Problem> {
        let fresh: Vec<bool> = chunk.iter().map(|(name, _)| self.known.insert(*name)).collect();
        let Some(compressor) = &mut self.compressor else {
            let pages = chunk.iter().zip(pages).zip(fresh).filter(|(_, fresh)| *fresh);
            let pages = pages.map(|(((name, _), page), _)| (*name, AlignedPage(*page)));
            return self.send(Step::Pages(pages.collect()));
        };
        let names: Vec<Hash> =
            chunk.iter().zip(&fresh).filter(|(_, fresh)| **fresh).map(|((name, _), _)| *name).collect();
        let blocks = if names.len() == pages.len() {
            compressor.blocks(&names, pages)
        } else {
            let pages = pages.iter().zip(fresh).filter(|(_, fresh)| *fresh);
            compressor.blocks(&names, &pages.map(|(page, _)| *page).collect::<Vec<_>>())
        };
        self.send(Step::Blocks(blocks))
    }

    fn send(&self, step: Step) -> Result<(), Problem> {
        self.steps.send(step).map_err(|_| Problem::Stopped)
    }
}
