//! The soft-dirty bits of page table entries (Documentation/admin-guide/mm/soft-dirty.rst): a store sets them, and
//! writing 4 to /proc/PID/clear_refs clears all of the process at once. Looking and clearing are two steps, so this
//! works on threads that stand still only.

use alloc::vec::Vec;

use stasis_sys::{Result, file};

use super::{DirtyTracker, Range, Shown};
use crate::pagemap::{Pagemap, Run};

pub struct SoftDirty;

impl DirtyTracker for SoftDirty {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    fn look(
        &mut self,
        pagemap: &mut Pagemap,
        range: Range,
        all: bool,
        found: &mut Vec<Run>,
    ) -> Result<Shown> {
        if all {
            pagemap.populated(range.start, range.end, range.which, found)?;
            return Ok(Shown::All);
        }
        // A mapping that is new, or was moved, is wholly soft-dirty (VM_SOFTDIRTY).
        pagemap.read(range.start, range.end, range.which, true, found)?;
        Ok(Shown::Changes)
    }

    fn finish(&mut self) {
        let Ok(fd) = file::open(c"/proc/thread-self/clear_refs", libc::O_WRONLY | libc::O_CLOEXEC, 0) else {
            return;
        };
        let _ = file::write(fd, b"4");
        let _ = file::close(fd);
    }
}
