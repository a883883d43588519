//! Room for what is copied: a half of the staging buffer, which the store takes it from, or the backlog, where the store
//! may not be waited for.

use alloc::{format, vec::Vec};

use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    store::{PageRange, Space, StagedRun},
};
use stasis_sys::{
    Errno,
    file::Fd,
    process::{self, Part},
    sync,
};

use super::backlog::{Backlog, Chunk, PART};
use crate::{
    checkpoint::store_refusal,
    link::store::{BOUNCE, Store},
    slices::Slices,
};

const PAGE: u64 = PAGE_SIZE as u64;

/// What has been copied and not been handed over. Offsets count from the beginning of the place that it is in.
#[derive(Default)]
pub struct Rest {
    pub forget: Vec<PageRange>,
    pub runs: Vec<StagedRun>,
}

#[derive(Clone, Copy)]
enum Place {
    /// Its offset in the buffer, its address.
    Half(u64, *mut u8),
    Chunk(Chunk, *mut u8),
}

/// Where pages are copied to that others may unmap meanwhile.
pub struct Target {
    to: *mut u8,
    way: Way,
}

enum Way {
    /// Into this file, where it is mapped: at this offset.
    File(Fd, u64),
    /// Through the part of a file that begins at this offset and is mapped there.
    Through(Fd, u64, *const u8),
    /// By process_vm_readv(2).
    Pinned,
}

impl Target {
    /// Copies parts there, one after the other, no more than [`AT_ONCE`] bytes; how many: fewer than asked where a page cannot be
    /// read, or there is no memory for a copy. That one begins there, and asked for by itself it is 0, or an error.
    ///
    /// # Safety
    /// There must be room for all of them.
    ///
    /// # Errors
    /// There is no memory for a copy of the first page.
    pub unsafe fn gather(&self, parts: &[Part]) -> Result<usize, Vec<Refusal>> {
        let mut gathered = match self.way {
            Way::File(file, at) | Way::Through(file, at, _) => process::gather_to(parts, file, at),
            // SAFETY: the caller promises the room.
            Way::Pinned => unsafe { process::gather(parts, self.to) },
        };
        // The program may have lowered its limit (RLIMIT_FSIZE) since the file was made.
        if gathered == Err(Errno(libc::EFBIG)) {
            // SAFETY: as above.
            gathered = unsafe { process::gather(parts, self.to) };
        } else if let (Way::Through(_, _, bounce), Ok(copied)) = (&self.way, gathered) {
            // SAFETY: it was written there just now; the caller promises the room.
            unsafe { core::ptr::copy_nonoverlapping(*bounce, self.to, copied) };
        }
        match gathered {
            Err(Errno(libc::EFAULT)) => Ok(0),
            Err(error) => Err(store_refusal(format!("no memory for what is copied: {error}"))),
            Ok(copied) => Ok(copied),
        }
    }

    /// So many bytes behind it.
    pub fn advance(&mut self, len: usize) {
        self.to = self.to.wrapping_add(len);
        if let Way::File(_, at) = &mut self.way {
            *at += len as u64;
        }
    }
}

/// How much is copied before others get their turn, in bytes: some 60 µs.
pub const AT_ONCE: usize = BOUNCE;

pub struct Room<'a> {
    store: &'a mut Store,
    /// What is being filled.
    place: Option<Place>,
    /// How much of it is filled, in bytes.
    filled: usize,
    rest: Rest,
    /// What was copied before that, and is to be handed over before it.
    held: Option<Rest>,
    /// Whether holes are to be told: the store has taken the base's pages, or a round's, for granted.
    pub tells_holes: bool,
    backlog: Option<Backlog>,
    /// How much memory the backlog has taken at most, in bytes.
    taken: usize,
}

impl<'a> Room<'a> {
    pub fn new(store: &'a mut Store, tells_holes: bool) -> Self {
        let (rest, held) = (Rest::default(), None);
        Self { store, place: None, filled: 0, rest, held, tells_holes, backlog: None, taken: 0 }
    }

    /// From now on, what the store has no room for is kept.
    pub fn allow_backlog(&mut self) {
        if self.backlog.is_none() {
            self.backlog = Backlog::reserve(self.store.half_len());
        }
    }

    pub fn has_backlog(&self) -> bool {
        self.backlog.is_some()
    }

    /// How much memory beside the staging buffer was taken, in bytes.
    pub fn taken(&self) -> usize {
        self.backlog.as_ref().map_or(self.taken, Backlog::taken)
    }

    pub fn staging_len(&self) -> usize {
        self.store.half_len() * 2
    }

