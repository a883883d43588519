//! Giving back the room of pages and nodes that no checkpoint needs, while checkpoints go on.
//!
//! 1. *Mark*: all nodes and all places of pages that checkpoints name. Then, with commits and new look-ups
//!    held for a moment, what was committed meanwhile and what dumps under way refer to.
//! 2. Still in that moment the packs to give up are chosen: nothing new refers to them from then on.
//! 3. Packs without a marked page go at once. Of the others the marked pages are copied to the end of
//!    another pack, as a checkpoint's are, and the index is told ([`compact`]).
//! 4. *Sweep* ([`sweep`]): one walk through all nodes, which removes those that are not marked and tells the
//!    others where their pages went.
//! 5. The packs are forgotten in one synced write, and their files removed when nobody reads them ([`crate::lease`]).
//!
//! A page is in a pack that has a record at any moment, and a leaf that does not say where is put right by the
//! index. So a crash leaves garbage, which the next collection finds.
//!
//! Memory: a bit for each page of the packs, 16 bytes and some for each node.

mod compact;
mod mark;
mod sweep;

use std::collections::BTreeSet;

use stasis_protocol::store::Collected;

use crate::{
    catalog::Moves,
    error::StoreError,
    failpoint::FailPoint,
    hash::{Hash, PAGE_SIZE},
    index::PackRecord,
    pack::{self, PAGE, reader::PackReader},
    store::Store,
};

pub use mark::{Marks, NodeSet};

/// A pack to be given up.
#[derive(Clone, Copy)]
struct Victim {
    number: u32,
    record: PackRecord,
    /// Pages that must go on living elsewhere.
    live: u64,
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
            self.store.pool().put_back(victim.number, victim.record.committed);
        }
    }
}

/// Collects garbage. One collection at a time.
///
/// # Errors
/// A checkpoint's manifest is damaged: nothing was removed. Or the store could not be written: what was not
/// reached is as before.
pub fn collect(store: &Store) -> Result<Collected, StoreError> {
    let _turn = store.collection();
    let mut total = Collected::default();
    loop {
        let round = round(store).map_err(|error| explain(store, error))?;
        total.packs_removed += round.packs_removed;
        total.packs_compacted += round.packs_compacted;
        total.pages_moved += round.pages_moved;
        total.nodes_removed += round.nodes_removed;
        total.freed += round.freed;
        total.waiting |= round.waiting;
        total.left = round.left;
        // What had no room to be copied may have some now.
        if total.left.is_empty() || round.freed == 0 {
            return Ok(total);
        }
    }
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

fn round(store: &Store) -> Result<Collected, StoreError> {
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
        let victims = choose(store, &marks);
        store.catalog().condemn(&victims.iter().map(|victim| victim.number).collect::<Vec<_>>());
        store.leaves().clear();
        let places = std::mem::take(&mut marks.places);
        (places, Condemned { store, victims }, store.sweep(marks.into_nodes()))
    };

    let dead: Vec<Victim> = condemned.victims.iter().filter(|victim| victim.live == 0).copied().collect();
    forget_names(store, &dead)?;
    collected.packs_removed = dead.len() as u64;
    retire(store, &mut condemned, &dead, &mut collected)?;

    let compacted = compact::all(store, &condemned.victims, &places)?;
    collected.pages_moved = compacted.pages;
    collected.left = compacted.left;
    collected.nodes_removed = sweep::nodes(store, &sweeping)?;
    collected.packs_compacted = compacted.emptied.len() as u64;
    retire(store, &mut condemned, &compacted.emptied, &mut collected)?;
    collected.freed = collected.freed.saturating_sub(compacted.pages * PAGE_SIZE as u64);
    Ok(collected)
}

/// The packs of which less than half is marked, the emptiest first.
fn choose(store: &Store, marks: &Marks) -> Vec<Victim> {
    let mut victims: Vec<Victim> = store
        .catalog()
        .packs()
        .into_iter()
        .map(|(number, record)| Victim { number, record, live: marks.places.in_pack(number) })
        .filter(|victim| victim.live * 2 < victim.record.pages)
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
