//! userfaultfd's asynchronous write protection with PAGEMAP_SCAN (Linux 6.7): a scan tells the pages that are not
//! protected and protects them in one step; the kernel lifts the protection at the first store, its own (read(2))
//! included, without telling anybody. Nobody has to answer faults, and no privilege is needed.
//!
//! Stores through pinned pages are not seen: of direct reads and kernel AIO, which `dump` makes good (`dump/pinned.rs`), of
//! process_vm_writev(2) by another process that is under way, of devices (RDMA).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, Ordering};

use stasis_protocol::PAGE_SIZE;
use stasis_sys::{
    Result,
    file::{self, Fd},
    pagemap::{CHECK_WPASYNC, FILE, PRESENT, SWAPPED, ScanArgument, WP_MATCHING, WRITTEN},
    userfaultfd,
};

use super::{DirtyTracker, Moment, Range, Shown};
use crate::{
    pagemap::{Pagemap, Run, State, Which},
    wrappers::userfault,
};

/// The userfaultfd by which the restorer had memory watched before anything ran in it, in the checkpoint thread's table; -1: none.
static ADOPTED: AtomicI32 = AtomicI32::new(-1);

/// Takes over what the restorer has made; -1: nothing, and what there was is not ours or not there any more.
pub fn adopt(uffd: Fd) {
    ADOPTED.store(uffd, Ordering::Relaxed);
    userfault::set_watching(uffd);
}

pub struct WpAsync {
    uffd: Fd,
    /// Some memory may be protected.
    has_looked: bool,
}

impl WpAsync {
    /// `None` where the kernel has none of it.
    pub fn open() -> Option<Self> {
        let adopted = ADOPTED.swap(-1, Ordering::Relaxed);
        if adopted >= 0 {
            return Some(Self { uffd: adopted, has_looked: true });
        }
        let uffd = userfaultfd::open(userfaultfd::WP_ASYNC | userfaultfd::WP_UNPOPULATED).ok()?;
        userfault::set_watching(uffd);
        Some(Self { uffd, has_looked: false })
    }

    pub fn close(self) {
        userfault::set_watching(-1);
        let _ = file::close(self.uffd);
    }
}

impl DirtyTracker for WpAsync {
    fn name(&self) -> &'static str {
        "wp-async"
    }

    fn works_while_running(&self) -> bool {
        true
    }

    fn watch(&mut self, range: Range) -> Result<()> {
        // What is registered already stays as it is.
        userfaultfd::register(self.uffd, range.start, range.end, userfaultfd::MODE_WP)
    }

    fn look(
        &mut self,
        pagemap: &mut Pagemap,
        range: Range,
        all: bool,
        moment: Moment,
        found: &mut Vec<Run>,
    ) -> Result<Shown> {
        found.clear();
        if all && self.has_looked {
            // Markers that an earlier look has left in holes would be taken for pages in swap, which read as zeros: those of
            // a dump that failed, or of a mapping that has grown. Where not all is watched, the scan says so.
            let _ = userfaultfd::unprotect(self.uffd, range.start, range.end - range.start);
        }
        self.has_looked = true;
        let category = if all { ALL } else { WRITTEN };
        match range.which {
            Which::Populated if range.dense && !all => written(pagemap, range, moment, found)?,
            Which::Populated => anonymous(pagemap, range, category, found)?,
            Which::Modified => private_file(pagemap, range, category, found)?,
        }
        Ok(if all { Shown::All } else { Shown::Changes })
    }
}

/// Every page is of this category; the other one that is found and protected is [`WRITTEN`].
const ALL: u64 = 0;

const THERE: u64 = PRESENT | SWAPPED;