    /// Room for at least one page, populated: where it is in its place, its address, how many bytes. `hurry`: nothing is to be
    /// done for the store that can be done later.
    pub fn find(&mut self, hurry: bool) -> Result<(u64, *mut u8, usize), Vec<Refusal>> {
        let (address, len) = match self.place(hurry)? {
            Place::Half(_, start) => (start, self.populate(PAGE_SIZE)? - self.filled),
            Place::Chunk(chunk, start) => (start, self.populate_chunk(chunk)?),
        };
        // SAFETY: inside the place.
        Ok((self.filled as u64, unsafe { address.add(self.filled) }, len))
    }

    /// The same for what is copied by [`Target::gather`], which needs no pages in page tables of this process.
    pub fn find_target(&mut self, hurry: bool) -> Result<(u64, Target, usize), Vec<Refusal>> {
        let place = self.place(hurry)?;
        let filled = self.filled as u64;
        let (start, way, len) = match place {
            Place::Half(offset, start) => {
                let way = Way::File(self.store.file(), offset + filled);
                (start, way, self.store.half_len() - self.filled)
            }
            Place::Chunk(chunk, start) => {
                let through = |(at, bounce)| Way::Through(self.store.file(), at, bounce);
                let way = self.store.bounce().map_or(Way::Pinned, through);
                (start, way, self.populate_chunk(chunk)?)
            }
        };
        // SAFETY: inside the place.
        let to = unsafe { start.add(self.filled) };
        Ok((filled, Target { to, way }, len))
    }

    /// The place with room for at least one page.
    fn place(&mut self, hurry: bool) -> Result<Place, Vec<Refusal>> {
        if self.place.is_some() && self.filled == self.store.half_len() {
            self.hand_over()?;
        }
        let place = match self.place {
            Some(place) => place,
            None => self.next_place(hurry)?,
        };
        self.place = Some(place);
        Ok(place)
    }

    /// Populates the part of the chunk that is filled next; how much room it has, in bytes.
    fn populate_chunk(&mut self, chunk: Chunk) -> Result<usize, Vec<Refusal>> {
        let part = self.filled - self.filled % PART;
        if self.filled == part
            && let Some(backlog) = &self.backlog
        {
            backlog.populate(chunk, part).map_err(|error| {
                store_refusal(format!("no memory for what the store has no room for yet: {error}"))
            })?;
        }
        Ok(part + PART - self.filled)
    }

    /// Populates what is filled next of a half of the staging buffer, at least `len` bytes of it where it has as many; up to where
    /// it is then.
    fn populate(&mut self, len: usize) -> Result<usize, Vec<Refusal>> {
        let end = (self.filled + len).min(self.store.half_len());
        self.store
            .populate(end)
            .map_err(|error| store_refusal(format!("no memory for the staging buffer: {error}")))
    }

    /// Makes [`Self::find`] find so many bytes without a page fault, if they are in a half of the staging buffer.
    pub fn prepare(&mut self, len: usize) -> Result<(), Vec<Refusal>> {
        if matches!(self.place, Some(Place::Half(..))) { self.populate(len).map(drop) } else { Ok(()) }
    }

    /// Whether [`Self::find`] waits for the store.
    pub fn would_wait(&mut self) -> Result<bool, Vec<Refusal>> {
        if self.place.is_some() && self.filled < self.store.half_len() {
            return Ok(false);
        }
        if self.backlog.as_ref().is_some_and(Backlog::has_chunk) {
            return Ok(false);
        }
        Ok(!self.store.has_free_half().map_err(store_refusal)?)
    }

    /// Waits until the store says something, at most so long.
    pub fn await_store(&self, ms: i32) {
        let _ = sync::poll(self.store.fd(), libc::POLLIN, ms);
    }

    fn next_place(&mut self, hurry: bool) -> Result<Place, Vec<Refusal>> {
        if !hurry {
            while self.is_behind() && self.store.has_free_half().map_err(store_refusal)? {
                self.drain_one(None)?;
            }
        }
        loop {
            if !self.is_behind() && self.store.has_free_half().map_err(store_refusal)? {
                break;
            }
            if let Some(backlog) = &mut self.backlog
                && let Some(chunk) = backlog.chunk()
            {
                return Ok(Place::Chunk(chunk, backlog.address(chunk)));
            }
            if !self.is_behind() {
                break;
            }
            self.drain_one(None)?;
        }
        let (offset, address) = self.store.free_half().map_err(store_refusal)?;
        Ok(Place::Half(offset, address))
    }

