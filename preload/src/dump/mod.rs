//! Copying memory into the staging buffer: in rounds while the program runs, and the rest while it stands still.
//!
//! Each round takes what was written since the round before; the first one, what was written since the last
//! checkpoint. What is copied while it is being written is written, and so taken again.

mod backlog;
mod copy;
mod objects;
mod pinned;
mod ranges;
mod room;

use alloc::{format, vec, vec::Vec};

use stasis_protocol::{PAGE_SIZE, coordinator::Refusal, image::Mapping, store::MEMORY};
use stasis_sys::{Errno, file, file::Fd, process};

pub use self::{
    backlog::{forget as forget_backlog, range as backlog, unmap as unmap_backlog},
    room::Rest,
};
use self::{
    ranges::{Density, add, covers, fill_gaps},
    room::Room,
};
use crate::{
    lazy,
    link::store::Store,
    pagemap::{Pagemap, Run, State},
    procfs,
    slices::Slices,
    snapshot::{
        Snapshot,
        mappings::{Content, Found},
    },
    tracker::{Ahead, DirtyTracker, Moment, Range, Shown},
    wrappers,
};

const PAGE: u64 = PAGE_SIZE as u64;

/// One past the last page of any space: 64 TiB and more are beyond what can be mapped.
const SPACE_END: u64 = 1 << 47;

/// A dump under way.
pub struct Dump<'a> {
    room: Room<'a>,
    tracker: &'a mut dyn DirtyTracker,
    pagemap: Pagemap,
    /// /proc/self/mem: reads what is not readable, and gives an error where a load would fault.
    memory: Fd,
    /// The ranges that need not be taken whole any more, in address order; all with a base.
    taken: Vec<(u64, u64)>,
    is_incremental: bool,
    /// Ranges that a round has failed to look at as a whole.
    spoiled: Vec<(u64, u64)>,
    /// How many pages a round has met that are not watched.
    unwatched: u64,
    /// Pages that could not be read.
    owed: Vec<(u64, u64)>,
    /// Filled in for each mapping.
    found: Vec<Run>,
    words: lazy::Words,
    /// Buffers that the kernel may have written to since they were copied, without a trace; looked for where the program has direct
    /// files.
    pinned: Vec<(u64, u64)>,
    reads_directly: bool,
    /// Mappings that have guard regions.
    guarded: Vec<(u64, u64)>,
    /// As of the last round.
    density: Density,
    /// What the tracker has found already.
    ahead: Ahead,
    /// Threads stand still for this: what can be done later is.
    hurries: bool,
    /// Where the program runs in slices of time only.
    slices: Option<Slices>,
}

impl<'a> Dump<'a> {
    /// `incremental`: the store has the pages of the last checkpoint.
    ///
    /// # Errors
    /// The process' memory cannot be looked at.
    pub fn begin(
        store: &'a mut Store,
        tracker: &'a mut dyn DirtyTracker,
        incremental: bool,
    ) -> Result<Self, Vec<Refusal>> {
        let unreadable = |error| refusal("its memory", error);
        let pagemap = Pagemap::open().map_err(unreadable)?;
        let memory = procfs::open(c"/proc/thread-self/mem");
        Ok(Self {
            room: Room::new(store, incremental),
            tracker,
            pagemap,
            memory: memory.map_err(unreadable)?,
            taken: Vec::new(),
            is_incremental: incremental,
            spoiled: Vec::new(),
            unwatched: 0,
            owed: Vec::new(),
            found: Vec::new(),
            words: lazy::Words::default(),
            pinned: Vec::new(),
            reads_directly: false,
            guarded: Vec::new(),
            density: Density::of_this_process(),
            ahead: Ahead::default(),
            hurries: false,
            slices: None,
        })
    }

    /// The program has files open that are read directly (O_DIRECT).
    pub fn expect_direct_reads(&mut self) {
        self.reads_directly = true;
    }

    /// Anything may have been written to without a trace: all is taken when threads stand still, and compared by hash.
    pub fn distrust(&mut self) {
        self.spoiled.push((0, SPACE_END));
    }

    fn is_distrusted(&self) -> bool {
        self.spoiled.contains(&(0, SPACE_END))
    }