/// A discarded page of anonymous memory leaves nothing behind, so it counts as written.
///
/// Protecting a page that is not there makes a marker in its page table, which a scan of a terabyte that is merely
/// reserved must not do. There, holes are left alone and looked for by themselves.
fn anonymous(pagemap: &mut Pagemap, range: Range, category: u64, found: &mut Vec<Run>) -> Result<()> {
    let protect = ScanArgument {
        flags: WP_MATCHING | CHECK_WPASYNC,
        category_mask: category,
        category_anyof_mask: if range.dense { 0 } else { THERE },
        return_mask: pagemap.states(),
        ..ScanArgument::default()
    };
    pagemap.scan(range.start, range.end, range.which, protect, found)?;
    if range.dense || category == ALL {
        return Ok(());
    }
    let holes = ScanArgument {
        category_inverted: THERE,
        category_mask: THERE,
        return_mask: THERE,
        ..ScanArgument::default()
    };
    pagemap.scan(range.start, range.end, range.which, holes, found)
}

/// Finds written pages, and then asks what they are and protects them. The kernel goes through page tables without looking
/// at the pages when nothing but [`WRITTEN`] is asked for and returned (`pagemap_scan_pmd_entry`): 0.3 ms a GiB, not 8.
///
/// What a page is must be told in the step that protects it: a hole is a marker afterwards, which looks like a page in swap.
///
/// A call flushes the TLBs of all processors on which threads run, once for each page table with a page that it protects: an
/// interrupt that is answered after 5 to 20 µs in a virtual machine. While threads run, a page table is looked at as a whole
/// (16 µs) rather than in two calls.
fn written(pagemap: &mut Pagemap, range: Range, moment: Moment, found: &mut Vec<Run>) -> Result<()> {
    /// Pages between two runs that are looked at rather than left out by a call of its own.
    const GAP: u64 = 16 * PAGE_SIZE as u64;
    /// What one page table maps, in bytes.
    const TABLE: u64 = 2 << 20;
    let look = ScanArgument {
        flags: CHECK_WPASYNC,
        category_mask: WRITTEN,
        return_mask: WRITTEN,
        ..ScanArgument::default()
    };
    pagemap.scan(range.start, range.end, range.which, look, found)?;
    let protect = ScanArgument {
        flags: WP_MATCHING | CHECK_WPASYNC,
        category_mask: WRITTEN,
        return_mask: pagemap.states(),
        ..ScanArgument::default()
    };
    let runs = core::mem::take(found);
    let are_near = |one: &Run, next: &Run| {
        next.start.saturating_sub(one.end) <= GAP
            || moment == Moment::Running && (one.end - 1) / TABLE == next.start / TABLE
    };
    for near in runs.chunk_by(are_near) {
        pagemap.scan(near[0].start, near[near.len() - 1].end, range.which, protect, found)?;
    }
    Ok(())
}

/// A discarded page of a private file mapping leaves a marker (mm/memory.c, `zap_install_uffd_wp_if_needed`) that keeps
/// it protected, also when the file's page is read in its place: it looks unchanged. So only the process' own pages are
/// protected; what else is protected was one of them. A marker looks like an own page in swap: both are read again.
fn private_file(pagemap: &mut Pagemap, range: Range, category: u64, found: &mut Vec<Run>) -> Result<()> {
    let protect = ScanArgument {
        flags: WP_MATCHING | CHECK_WPASYNC,
        category_inverted: FILE,
        category_mask: category | FILE,
        category_anyof_mask: THERE,
        return_mask: pagemap.states(),
        ..ScanArgument::default()
    };
    pagemap.scan(range.start, range.end, range.which, protect, found)?;
    if category == ALL {
        return Ok(());
    }
    let others = ScanArgument { return_mask: pagemap.states(), ..ScanArgument::default() };
    let changed = found.len();
    pagemap.scan(range.start, range.end, range.which, others, found)?;
    let mut kept = changed;
    for at in changed..found.len() {
        if found[at].state != State::Present {
            found[kept] = found[at];
            kept += 1;
        }
    }
    found.truncate(kept);
    Ok(())
}