    /// Whether something waits to go to the store.
    fn is_behind(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.is_empty())
    }

    /// Hands over the first of what waits, if there is room for it; whether it did. The program's slices of time go on.
    pub fn drain(&mut self, slices: &mut Slices) -> Result<bool, Vec<Refusal>> {
        let drains = self.is_behind() && self.store.has_free_half().map_err(store_refusal)?;
        if drains {
            self.drain_one(Some(slices))?;
        }
        Ok(drains)
    }

    /// Hands over the first of what waits; waits for room for it.
    fn drain_one(&mut self, mut slices: Option<&mut Slices>) -> Result<(), Vec<Refusal>> {
        let Some(backlog) = &mut self.backlog else { return Ok(()) };
        let Some((chunk, mut rest)) = backlog.pop() else { return Ok(()) };
        if let Some(chunk) = chunk {
            let (offset, to) = self.store.free_half().map_err(store_refusal)?;
            let from = backlog.address(chunk);
            let len: usize = rest.runs.iter().map(|run| run.pages as usize * PAGE_SIZE).sum();
            for at in (0..len).step_by(AT_ONCE) {
                // SAFETY: both are as long as a half, and apart.
                unsafe { core::ptr::copy_nonoverlapping(from.add(at), to.add(at), AT_ONCE.min(len - at)) };
                if let Some(slices) = &mut slices {
                    slices.turn()?;
                }
            }
            rest.move_by(offset);
            self.store.fill_half();
            backlog.give_back(chunk);
        }
        self.store.hand_over(rest).map_err(store_refusal)
    }

    /// Notes that `len` bytes were put at `offset` of the place.
    pub fn filled(&mut self, space: Space, at: u64, offset: u64, len: usize) {
        if len == 0 {
            return;
        }
        let (first_page, pages) = (at / PAGE, (len / PAGE_SIZE) as u32);
        self.filled += len;
        if let Some(last) = self.rest.runs.last_mut()
            && last.space == space
            && last.first_page + u64::from(last.pages) == first_page
        {
            last.pages += pages;
            return;
        }
        self.rest.runs.push(StagedRun { space, first_page, pages, staging_offset: offset });
    }

    /// Notes that there is nothing from `start` to `end` (bytes).
    pub fn forget(&mut self, space: Space, start: u64, end: u64) {
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

    /// Whether nothing waits for the store, nor the store has anything to do but what is being filled.
    pub fn is_up_to_date(&mut self) -> Result<bool, Vec<Refusal>> {
        Ok(!self.is_behind() && self.held.is_none() && self.store.is_done().map_err(store_refusal)?)
    }

    /// Keeps what has been copied until what is copied next is handed over, where nothing goes before it: the store's work on it
    /// would take the processor from who copies while threads stand still.
    pub fn hold(&mut self) -> Result<(), Vec<Refusal>> {
        if self.is_behind() || self.held.is_some() || matches!(self.place, Some(Place::Chunk(..))) {
            return self.hand_over();
        }
        self.held = Some(self.take_rest().1);
        Ok(())
    }

    /// What has been copied; where it is in a chunk of the backlog, that.
    fn take_rest(&mut self) -> (Option<Chunk>, Rest) {
        let mut rest = core::mem::take(&mut self.rest);
        let place = self.place.take_if(|_| !rest.runs.is_empty());
        if place.is_some() {
            self.filled = 0;
        }
        match place {
            Some(Place::Chunk(chunk, _)) => (Some(chunk), rest),
            Some(Place::Half(offset, _)) => {
                rest.move_by(offset);
                self.store.fill_half();
                (None, rest)
            }
            None => (None, rest),
        }
    }

    /// Hands over what has been copied, or puts it behind what waits already.
    pub fn hand_over(&mut self) -> Result<(), Vec<Refusal>> {
        if let Some(held) = self.held.take() {
            self.store.hand_over(held).map_err(store_refusal)?;
        }
        let (chunk, rest) = self.take_rest();
        match &mut self.backlog {
            Some(backlog) if chunk.is_some() || !backlog.is_empty() => backlog.push(chunk, rest),
            _ => return self.store.hand_over(rest).map_err(store_refusal),
        }
        Ok(())
    }

    /// Hands over everything, and gives back the backlog.
    pub fn deliver(&mut self) -> Result<(), Vec<Refusal>> {
        self.hand_over()?;
        while self.is_behind() {
            self.drain_one(None)?;
        }
        self.taken = self.taken();
        self.backlog = None;
        Ok(())
    }
}

impl Rest {
    /// Counts offsets from the beginning of the staging buffer.
    fn move_by(&mut self, offset: u64) {
        self.runs.iter_mut().for_each(|run| run.staging_offset += offset);
    }
}
