//! What processes touched first after they were restarted: kept with the checkpoint that they were restarted from, and of
//! use for every checkpoint that was taken after it.

use std::collections::{BTreeMap, HashMap};

use stasis_protocol::store::{CheckpointRecord, WorkingSet};

use super::Catalog;
use crate::{
    error::StoreError,
    index::{Changes, KeptWorkingSet},
};

impl Catalog {
    /// Keeps the working set of a process, in place of the one before; does nothing where there is no such checkpoint.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_working_set(&self, checkpoint: &str, pid: u32, set: WorkingSet) -> Result<(), StoreError> {
        // Or the checkpoint could be deleted between the look and the write.
        let _commits = self.records();
        let Some(record) = self.index.by_id(checkpoint)? else { return Ok(()) };
        let working_sets = vec![((record.sequence, pid), set)];
        self.index.write(&Changes { working_sets, ..Changes::default() })
    }

    /// The working set of a process of a checkpoint, or of the nearest one that led to it; empty: none is known.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn working_set(&self, checkpoint: &str, pid: u32) -> Result<WorkingSet, StoreError> {
        // What led to a checkpoint is older. Most stores have no set, or recent ones only.
        let Some(first) = self.index.first_working_set()? else { return Ok(WorkingSet::new()) };
        let mut next = self.index.by_id(checkpoint)?;
        while let Some(record) = next.filter(|record| record.sequence >= first) {
            if let Some(set) = self.index.working_set(record.sequence, pid)? {
                return Ok(set);
            }
            next = self.parent(&record)?;
        }
        Ok(WorkingSet::new())
    }

    /// Never a younger one: a record that was imported may name anything.
    fn parent(&self, record: &CheckpointRecord) -> Result<Option<CheckpointRecord>, StoreError> {
        let Some(parent) = &record.draft.parent else { return Ok(None) };
        Ok(self.index.by_id(parent)?.filter(|parent| parent.sequence < record.sequence))
    }

    /// The working sets that checkpoints which are `kept` have from parents that go.
    pub(super) fn inherited(
        &self,
        gone: &[CheckpointRecord],
        kept: &[CheckpointRecord],
    ) -> Result<Vec<KeptWorkingSet>, StoreError> {
        let mut sets: BTreeMap<(u64, u32), WorkingSet> = BTreeMap::new();
        let gone: HashMap<&str, &CheckpointRecord> =
            gone.iter().map(|record| (record.id.as_str(), record)).collect();
        let parent = |record: &CheckpointRecord| {
            let parent = gone.get(record.draft.parent.as_deref()?)?;
            (parent.sequence < record.sequence).then_some(*parent)
        };
        for record in kept.iter().filter(|record| parent(record).is_some()) {
            for process in &record.draft.processes {
                if self.index.working_set(record.sequence, process.pid)?.is_some() {
                    continue;
                }
                let mut next = parent(record);
                while let Some(ancestor) = next {
                    if let Some(set) = self.index.working_set(ancestor.sequence, process.pid)? {
                        sets.insert((record.sequence, process.pid), set);
                        break;
                    }
                    next = parent(ancestor);
                }
            }
        }
        Ok(sets.into_iter().collect())
    }
}