    /// Copies what has been written, while threads run; how many pages those were.
    ///
    /// # Errors
    /// The store's. What cannot be read is left for [`Self::finish`].
    pub fn round(&mut self, mappings: &[Found]) -> Result<u64, Vec<Refusal>> {
        if !self.tracker.works_while_running() || self.is_distrusted() {
            return Ok(0);
        }
        self.unwatched = 0;
        self.density = Density::of_this_process();
        let mut density = self.density;
        let mut pages = 0;
        for found in mappings {
            let Some(range) = density.range(found) else { continue };
            // What cannot be read like that comes when all stand still.
            if !is_readable(&found.mapping) {
                continue;
            }
            for piece in self.pieces(range) {
                self.turn()?;
                pages += self.tracked(piece, true, Moment::Running)?;
            }
        }
        // From now on the store has pages that may go away.
        self.room.tells_holes = true;
        Ok(pages)
    }

    /// How many pages the last round has met that are not watched: a further one is of no use to them.
    pub fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// Watches all mappings, while every thread stands still.
    pub fn watch(&mut self, mappings: &[Found]) {
        let mut density = Density::of_this_process();
        for found in mappings {
            if let Some(range) = density.range(found) {
                // Those that cannot be watched are taken whole.
                let _ = self.tracker.watch(range);
            }
        }
    }

    /// Hands over what has been copied, and waits for room for more. The pages of a round must be with the store before it is told
    /// what has gone away since.
    ///
    /// # Errors
    /// The store's.
    pub fn make_room(&mut self) -> Result<(), Vec<Refusal>> {
        self.room.hand_over()?;
        self.room.find(self.room.has_backlog()).map(drop)
    }

    /// Whether the store has done what there was to do before the last round.
    ///
    /// # Errors
    /// The store's.
    pub fn is_up_to_date(&mut self) -> Result<bool, Vec<Refusal>> {
        self.room.is_up_to_date()
    }

    /// Waits for room for what is to be copied while threads stand still, `pages` perhaps; what has been copied is handed over with
    /// that.
    ///
    /// # Errors
    /// The store's.
    pub fn make_last_room(&mut self, pages: u64) -> Result<(), Vec<Refusal>> {
        self.room.hold()?;
        self.room.find(self.room.has_backlog())?;
        self.room.prepare(pages as usize * PAGE_SIZE)
    }

    /// From now on the store is not waited for while there is memory to spare.
    pub fn allow_backlog(&mut self) {
        self.room.allow_backlog();
    }

    /// How much memory was taken beside the staging buffer, in bytes.
    pub fn taken_memory(&self) -> usize {
        self.room.taken()
    }

    pub fn staging_len(&self) -> usize {
        self.room.staging_len()
    }

    /// From now on the program runs for slices of time only, while memory is copied.
    pub fn slice(&mut self, slices: Slices) {
        self.slices = Some(slices);
    }

    /// Whether the program runs in slices of time, and this is between two.
    pub fn stands_still(&self) -> bool {
        self.slices.as_ref().is_some_and(Slices::stands_still)
    }

    /// Lets the program run all the time again; the slices of before.
    pub fn run_freely(&mut self) -> Option<Slices> {
        let mut slices = self.slices.take()?;
        slices.run();
        Some(slices)
    }

    /// Lets the program run for half as long at a time as before, unless that is less than `shortest`; how long it has
    /// stood still so far, in microseconds.
    pub fn shorten_slices(&mut self, shortest: u64) -> u64 {
        let Some(slices) = &mut self.slices else { return 0 };
        slices.shorten(shortest);
        slices.total_us
    }

    /// Looks for guard regions while threads run, so that this need not be done for all memory when they stand still.
    pub fn look_for_guards(&mut self, mappings: &[Found]) {
        for found in mappings.iter().filter(|found| found.content != Content::None || found.mapping.shared) {
            let (start, end) = (found.mapping.start, found.mapping.end);
            if self.pagemap.guards(start, end, &mut self.found).is_ok() && !self.found.is_empty() {
                self.guarded.push((start, end));
            }
        }
    }

