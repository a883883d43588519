//! Giving back the room of pages and nodes that no checkpoint needs, while checkpoints go on.
//!
//! 1. *Mark*: all nodes and all places of pages that checkpoints name. Then, with commits and new look-ups
//!    held for a moment, what was committed meanwhile and what dumps under way refer to.
//! 2. Still in that moment the packs to give up are chosen: nothing new refers to them from then on.
//! 3. Packs without a marked page go at once. Of the others the marked pages are copied to the end of
//!    another pack, compressed where that pays, and the index is told ([`compact`]).
//! 4. *Sweep* ([`sweep`]): one walk through all nodes, which removes those that are not marked and tells the
//!    others where their pages went.
//! 5. The packs are forgotten in one synced write, and their files removed when nobody reads them ([`crate::lease`]).
//!
//! A page is in a pack that has a record at any moment, and a leaf that does not say where is put right by the
//! index. So a crash leaves garbage, which the next collection finds.
//!
//! Packs that are mostly dead are given up, and those that are worth compressing ([`due`]): what is compressed in the
//! background ([`compress`]) moves in the same way.
//!
//! Memory: a bit for each page of the packs, 16 bytes and some for each node.

mod compact;
mod due;
mod mark;
mod pace;
mod sweep;

use std::{collections::BTreeSet, sync::Arc};

use stasis_protocol::store::Collected;

use crate::{
    catalog::Moves,
    error::StoreError,
    failpoint::FailPoint,
    hash::Hash,
    index::PackRecord,
    pack::{self, PAGE, reader::PackReader},
    store::Store,
};

pub use mark::{Marks, NodeSet};
pub use pace::Pace;

/// Packs that are compressed in one go: 4 GiB, of which the copies are on the disk beside the originals for a while.
const DUE_AT_ONCE: usize = 16;

/// In the background, packs are compressed when there is more of them than a part of so many of the store: all manifests are
/// walked through for that.
const DUE_PART: u64 = 100;

/// A pack to be given up.
#[derive(Clone, Copy)]
struct Victim {
    number: u32,
    record: PackRecord,
    /// Pages that must go on living elsewhere.
    live: u64,
    /// Given up in order to be compressed.
    is_due: bool,
}

/// Packs that nothing new refers to, until they are gone or this is dropped.
struct Condemned<'a> {
    store: &'a Store,
    victims: Vec<Victim>,
}

impl Drop for Condemned<'_> {
    fn drop(&mut self) {
        for victim in &self.victims {
            self.store.catalog().absolve(victim.number);
            self.store.pool().put_back(victim.number, victim.record);
        }
    }
}

/// Collects garbage, and compresses what is due if that is wanted. One collection at a time.
///
/// # Errors
/// A checkpoint's manifest is damaged: nothing was removed. Or the store could not be written: what was not
/// reached is as before.
pub fn collect(store: &Store, compress: bool) -> Result<Collected, StoreError> {
    let _turn = store.collection();
    let mut total = Collected::default();
    loop {
        let due = match compress && store.compresses() {
            true => due::find(store, DUE_AT_ONCE, false)?,
            false => BTreeSet::new(),
        };
        let round = round(store, &due, Pace::AtOnce).map_err(|error| explain(store, error))?;
        total.packs_removed += round.packs_removed;
        total.packs_compacted += round.packs_compacted;
        total.packs_compressed += round.packs_compressed;
        total.pages_moved += round.pages_moved;
        total.nodes_removed += round.nodes_removed;
        total.compressed_from += round.compressed_from;
        total.compressed_to += round.compressed_to;
        total.freed += round.freed;
        total.waiting |= round.waiting;
        total.left = round.left;
        // What had no room to be copied may have some now.
        let again = due.len() == DUE_AT_ONCE && round.packs_compressed > 0;
        if !again && (total.left.is_empty() || round.freed == 0) {
            return Ok(total);
        }
    }
}

/// Compresses packs in the background: full ones, or all if `only_full` is not set. Returns whether there is more to do at
/// once.
///
/// # Errors
/// As [`collect`].
pub fn compress(store: &Store, only_full: bool, pace: Pace<'_>) -> Result<bool, StoreError> {
    let Some(_turn) = store.try_collection() else { return Ok(false) };
    if !store.compresses() {
        return Ok(false);
    }
    let packs = store.catalog().packs();
    let all: u64 = packs.values().map(|record| record.committed).sum();
    let due = due::find(store, DUE_AT_ONCE, only_full)?;
    let bytes: u64 = due.iter().filter_map(|number| packs.get(number)).map(|record| record.committed).sum();
    if bytes * DUE_PART <= all || !pace.go_on(store) {
        return Ok(false);
    }
    let round = round(store, &due, pace)?;
    Ok(due.len() == DUE_AT_ONCE && round.packs_compressed > 0)
}

