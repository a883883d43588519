//! Room for what is copied: a half of the staging buffer, which the store takes it from, or the backlog, where the store
//! may not be waited for.

use alloc::{format, vec::Vec};

use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    store::{PageRange, Space, StagedRun},
};
use stasis_sys::{process, sync};

use super::backlog::{Backlog, Chunk, PART};
use crate::{checkpoint::store_refusal, link::store::Store, slices::Slices};

const PAGE: u64 = PAGE_SIZE as u64;

/// What has been copied and not been handed over. Offsets count from the beginning of the place that it is in.
#[derive(Default)]
pub struct Rest {
    pub forget: Vec<PageRange>,
    pub runs: Vec<StagedRun>,
}

enum Place {
    /// Its offset in the buffer, its address.
    Half(u64, *mut u8),
    Chunk(Chunk, *mut u8),
}

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

    /// Room for at least one page: where it is in its place, its address, how many bytes. `hurry`: nothing is to be
    /// done for the store that can be done later.
    pub fn find(&mut self, hurry: bool) -> Result<(u64, *mut u8, usize), Vec<Refusal>> {
        if self.place.is_some() && self.filled == self.store.half_len() {
            self.hand_over()?;
        }
        let place = match self.place.take() {
            Some(place) => place,
            None => self.next_place(hurry)?,
        };
        let (start, limit) = match (&place, &self.backlog) {
            (&Place::Chunk(chunk, start), Some(backlog)) => {
                let part = self.filled - self.filled % PART;
                if self.filled == part {
                    backlog.populate(chunk, part).map_err(|error| {
                        store_refusal(format!("no memory for what the store has no room for yet: {error}"))
                    })?;
                }
                (start, part + PART)
            }
            (&Place::Half(_, start), _) => (start, self.populate(PAGE_SIZE)?),
            (&Place::Chunk(_, start), None) => (start, self.store.half_len()),
        };
        self.place = Some(place);
        // SAFETY: inside the place.
        let address = unsafe { start.add(self.filled) };
        Ok((self.filled as u64, address, limit - self.filled))
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
        /// How much is copied before others get their turn, in bytes.
        const AT_ONCE: usize = 256 << 10;
        let Some(backlog) = &mut self.backlog else { return Ok(()) };
        let Some((chunk, mut rest)) = backlog.pop() else { return Ok(()) };
        if let Some(chunk) = chunk {
            let (offset, to) = self.store.free_half().map_err(store_refusal)?;
            let from = backlog.address(chunk);
            let len: usize = rest.runs.iter().map(|run| run.pages as usize * PAGE_SIZE).sum();
            for at in (0..len).step_by(AT_ONCE) {
                // SAFETY: both are as long as a half, and apart.
                unsafe { core::ptr::copy_nonoverlapping(from.add(at), to.add(at), AT_ONCE.min(len - at)) };
                match &mut slices {
                    Some(slices) => slices.turn()?,
                    None => process::give_way(),
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