    /// Copies what is left, while every thread stands still. It is handed over by [`Self::deliver`], when they run again: a
    /// message wakes the server, which may take the processor from here.
    ///
    /// # Errors
    /// Refusals that name the mapping or object; the dump is to be given up then.
    pub fn finish(
        &mut self,
        snapshot: &mut Snapshot,
        base_objects: u32,
        elsewhere: &[u64],
    ) -> Result<(), Vec<Refusal>> {
        self.hurries = true;
        lazy::settle();
        if !self.tracker.works_while_running() {
            let all = !self.is_incremental || self.is_distrusted();
            let mut density = self.density;
            let ranges = snapshot.mappings.iter().filter_map(|mapping| density.range(mapping));
            self.ahead = Ahead::look(self.tracker, &mut self.pagemap, ranges, all);
        }
        let mut density = self.density;
        let mut gap = 0;
        for (found, mapping) in snapshot.mappings.iter().zip(&mut snapshot.image.mappings) {
            if found.content == Content::None {
                if mapping.shared {
                    self.found.clear();
                    self.guards(mapping, wrappers::advice::has_guards())?;
                }
                continue;
            }
            self.room.forget(MEMORY, gap, mapping.start);
            gap = mapping.end;
            match density.range(found) {
                Some(range) => {
                    self.tracked(range, is_readable(mapping), Moment::Stopped)?;
                    self.pinned_again(range, is_readable(mapping))?;
                    self.guards(mapping, false)?;
                }
                None => self.careful(mapping.start, mapping.end, true)?,
            }
        }
        self.room.forget(MEMORY, gap, SPACE_END);
        self.settle_debts(snapshot)?;
        for (object, sources, [name, _]) in snapshot.objects.each() {
            if elsewhere.binary_search(&name).is_ok() {
                self.room.forget(object.id, 0, SPACE_END);
            } else {
                self.object(object, sources)?;
            }
        }
        for id in snapshot.objects.len() + 1..=base_objects {
            self.room.forget(id, 0, SPACE_END);
        }
        Ok(())
    }

    /// Hands over what the store has room for.
    ///
    /// # Errors
    /// The store's.
    pub fn deliver_first(&mut self) -> Result<(), Vec<Refusal>> {
        self.room.hand_over()
    }

    /// Hands over all that has been copied.
    ///
    /// # Errors
    /// The store's.
    pub fn deliver(&mut self) -> Result<(), Vec<Refusal>> {
        self.room.deliver()
    }

    /// The parts of a range that are looked at one after the other: protecting pages takes 24 ms a GiB, in which a program
    /// that is to run now and then would stand still.
    fn pieces(&self, range: Range) -> impl Iterator<Item = Range> + use<> {
        const PIECE: u64 = 32 << 20;
        let step = if self.slices.is_some() { PIECE } else { u64::MAX };
        let mut at = range.start;
        core::iter::from_fn(move || {
            let start = at;
            // Aligned: where pages are huge, none is cut.
            at = (start.saturating_add(step) & !(PIECE - 1)).min(range.end);
            if step == u64::MAX {
                at = range.end;
            }
            (start < range.end).then_some(Range { start, end: at, ..range })
        })
    }

    /// Lets the program run, or stops it, if it is time.
    fn turn(&mut self) -> Result<(), Vec<Refusal>> {
        let Some(slices) = &mut self.slices else { return Ok(()) };
        loop {
            slices.turn()?;
            if self.room.drain(slices)? {
                continue;
            }
            if !self.room.would_wait()? {
                return Ok(());
            }
            if let Some(ms) = slices.wait() {
                self.room.await_store(ms);
            }
        }
    }

    /// Takes a mapping that the tracker may know; how many pages were copied.
    fn tracked(&mut self, range: Range, readable: bool, moment: Moment) -> Result<u64, Vec<Refusal>> {
        let overlaps = |&(start, end): &(u64, u64)| start < range.end && range.start < end;
        let all = self.spoiled.iter().any(overlaps)
            || !self.is_incremental && !covers(&self.taken, range.start, range.end);
        if moment == Moment::Stopped && self.spoiled.iter().any(overlaps) {
            // A look would only say that it is not watched. Where it cannot be, it does.
            let _ = self.tracker.watch(range);
        }
        let mut found = core::mem::take(&mut self.found);
        let mut looked = match self.ahead.next(range, &mut found) {
            Some(shown) => Ok(shown),
            None => self.tracker.look(&mut self.pagemap, range, all, moment, &mut found),
        };
        if looked.is_err() && moment == Moment::Running {
            // New, gone, or changed meanwhile.
            self.spoiled.push((range.start, range.end));
            if self.pagemap.populated(range.start, range.end, range.which, &mut found).is_ok() {
                self.unwatched += found.iter().map(|run| (run.end - run.start) / PAGE).sum::<u64>();
            }
            self.found = found;
            return Ok(0);
        }
        if looked.is_err() && self.tracker.watch(range).is_ok() {
            looked = self.tracker.look(&mut self.pagemap, range, true, moment, &mut found);
        }
        let registered = looked.is_ok();
        let shown = match looked {
            Ok(shown) => shown,
            // Not to be watched.
            Err(_) => {
                let populated = self.pagemap.populated(range.start, range.end, range.which, &mut found);
                let what = || format!("mapping {:x}-{:x}", range.start, range.end);
                populated.map_err(|error| refusal(&what(), error))?;
                Shown::All
            }
        };
        if moment == Moment::Running {
            if found.iter().any(|run| run.state == State::Guard) {
                self.guarded.push((range.start, range.end));
            }
            add(&mut self.taken, range.start, range.end);
            if all {
                self.spoiled.retain(|&(start, end)| start < range.start || range.end < end);
            }
        }
        if moment == Moment::Running && self.reads_directly && !found.is_empty() {
            pinned::look(&mut self.pinned);
        }
        if shown == Shown::All {
            fill_gaps(&mut found, range.start, range.end);
        }
        if registered {
            let moved = lazy::sort_out(&mut found, &mut self.words);
            if moved.map_err(|error| refusal("the table of its pages", error))? && !readable {
                // Read through /proc/self/mem, nothing arrives.
                lazy::finish();
            }
        }
        let mut pages = 0;
        for &run in &found {
            if run.state == State::Hole {
                self.room.forget(MEMORY, run.start, run.end);
            } else {
                pages += (run.end - run.start) / PAGE;
            }
        }
        let copied = match moment {
            Moment::Running => self.copy_running(&found),
            Moment::Stopped => self.copy_stopped(&found, readable),
        };
        self.found = found;
        copied.map(|()| pages)
    }

