//! Copying memory into the staging buffer: in rounds while the program runs, and the rest while it stands still.
//!
//! Each round takes what was written since the round before; the first one, what was written since the last
//! checkpoint. What is copied while it is being written is written, and so taken again.

use alloc::{format, vec, vec::Vec};

use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    image::Mapping,
    store::{MEMORY, PageRange, Space, StagedRun},
};
use stasis_sys::{
    Errno, file,
    file::Fd,
    process::{self, PARTS, Part},
};

use crate::{
    checkpoint::store_refusal,
    lazy,
    link::store::Store,
    pagemap::{self, Pagemap, Run, State, Which},
    procfs,
    snapshot::{
        Snapshot, Source,
        mappings::{Content, Found},
    },
    tracker::{Ahead, DirtyTracker, Range, Shown},
};

const PAGE: u64 = PAGE_SIZE as u64;

/// One past the last page of any space: 64 TiB and more are beyond what can be mapped.
const SPACE_END: u64 = 1 << 47;

/// What has been copied and not been handed over.
#[derive(Default)]
pub struct Rest {
    pub forget: Vec<PageRange>,
    pub runs: Vec<StagedRun>,
}

/// A dump under way.
pub struct Dump<'a> {
    store: &'a mut Store,
    tracker: &'a mut dyn DirtyTracker,
    pagemap: Pagemap,
    /// /proc/self/mem: reads what is not readable, and gives an error where a load would fault.
    memory: Fd,
    /// How much of the current half is filled.
    half: usize,
    /// The current half: its offset in the buffer, its address.
    room: Option<(u64, *mut u8)>,
    rest: Rest,
    /// Whether holes are to be told: the store has taken the base's pages, or a round's, for granted.
    tells_holes: bool,
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
    /// Mappings that have guard regions.
    guarded: Vec<(u64, u64)>,
    /// What the tracker has found already.
    ahead: Ahead,
}

