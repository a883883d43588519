//! The walk through all nodes.

use crate::{
    error::StoreError,
    failpoint::FailPoint,
    hash::Hash,
    manifest::{Node, Stored},
    store::{Store, Sweeping},
};

/// Bytes of nodes that are looked at together.
const STEP: usize = 4 << 20;

/// Removes the nodes that are not needed, and tells the others where their pages are; returns how many are gone.
///
/// # Errors
/// The index cannot be read or written.
pub fn nodes(store: &Store, sweeping: &Sweeping<'_>) -> Result<u64, StoreError> {
    let (mut removed, mut looked_at) = (0, 0);
    let mut last: Option<Hash> = None;
    loop {
        let step = store.index().nodes_after(last.as_ref(), STEP)?;
        let Some((name, _)) = step.last() else { break };
        last = Some(*name);
        looked_at += step.len() as u64;
        let names: Vec<Hash> = step.iter().map(|(name, _)| *name).collect();
        let changed = corrected(store, sweeping, step)?;
        removed += sweeping.remove_dead(&names, &changed)?;
        FailPoint::NodesPartial.hit();
    }
    // RocksDB would give the room back some day. A quarter is worth the work of doing so now.
    if removed * 4 > looked_at {
        store.index().compact_nodes()?;
    }
    Ok(removed)
}

/// Those of the nodes that say of pages that they lie where they do not any more, put right.
fn corrected(store: &Store, sweeping: &Sweeping<'_>, nodes: Vec<Node>) -> Result<Vec<Node>, StoreError> {
    let mut changed = Vec::new();
    for (name, bytes) in nodes {
        if store.catalog().is_current(&bytes, &[]) || !sweeping.is_live(&name) {
            continue;
        }
        // A damaged one was seen while marking, or has come since; it is not for here to judge.
        let Some(mut stored) = Stored::parse(&bytes, store.hasher().zero()) else { continue };
        // What only others rest on may name pages that are gone: those others have other ones there.
        if store.catalog().correct_to_keep(stored.own(), &[])? {
            changed.push((name, stored.encode()));
        }
    }
    Ok(changed)
}