    /// Takes what the kernel may have written to since it was copied.
    fn pinned_again(&mut self, range: Range, readable: bool) -> Result<(), Vec<Refusal>> {
        let inside = |&(start, end): &(u64, u64)| (start.max(range.start), end.min(range.end));
        let parts: Vec<Run> = self
            .pinned
            .iter()
            .map(inside)
            .filter(|(start, end)| start < end)
            .map(|(start, end)| Run { start, end, state: State::Swapped })
            .collect();
        self.copy_stopped(&parts, readable)
    }

    /// Takes what could not be read, where it is still mapped. What cannot be read now either is a guard region, which
    /// kernels before 6.15 show as swapped.
    fn settle_debts(&mut self, snapshot: &mut Snapshot) -> Result<(), Vec<Refusal>> {
        let owed = core::mem::take(&mut self.owed);
        for (start, end) in owed {
            let mappings = snapshot.mappings.iter().zip(&mut snapshot.image.mappings);
            let mut holding = mappings.filter(|(found, mapping)| {
                found.content != Content::None && mapping.start <= start && end <= mapping.end
            });
            let Some((_, mapping)) = holding.next() else { continue };
            let readable = is_readable(mapping);
            // Not through /proc/self/mem at first: what a pager has to bring is not brought for that.
            if readable && self.readable_page(start)? || self.page(start)? {
                continue;
            }
            if readable {
                mapping.guards.push((start, end));
            } else {
                self.not_there(start)?;
            }
        }
        Ok(())
    }

    /// A page that cannot be read, since nothing is there: as it was at the restart, or gone since.
    fn not_there(&mut self, at: u64) -> Result<(), Vec<Refusal>> {
        let mut runs = vec![Run { start: at, end: at + PAGE, state: State::Hole }];
        if lazy::sort_out(&mut runs, &mut self.words)
            .map_err(|error| refusal("the table of its pages", error))?
        {
            lazy::finish();
            return self.page(at).map(drop);
        }
        for run in runs {
            self.room.forget(MEMORY, run.start, run.end);
        }
        Ok(())
    }

    /// Notes the guard regions of a mapping. `look`: there may be some although none was met.
    fn guards(&mut self, mapping: &mut Mapping, look: bool) -> Result<(), Vec<Refusal>> {
        let overlaps = |&(start, end): &(u64, u64)| start < mapping.end && mapping.start < end;
        let met = self.found.iter().any(|run| run.state == State::Guard) || self.guarded.iter().any(overlaps);
        if !met && !look {
            return Ok(());
        }
        let guards = self.pagemap.guards(mapping.start, mapping.end, &mut self.found);
        guards.map_err(|error| refusal("its guard regions", error))?;
        mapping.guards.extend(self.found.iter().map(|run| (run.start, run.end)));
        Ok(())
    }
}

/// Whether threads may read it.
fn is_readable(mapping: &Mapping) -> bool {
    mapping.protection & libc::PROT_READ as u32 != 0
}

fn refusal(what: &str, error: Errno) -> Vec<Refusal> {
    vec![Refusal {
        what: format!("pid {}, {what}", process::getpid()),
        reason: format!("it cannot be read: {error}"),
        remedy: "report this with the output of `stasis doctor`".into(),
    }]
}

impl Drop for Dump<'_> {
    fn drop(&mut self) {
        let _ = file::close(self.memory);
        self.pagemap.close();
    }
}
