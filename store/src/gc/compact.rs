//! Copying what lives in packs that are mostly dead.
//!
//! Each page is checked against its name on the way: a pack with a damaged one stays as it is, for `verify` to name
//! it.

use std::sync::Arc;

use super::Victim;
use crate::{
    catalog::{Moves, entries},
    error::{StoreError, hex},
    failpoint::FailPoint,
    hash::{Hash, PAGE_SIZE, Page},
    pack::{self, AlignedPage, PAGE, Place, reader::PackReader, set::PlaceSet},
    session::{End, Outcome, Session},
    store::Store,
};

/// Pages that are moved before the index is told: their names are in memory until then.
const PAGES_AT_ONCE: u64 = 128 << 10;

/// Packs that are: the names of all their pages are in memory, 2 MiB each.
const PACKS_AT_ONCE: usize = 8;

/// Pages that are read and handed on at a time.
const CHUNK: usize = 256;

/// Room that is left for the index when pages are copied, in bytes.
const MARGIN: u64 = 1 << 20;

/// What has been copied.
#[derive(Default)]
pub struct Compacted {
    /// Packs from which every marked page was copied.
    pub emptied: Vec<Victim>,
    pub pages: u64,
    /// Packs that were left as they are, and why.
    pub left: Vec<String>,
}

/// Copies the pages of `places` out of all packs that can be emptied.
///
/// # Errors
/// The index or a pack cannot be written.
pub fn all(store: &Store, victims: &[Victim], places: &PlaceSet) -> Result<Compacted, StoreError> {
    let mut compacted = Compacted::default();
    let mut rest = victims;
    while !rest.is_empty() {
        let (mut pages, mut packs) = (0, 0);
        let end = rest.iter().position(|victim| {
            pages += victim.live;
            packs += 1;
            pages > PAGES_AT_ONCE || packs > PACKS_AT_ONCE
        });
        // At least one.
        let (batch, behind) = rest.split_at(end.unwrap_or(rest.len()).max(1));
        match some(store, batch, places, &mut compacted) {
            Ok(()) => rest = behind,
            Err(error) if error.is_full() => {
                let bytes: u64 = rest.iter().map(|victim| victim.live * PAGE).sum();
                compacted.left.push(format!(
                    "{} packs were not compacted: {} MiB would have to be copied, and the file system of {} is full ({}); \
                     make room there, and run `stasis gc` again",
                    rest.len(),
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

fn some(
    store: &Store,
    batch: &[Victim],
    places: &PlaceSet,
    compacted: &mut Compacted,
) -> Result<(), StoreError> {
    let session = Session::new(0, store.shared_directory());
    let result = copy(store, &session, batch, places).and_then(|copied| {
        session.make_durable(store)?;
        FailPoint::PagesCopied.hit();
        Ok(copied)
    });
    session.close("the pages are moved");
    let (copied, outcome) = match result.and_then(|copied| Ok((copied, session.outcome()?))) {
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
    let pages = moved.len() as u64;
    store.indexer().move_pages(Moves { moved, grown, gone: copied.names })?;
    FailPoint::PagesMoved.hit();
    compacted.pages += pages;
    compacted.emptied.extend(copied.emptied);
    compacted.left.extend(copied.left);
    Ok(())
}

#[derive(Default)]
struct Copied {
    emptied: Vec<Victim>,
    /// By pack, the names in it.
    names: Vec<(u32, Vec<Hash>)>,
    left: Vec<String>,
}

fn copy(
    store: &Store,
    session: &Arc<Session>,
    batch: &[Victim],
    places: &PlaceSet,
) -> Result<Copied, StoreError> {
    let mut copied = Copied::default();
    let mut reader = PackReader::new(&store.directory().packs());
    for victim in batch {
        store.directory().check_room(victim.live * PAGE + MARGIN)?;
        match copy_one(store, session, &mut reader, victim, places) {
            Ok(names) => {
                copied.names.push((victim.number, names));
                copied.emptied.push(*victim);
            }
            // The copy is what failed.
            Err(Problem::Write(error)) => return Err(error),
            Err(Problem::Read(error)) => copied.left.push(format!(
                "{} was left as it is: {error}; `stasis verify` names the checkpoints that need it",
                pack::path(&store.directory().packs(), victim.number).display()
            )),
        }
    }
    Ok(copied)
}

enum Problem {
    Read(StoreError),
    Write(StoreError),
}

/// Returns the names of all pages of the pack.
fn copy_one(
    store: &Store,
    session: &Arc<Session>,
    reader: &mut PackReader,
    victim: &Victim,
    places: &PlaceSet,
) -> Result<Vec<Hash>, Problem> {
    let footers = reader.footers(victim.number, PAGE, victim.record.committed).map_err(Problem::Read)?;
    let mut pages: Vec<(Hash, Place)> =
        footers.iter().flat_map(|footer| entries(victim.number, footer)).collect();
    drop(footers);
    // In the order in which they lie, which is that of addresses.
    pages.sort_unstable_by_key(|(_, place)| *place);
    let live: Vec<(Hash, Place)> =
        pages.iter().filter(|(_, place)| places.contains(*place)).copied().collect();
    if live.len() as u64 != victim.live {
        let problem = format!("{} of its {} pages have a name", live.len(), victim.live);
        return Err(Problem::Read(StoreError::Damaged(problem)));
    }
    for chunk in live.chunks(CHUNK) {
        let mut copies = Vec::with_capacity(chunk.len());
        for run in chunk.chunk_by(|(_, a), (_, b)| a.slot + 1 == b.slot) {
            let mut bytes = vec![0; run.len() * PAGE_SIZE];
            let Some((_, first)) = run.first() else { continue };
            reader.read(victim.number, first.offset(), &mut bytes).map_err(Problem::Read)?;
            let read: Vec<&Page> = bytes.as_chunks::<PAGE_SIZE>().0.iter().collect();
            let mut found = vec![[0; 32]; read.len()];
            store.hasher().name_pages(&read, &mut found);
            for (((name, place), found), page) in run.iter().zip(found).zip(read) {
                if *name != found {
                    store.catalog().note_damage(&[*place], &[]).map_err(Problem::Write)?;
                    return Err(Problem::Read(StoreError::Damaged(format!(
                        "the page {} at offset {:#x} holds something else",
                        hex(name),
                        place.offset()
                    ))));
                }
                copies.push((*name, AlignedPage(*page)));
            }
        }
        session.place_owned(store, copies).map_err(Problem::Write)?;
    }
    Ok(pages.into_iter().map(|(name, _)| name).collect())
}
