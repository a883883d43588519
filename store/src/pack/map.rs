//! Where the pages of a compressed pack lie.

use super::footer::Run;

/// The runs of a pack, in the order of their slots.
pub struct SlotMap {
    runs: Vec<Run>,
}

impl SlotMap {
    #[must_use]
    pub fn new(mut runs: Vec<Run>) -> Self {
        runs.sort_unstable_by_key(|run| run.slot);
        Self { runs }
    }

    /// The run that has the page with this slot, and how many of its pages come before.
    #[must_use]
    pub fn find(&self, slot: u32) -> Option<(&Run, u32)> {
        let behind = self.runs.partition_point(|run| run.slot <= slot);
        let run = self.runs.get(behind.checked_sub(1)?)?;
        let skipped = slot - run.slot;
        (skipped < run.pages).then_some((run, skipped))
    }
}
