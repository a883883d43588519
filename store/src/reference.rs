//! What people call a checkpoint: an id, a unique prefix of one, a label, `latest`, each with an
//! optional `~N` for the N-th before it.
//!
//! Before `latest` lies what was committed before it; before an id or a label lies its parent, the
//! checkpoint that the computation went on from.

use stasis_protocol::store::CheckpointRecord;

use crate::{error::StoreError, index::Index, label::LATEST};

/// How many candidates an ambiguous prefix names.
const CANDIDATES: usize = 8;

/// The checkpoint that `reference` names.
///
/// # Errors
/// It names none, or several.
pub fn resolve(index: &Index, reference: &str) -> Result<CheckpointRecord, StoreError> {
    let found = index.with_own_labels(vec![follow(index, reference)?])?;
    found.into_iter().next().ok_or_else(|| StoreError::Refused(format!("{reference:?} names no checkpoint")))
}

fn follow(index: &Index, reference: &str) -> Result<CheckpointRecord, StoreError> {
    let refuse = |problem: String| Err(StoreError::Refused(problem));
    let (name, back) = match reference.split_once('~') {
        None => (reference, 0),
        Some((name, digits)) => match digits.parse::<u64>() {
            Ok(back) => (name, back),
            Err(_) => {
                return refuse(format!("{reference:?}: ~ must be followed by a number, as in latest~1"));
            }
        },
    };
    if name.is_empty() {
        return refuse(format!("{reference:?} names no checkpoint; the last one is called `{LATEST}`"));
    }
    if name == LATEST {
        let all = index.checkpoints()?;
        let at = usize::try_from(back).ok().and_then(|back| all.len().checked_sub(1)?.checked_sub(back));
        let Some(at) = at else {
            return refuse(match all.len() {
                0 => "the store has no checkpoint; take one with `stasis checkpoint`".into(),
                1 => format!("{reference:?}: the store has only one checkpoint; see `stasis list`"),
                count => format!("{reference:?}: the store has only {count} checkpoints; see `stasis list`"),
            });
        };
        return Ok(all[at].clone());
    }
    let mut record = find(index, name)?;
    for step in 0..back {
        let Some(parent) = &record.draft.parent else {
            return refuse(match step {
                0 => format!("{reference:?}: {name} has no checkpoint before it"),
                1 => format!("{reference:?}: {name} has only one checkpoint before it"),
                step => format!("{reference:?}: {name} has only {step} checkpoints before it"),
            });
        };
        record = index.by_id(parent)?.ok_or_else(|| {
            StoreError::Refused(format!(
                "{reference:?}: {parent}, the parent of {}, is not in the store any more",
                record.id
            ))
        })?;
    }
    Ok(record)
}

fn find(index: &Index, name: &str) -> Result<CheckpointRecord, StoreError> {
    if let Some(record) = index.by_id(name)? {
        return Ok(record);
    }
    if let Some(record) = index.by_label(name)? {
        return Ok(record);
    }
    let mut candidates: Vec<CheckpointRecord> =
        index.checkpoints()?.into_iter().filter(|record| record.id.starts_with(name)).collect();
    match candidates.len() {
        0 => {
            Err(StoreError::Refused(format!("no checkpoint has the id or label {name:?}; see `stasis list`")))
        }
        1 => Ok(candidates.remove(0)),
        count => {
            let mut ids: Vec<&str> =
                candidates.iter().take(CANDIDATES).map(|record| &record.id[..]).collect();
            if count > CANDIDATES {
                ids.push("...");
            }
            Err(StoreError::Refused(format!(
                "{name:?} is the beginning of {count} ids: {}; give more digits",
                ids.join(", ")
            )))
        }
    }
}
