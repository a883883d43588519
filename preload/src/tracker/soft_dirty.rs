//! The soft-dirty bits of page table entries (Documentation/admin-guide/mm/soft-dirty.rst): a store sets them, and
//! writing 4 to /proc/PID/clear_refs clears all of the process at once. Looking and clearing are two steps, so this
//! works on threads that stand still only.
//!
//! A huge page has one bit: written anywhere, it counts as written as a whole.

use alloc::vec::Vec;

use stasis_sys::{Result, file};

use super::{DirtyTracker, Moment, Range, Shown};
use crate::pagemap::{Pagemap, Run};

#[derive(Default)]
pub struct SoftDirty {
    /// Whether the bits tell of what was written since all was taken: not before they were cleared then. The self-test
    /// clears those of the whole process, too.
    cleared: bool,
}

impl DirtyTracker for SoftDirty {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    fn look(
        &mut self,
        pagemap: &mut Pagemap,
        range: Range,
        all: bool,
        _: Moment,
        found: &mut Vec<Run>,
    ) -> Result<Shown> {
        if all || !self.cleared {
            pagemap.populated(range.start, range.end, range.which, found)?;
            return Ok(Shown::All);
        }
        // A mapping that is new, or was moved, is wholly soft-dirty (VM_SOFTDIRTY).
        pagemap.changed(range, found)?;
        Ok(Shown::Changes)
    }

    fn looked_at_all(&mut self) {
        let cleared = file::open(c"/proc/thread-self/clear_refs", libc::O_WRONLY | libc::O_CLOEXEC, 0)
            .and_then(|fd| {
                let written = file::write(fd, b"4");
                let _ = file::close(fd);
                written
            });
        self.cleared = cleared.is_ok();
    }
}
