//! How much room checkpoints take, and what deleting one would give back.
//!
//! A page that two checkpoints need belongs to neither of them: what is one's own is found in two walks, first for
//! the pages that are needed twice, then for those that are not. Three bits of memory for each page of the packs.

use stasis_protocol::store::{CheckpointRecord, CheckpointUsage, DiskUsage};

use crate::{
    error::StoreError,
    hash::PAGE_SIZE,
    manifest::{Manifest, Reader},
    pack::{Form, set::PlaceSet},
    store::Store,
};

/// # Errors
/// A manifest is damaged, or the index or the directory cannot be read.
pub fn usage(store: &Store) -> Result<DiskUsage, StoreError> {
    // Pages do not move meanwhile.
    let _turn = store.collection();
    let checkpoints = store.index().checkpoints()?;
    let (mut once, mut twice) = (PlaceSet::default(), PlaceSet::default());
    for checkpoint in &checkpoints {
        let places = places(store, checkpoint)?;
        twice.extend_common(&once, &places);
        once.extend(&places);
    }
    let packs = store.catalog().packs();
    // Of a compressed pack, each page takes its part.
    let on_disk = |(pack, pages): (u32, u64)| match packs.get(&pack) {
        Some(record) if record.form == Form::Compressed && record.pages > 0 => {
            u64::try_from(u128::from(pages) * u128::from(record.committed) / u128::from(record.pages))
                .unwrap_or(u64::MAX)
        }
        _ => bytes(pages),
    };
    let mut usage = DiskUsage { distinct: bytes(once.count()), ..DiskUsage::default() };
    drop(once);
    for checkpoint in checkpoints {
        let places = places(store, &checkpoint)?;
        let processes = checkpoint.draft.processes.iter();
        let logical = bytes(processes.map(|process| process.stats.pages).sum());
        usage.logical += logical;
        usage.checkpoints.push(CheckpointUsage {
            id: checkpoint.id,
            logical,
            distinct: bytes(places.count()),
            own: bytes(places.count_without(&twice)),
            own_on_disk: places.counts_without(&twice).map(on_disk).sum(),
        });
    }
    usage.stored = bytes(packs.values().map(|record| record.pages).sum());
    for record in packs.values().filter(|record| record.form == Form::Compressed) {
        usage.compressed += bytes(record.pages);
        usage.compressed_packs += record.committed;
    }
    usage.packs = store.packs_on_disk()?;
    usage.index = store.index_on_disk()?;
    Ok(usage)
}

fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE as u64)
}

fn places(store: &Store, checkpoint: &CheckpointRecord) -> Result<PlaceSet, StoreError> {
    let mut places = PlaceSet::default();
    for process in &checkpoint.draft.processes {
        let manifest = Manifest::load(store.index(), store.node_names(), &process.manifest)?;
        for root in &manifest.roots {
            let mut reader = Reader::new(store.index(), store.node_names(), store.hasher().zero());
            reader.each_leaf(root.name, &mut |_| true, &mut |_, _, leaf| {
                let mut leaf = leaf?.into_leaf();
                store.catalog().correct_to_read(&mut leaf)?;
                leaf.runs().into_iter().for_each(|run| places.insert(run.place, run.pages));
                Ok(())
            })?;
        }
    }
    Ok(places)
}