/// Whether threads run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Running,
    Stopped,
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
            store,
            tracker,
            pagemap,
            memory: memory.map_err(unreadable)?,
            half: 0,
            room: None,
            rest: Rest::default(),
            tells_holes: incremental,
            taken: Vec::new(),
            is_incremental: incremental,
            spoiled: Vec::new(),
            unwatched: 0,
            owed: Vec::new(),
            found: Vec::new(),
            guarded: Vec::new(),
            ahead: Ahead::default(),
        })
    }

    /// Copies what has been written, while threads run; how many pages those were.
    ///
    /// # Errors
    /// The store's. What cannot be read is left for [`Self::finish`].
    pub fn round(&mut self, mappings: &[Found]) -> Result<u64, Vec<Refusal>> {
        if !self.tracker.works_while_running() {
            return Ok(0);
        }
        self.unwatched = 0;
        let mut density = Density::of_this_process();
        let mut pages = 0;
        for found in mappings {
            let Some(range) = density.range(found) else { continue };
            // What cannot be read like that comes when all stand still.
            if is_readable(&found.mapping) {
                pages += self.tracked(range, true, Moment::Running)?;
            }
        }
        // From now on the store has pages that may go away.
        self.tells_holes = true;
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

    /// Hands over what has been copied, and waits for room for what is to be copied while threads stand still. The pages
    /// of a round must be with the store before it is told what has gone away since.
    ///
    /// # Errors
    /// The store's.
    pub fn make_room(&mut self) -> Result<(), Vec<Refusal>> {
        self.hand_over()?;
        if self.room.is_none() {
            self.room = Some(self.store.free_half().map_err(store_refusal)?);
        }
        Ok(())
    }

    /// Looks for guard regions while threads run, so that this need not be done for all memory when they stand still.
    pub fn look_for_guards(&mut self, mappings: &[Found]) {
        for found in mappings.iter().filter(|found| found.content != Content::None) {
            let (start, end) = (found.mapping.start, found.mapping.end);
            if self.pagemap.guards(start, end, &mut self.found).is_ok() && !self.found.is_empty() {
                self.guarded.push((start, end));
            }
        }
    }

    /// Copies what is left, while every thread stands still. What is in the staging buffer then is returned, to be
    /// handed over when they run again: a message wakes the server, which may take the processor from here.
    ///
    /// # Errors
    /// Refusals that name the mapping or object; the dump is to be given up then.
    pub fn finish(
        &mut self,
        snapshot: &mut Snapshot,
        base_objects: u32,
        elsewhere: &[u64],
    ) -> Result<Rest, Vec<Refusal>> {
        lazy::settle();
        if !self.tracker.works_while_running() {
            let mut density = Density::of_this_process();
            let ranges = snapshot.mappings.iter().filter_map(|mapping| density.range(mapping));
            self.ahead = Ahead::look(self.tracker, &mut self.pagemap, ranges, !self.is_incremental);
        }
        let mut density = Density::of_this_process();
        let mut gap = 0;
        for (found, mapping) in snapshot.mappings.iter().zip(&mut snapshot.image.mappings) {
            if found.content == Content::None {
                continue;
            }
            self.forget(MEMORY, gap, mapping.start);
            gap = mapping.end;
            match density.range(found) {
                Some(range) => {
                    self.tracked(range, is_readable(mapping), Moment::Stopped)?;
                    self.guards(mapping)?;
                }
                None => self.careful(mapping.start, mapping.end, true)?,
            }
        }
        self.forget(MEMORY, gap, SPACE_END);
        self.settle_debts(snapshot)?;
        for (object, sources) in snapshot.objects.each() {
            if elsewhere.binary_search(&object.key).is_ok() {
                self.forget(object.id, 0, SPACE_END);
            } else {
                self.object(object.id, sources)?;
            }
        }
        for id in snapshot.objects.len() + 1..=base_objects {
            self.forget(id, 0, SPACE_END);
        }
        Ok(core::mem::take(&mut self.rest))
    }

    /// Lets go of what the dump has open.
    pub fn close(self) {
        let _ = file::close(self.memory);
        self.pagemap.close();
    }

    /// Takes a mapping that the tracker may know; how many pages were copied.
    fn tracked(&mut self, range: Range, readable: bool, moment: Moment) -> Result<u64, Vec<Refusal>> {
        let overlaps = |&(start, end): &(u64, u64)| start < range.end && range.start < end;
        let all = self.spoiled.iter().any(overlaps)
            || !self.is_incremental && !covers(&self.taken, range.start, range.end);
        let mut found = core::mem::take(&mut self.found);
        let mut looked = match self.ahead.next(range, &mut found) {
            Some(shown) => Ok(shown),
            None => self.tracker.look(&mut self.pagemap, range, all, &mut found),
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
            looked = self.tracker.look(&mut self.pagemap, range, true, &mut found);
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
            add(&mut self.taken, range.start, range.end);
            if all {
                self.spoiled.retain(|&(start, end)| start < range.start || range.end < end);
            }
        }
        if shown == Shown::All {
            fill_gaps(&mut found, range.start, range.end);
        }
        if registered {
            let moved = lazy::sort_out(&mut found);
            if moved.map_err(|error| refusal("the table of its pages", error))? && !readable {
                // Read through /proc/self/mem, nothing arrives.
                lazy::finish();
            }
        }
        let mut pages = 0;
        for &run in &found {
            if run.state == State::Hole {
                self.forget(MEMORY, run.start, run.end);
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

    /// Copies while the program may unmap what is copied, and may want the processor.
    fn copy_running(&mut self, found: &[Run]) -> Result<(), Vec<Refusal>> {
        /// How much is copied before others get their turn, in bytes: some 60 µs.
        const AT_ONCE: u64 = 256 << 10;
        let mut runs =
            found.iter().filter(|run| matches!(run.state, State::Present | State::Swapped)).copied();
        let mut parts: Vec<Part> = Vec::new();
        let mut next = runs.next();
        while let Some(mut run) = next {
            parts.clear();
            let (offset, to, room) = self.room()?;
            let mut left = AT_ONCE.min(room as u64);
            next = loop {
                let len = left.min(run.end - run.start);
                parts.push(Part { start: run.start, len });
                left -= len;
                run.start += len;
                if run.start == run.end {
                    match runs.next() {
                        Some(following) => run = following,
                        None => break None,
                    }
                }
                if left == 0 || parts.len() == PARTS {
                    break Some(run);
                }
            };
            self.gather(&mut parts, offset, to);
            process::give_way();
        }
        Ok(())
    }

    /// Copies parts to the room at `to`, and notes the pages that cannot be read.
    fn gather(&mut self, parts: &mut [Part], mut offset: u64, mut to: *mut u8) {
        let mut next = 0;
        while next < parts.len() {
            // SAFETY: the parts were chosen to fit into the room.
            let copied = unsafe { process::gather(&parts[next..], to) };
            let mut copied = copied.unwrap_or(0) as u64 & !(PAGE - 1);
            while let Some(part) = parts.get_mut(next) {
                let len = part.len.min(copied);
                self.filled(MEMORY, part.start, offset, len as usize);
                // SAFETY: inside the room.
                to = unsafe { to.add(len as usize) };
                (offset, copied) = (offset + len, copied - len);
                (part.start, part.len) = (part.start + len, part.len - len);
                if part.len > 0 {
                    self.owed.push((part.start, part.start + PAGE));
                    (part.start, part.len) = (part.start + PAGE, part.len - PAGE);
                }
                if part.len > 0 {
                    break;
                }
                next += 1;
                if copied == 0 {
                    break;
                }
            }
        }
    }

    /// Copies while nobody can unmap anything.
    fn copy_stopped(&mut self, found: &[Run], readable: bool) -> Result<(), Vec<Refusal>> {
        for run in found {
            match run.state {
                State::Present if readable => self.memory(run.start, run.end)?,
                State::Swapped if readable => self.copy_running(core::slice::from_ref(run))?,
                State::Present => self.careful(run.start, run.end, false)?,
                // What cannot be read is a marker where the program has discarded a page: that is not to be read through
                // /proc/self/mem while a pager answers for it.
                State::Swapped => self.careful(run.start, run.end, true)?,
                State::Hole | State::Guard => {}
            }
        }
        Ok(())
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
        if lazy::sort_out(&mut runs).map_err(|error| refusal("the table of its pages", error))? {
            lazy::finish();
            return self.page(at).map(drop);
        }
        for run in runs {
            self.forget(MEMORY, run.start, run.end);
        }
        Ok(())
    }

    /// Notes the guard regions of a mapping.
    fn guards(&mut self, mapping: &mut Mapping) -> Result<(), Vec<Refusal>> {
        let overlaps = |&(start, end): &(u64, u64)| start < mapping.end && mapping.start < end;
        if !self.found.iter().any(|run| run.state == State::Guard) && !self.guarded.iter().any(overlaps) {
            return Ok(());
        }
        let guards = self.pagemap.guards(mapping.start, mapping.end, &mut self.found);
        guards.map_err(|error| refusal("its guard regions", error))?;
        mapping.guards.extend(self.found.iter().map(|run| (run.start, run.end)));
        Ok(())
    }
}

/// Room in the staging buffer.
impl Dump<'_> {
    /// Room for at least one page: where it is in the buffer, its address, how many bytes.
    fn room(&mut self) -> Result<(u64, *mut u8, usize), Vec<Refusal>> {
        if self.room.is_some() && self.half == self.store.half_len() {
            self.hand_over()?;
        }
        let (offset, address) = match self.room {
            Some(room) => room,
            None => {
                let room = self.store.free_half().map_err(store_refusal)?;
                self.room = Some(room);
                room
            }
        };
        // SAFETY: inside the half.
        let address = unsafe { address.add(self.half) };
        Ok((offset + self.half as u64, address, self.store.half_len() - self.half))
    }

    /// Notes that `len` bytes were put into the room.
    fn filled(&mut self, space: Space, at: u64, staging_offset: u64, len: usize) {
        if len == 0 {
            return;
        }
        let (first_page, pages) = (at / PAGE, (len / PAGE_SIZE) as u32);
        self.half += len;
        if let Some(last) = self.rest.runs.last_mut()
            && last.space == space
            && last.first_page + u64::from(last.pages) == first_page
        {
            last.pages += pages;
            return;
        }
        self.rest.runs.push(StagedRun { space, first_page, pages, staging_offset });
    }

    /// Notes that there is nothing from `start` to `end` (bytes).
    fn forget(&mut self, space: Space, start: u64, end: u64) {
        if !self.tells_holes || start >= end {
            return;
        }
        let (first_page, pages) = (start / PAGE, (end - start) / PAGE);
        match self.rest.forget.last_mut() {
            Some(last) if last.space == space && last.first_page + last.pages == first_page => {
                last.pages += pages
            }
            _ => self.rest.forget.push(PageRange { space, first_page, pages }),
        }
    }

    fn hand_over(&mut self) -> Result<(), Vec<Refusal>> {
        let rest = core::mem::take(&mut self.rest);
        if !rest.runs.is_empty() {
            self.room = None;
            self.half = 0;
        }
        self.store.hand_over(rest).map_err(store_refusal)
    }
}

/// Copying.
impl Dump<'_> {
    /// Copies populated, readable memory.
    fn memory(&mut self, mut start: u64, end: u64) -> Result<(), Vec<Refusal>> {
        while start < end {
            let (offset, to, room) = self.room()?;
            let len = room.min((end - start) as usize);
            // SAFETY: the pages are populated and readable, and every thread that could unmap them is
            // stopped; the room is ours.
            unsafe { core::ptr::copy_nonoverlapping(start as *const u8, to, len) };
            self.filled(MEMORY, start, offset, len);
            start += len as u64;
        }
        Ok(())
    }

    /// Copies page by page what may not be readable. `holes`: what is not there may have been.
    fn careful(&mut self, start: u64, end: u64, holes: bool) -> Result<(), Vec<Refusal>> {
        for at in (start..end).step_by(PAGE_SIZE) {
            if !self.page(at)? && holes {
                self.forget(MEMORY, at, at + PAGE);
            }
        }
        Ok(())
    }

    /// Copies a page as threads read it, waiting for it to be brought; whether there is one.
    fn readable_page(&mut self, at: u64) -> Result<bool, Vec<Refusal>> {
        let (offset, to, _) = self.room()?;
        // SAFETY: the room is ours.
        let copied = unsafe { process::gather(&[Part { start: at, len: PAGE }], to) };
        let whole = copied == Ok(PAGE_SIZE);
        if whole {
            self.filled(MEMORY, at, offset, PAGE_SIZE);
        }
        Ok(whole)
    }

    /// Copies a page through /proc/self/mem; whether there is one: not beyond the end of a file, nor in a guard region.
    fn page(&mut self, at: u64) -> Result<bool, Vec<Refusal>> {
        let (offset, to, _) = self.room()?;
        // SAFETY: the room is ours.
        let read = unsafe { file::pread_to(self.memory, to as usize, PAGE_SIZE, at) } == Ok(PAGE_SIZE);
        if read {
            self.filled(MEMORY, at, offset, PAGE_SIZE);
        }
        Ok(read)
    }

    fn object(&mut self, id: Space, sources: &[Source]) -> Result<(), Vec<Refusal>> {
        let mut gap = 0;
        for source in sources {
            gap = match *source {
                Source::Descriptor(fd) => self.file(id, fd, gap)?,
                Source::Mapped { address, len, offset } => {
                    self.forget(id, gap, offset);
                    self.mapped(id, address, len, offset)?;
                    gap.max(offset + len)
                }
            };
        }
        self.forget(id, gap, SPACE_END);
        Ok(())
    }

    fn mapped(&mut self, id: Space, address: u64, len: u64, offset: u64) -> Result<(), Vec<Refusal>> {
        let resident =
            pagemap::resident(address, len).map_err(|error| refusal("its shared memory", error))?;
        let mut at = 0;
        for part in resident.chunk_by(|one, other| one & 1 == other & 1) {
            let (start, end) = (at, at + (part.len() * PAGE_SIZE) as u64);
            at = end;
            if part[0] & 1 == 0 {
                self.forget(id, offset + start, offset + end);
                continue;
            }
            let mut from = start;
            while from < end {
                let (staging, to, room) = self.room()?;
                let wanted = room.min((end - from) as usize);
                // SAFETY: the room is ours.
                let read = unsafe { file::pread_to(self.memory, to as usize, wanted, address + from) };
                let whole = read.unwrap_or(0) & !(PAGE_SIZE - 1);
                self.filled(id, offset + from, staging, whole);
                from += whole as u64;
                if whole < wanted {
                    // Beyond the object's end.
                    self.forget(id, offset + from, offset + from + PAGE);
                    from += PAGE;
                }
            }
        }
        Ok(())
    }

    /// Copies a file's data, leaving out its holes; where its last data ended.
    fn file(&mut self, id: Space, fd: Fd, gap: u64) -> Result<u64, Vec<Refusal>> {
        // The description is the program's: its offset is put back however the copy ends.
        let offset = file::seek(fd, 0, libc::SEEK_CUR).unwrap_or(0);
        let copied = self.data(id, fd, gap);
        let _ = file::seek(fd, offset as i64, libc::SEEK_SET);
        copied
    }

    fn data(&mut self, id: Space, fd: Fd, mut gap: u64) -> Result<u64, Vec<Refusal>> {
        let failed = |error| refusal("a deleted file or memfd", error);
        let mut at = 0;
        // ENXIO: no data behind this offset (lseek(2)).
        while let Ok(data) = file::seek(fd, at as i64, libc::SEEK_DATA) {
            let hole = file::seek(fd, data as i64, libc::SEEK_HOLE).map_err(failed)?;
            at = data - data % PAGE;
            self.forget(id, gap, at);
            while at < hole {
                let (staging, to, room) = self.room()?;
                let len = room.min((hole - at).next_multiple_of(PAGE) as usize);
                // SAFETY: the room is ours.
                let read = unsafe { file::pread_to(fd, to as usize, len, at) }.map_err(failed)?;
                let whole = read.next_multiple_of(PAGE_SIZE);
                if whole == 0 {
                    break;
                }
                // SAFETY: still inside the room, which is a multiple of the page size.
                unsafe { core::ptr::write_bytes(to.add(read), 0, whole - read) };
                self.filled(id, at, staging, whole);
                at += whole as u64;
            }
            gap = gap.max(at);
            at = at.max(hole);
        }
        Ok(gap)
    }
}

/// Which mappings are scanned with their holes: those that are populated for the most part, as far as can be told
/// without looking. What page tables cost is bounded: a 512th of four times the resident memory.
struct Density {
    /// In bytes.
    left: u64,
}

impl Density {
    fn of_this_process() -> Self {
        let content = procfs::read(c"/proc/thread-self/statm").unwrap_or_default();
        let resident = procfs::words(&content).nth(1).and_then(procfs::decimal).unwrap_or(0);
        Self { left: resident * PAGE * 4 }
    }

    /// The range of a mapping that can be tracked.
    fn range(&mut self, found: &Found) -> Option<Range> {
        let which = match found.content {
            Content::Populated => Which::Populated,
            Content::Modified => Which::Modified,
            Content::All | Content::None => return None,
        };
        let (start, end) = (found.mapping.start, found.mapping.end);
        let dense = end - start <= self.left;
        if dense {
            self.left -= end - start;
        }
        Some(Range { start, end, which, dense, readable: is_readable(&found.mapping) })
    }
}

/// Whether a sorted list of ranges that do not touch each other holds a range.
fn covers(ranges: &[(u64, u64)], start: u64, end: u64) -> bool {
    let at = ranges.partition_point(|range| range.1 <= start);
    ranges.get(at).is_some_and(|range| range.0 <= start && end <= range.1)
}

/// Adds a range to such a list.
fn add(ranges: &mut Vec<(u64, u64)>, mut start: u64, mut end: u64) {
    let first = ranges.partition_point(|range| range.1 < start);
    let behind = ranges.partition_point(|range| range.0 <= end);
    if let (Some(one), Some(last)) = (ranges[..behind].get(first), ranges[first..behind].last()) {
        (start, end) = (start.min(one.0), end.max(last.1));
    }
    ranges.splice(first..behind, [(start, end)]);
}

/// Adds holes where nothing was found.
fn fill_gaps(found: &mut Vec<Run>, start: u64, end: u64) {
    let mut whole = Vec::with_capacity(2 * found.len() + 1);
    let mut at = start;
    for &run in found.iter() {
        if at < run.start {
            whole.push(Run { start: at, end: run.start, state: State::Hole });
        }
        whole.push(run);
        at = run.end;
    }
    if at < end {
        whole.push(Run { start: at, end, state: State::Hole });
    }
    *found = whole;
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