fn explain(store: &Store, error: StoreError) -> StoreError {
    if !error.is_full() {
        return error;
    }
    let (path, full) = (store.directory().path().display(), store.directory().full_in_numbers());
    StoreError::Refused(format!(
        "the file system of {path} is full ({full}): not all garbage could be removed, and nothing else was \
         touched; make room there, and run `stasis gc` again"
    ))
}

fn round(store: &Store, due: &BTreeSet<u32>, pace: Pace<'_>) -> Result<Collected, StoreError> {
    let mut collected = Collected::default();
    store.indexer().settle()?;
    let mut marks = Marks::default();
    mark::checkpoints(store, &mut marks)?;
    // So that less is left for the moment when everybody waits.
    mark::checkpoints(store, &mut marks)?;
    let (places, mut condemned, sweeping) = {
        let _everybody_waits = store.exclusive();
        mark::checkpoints(store, &mut marks)?;
        mark::sessions(store, &mut marks)?;
        let victims = choose(store, &marks, due);
        let places = Arc::new(std::mem::take(&mut marks.places));
        let numbers: Vec<u32> = victims.iter().map(|victim| victim.number).collect();
        store.catalog().condemn(&numbers, Arc::clone(&places));
        store.leaves().clear();
        (places, Condemned { store, victims }, store.sweep(marks.into_nodes()))
    };

    let dead: Vec<Victim> = condemned.victims.iter().filter(|victim| victim.live == 0).copied().collect();
    forget_names(store, &dead)?;
    collected.packs_removed = dead.len() as u64;
    retire(store, &mut condemned, &dead, &mut collected)?;

    let compacted = compact::all(store, &condemned.victims, &places, pace)?;
    if compacted.stopped && compacted.emptied.is_empty() {
        return Ok(collected);
    }
    // Once is enough: they are looked at again when they have grown.
    store.catalog().note_not_worth(&compacted.damaged)?;
    collected.pages_moved = compacted.pages;
    collected.left = compacted.left;
    collected.compressed_from = compacted.compressed_from;
    collected.compressed_to = compacted.compressed_to;
    collected.nodes_removed = sweep::nodes(store, &sweeping)?;
    let compressed = compacted.emptied.iter().filter(|victim| victim.is_due).count();
    collected.packs_compressed = compressed as u64;
    collected.packs_compacted = (compacted.emptied.len() - compressed) as u64;
    retire(store, &mut condemned, &compacted.emptied, &mut collected)?;
    collected.freed = collected.freed.saturating_sub(compacted.bytes);
    Ok(collected)
}

/// The packs of which less than half is marked, the emptiest first, and those that are `due`.
fn choose(store: &Store, marks: &Marks, due: &BTreeSet<u32>) -> Vec<Victim> {
    let mut victims: Vec<Victim> = store
        .catalog()
        .packs()
        .into_iter()
        .map(|(number, record)| {
            let live = marks.places.in_pack(number);
            let is_sparse = live * 2 < record.pages;
            (is_sparse, Victim { number, record, live, is_due: !is_sparse && due.contains(&number) })
        })
        .filter(|(is_sparse, victim)| *is_sparse || victim.is_due)
        .map(|(_, victim)| victim)
        .filter(|victim| store.pool().take_out(victim.number))
        .collect();
    victims.sort_by_key(|victim| victim.live);
    victims
}

/// Takes the names of dead packs out of the index. Only for its size: it is not believed about packs that are gone.
fn forget_names(store: &Store, dead: &[Victim]) -> Result<(), StoreError> {
    let mut reader = PackReader::new(&store.directory().packs());
    for victim in dead {
        let footers = reader.footers(victim.number, PAGE, victim.record.committed).unwrap_or_default();
        let names: Vec<Hash> = footers.into_iter().flat_map(|footer| footer.names).collect();
        store.indexer().move_pages(Moves { gone: vec![(victim.number, names)], ..Moves::default() })?;
    }
    Ok(())
}

/// Packs that nothing refers to any more.
fn retire(
    store: &Store,
    condemned: &mut Condemned<'_>,
    victims: &[Victim],
    collected: &mut Collected,
) -> Result<(), StoreError> {
    if victims.is_empty() {
        return Ok(());
    }
    let numbers: Vec<u32> = victims.iter().map(|victim| victim.number).collect();
    store.catalog().remove_packs(&numbers)?;
    let gone: BTreeSet<u32> = numbers.into_iter().collect();
    condemned.victims.retain(|victim| !gone.contains(&victim.number));
    for number in gone {
        let path = pack::path(&store.directory().packs(), number);
        collected.waiting |= !store.leases().retire([path]);
        FailPoint::PacksRemoved.hit();
    }
    collected.freed += victims.iter().map(|victim| victim.record.committed).sum::<u64>();
    Ok(())
}
