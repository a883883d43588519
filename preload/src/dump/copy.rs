//! Copying memory to where there is room for it.

use alloc::vec::Vec;

use stasis_protocol::{PAGE_SIZE, coordinator::Refusal, store::MEMORY};
use stasis_sys::{
    file,
    process::{PARTS, Part},
};

use super::{
    Dump, PAGE,
    room::{AT_ONCE, Target},
};
use crate::pagemap::{Run, State};

impl Dump<'_> {
    /// Copies while the program may unmap what is copied.
    pub(super) fn copy_running(&mut self, found: &[Run]) -> Result<(), Vec<Refusal>> {
        let mut runs =
            found.iter().filter(|run| matches!(run.state, State::Present | State::Swapped)).copied();
        let mut parts: Vec<Part> = Vec::new();
        let mut next = runs.next();
        while let Some(mut run) = next {
            parts.clear();
            self.turn()?;
            let (offset, target, room) = self.room.find_target(self.hurries || self.slices.is_some())?;
            let mut left = AT_ONCE.min(room) as u64;
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
            self.gather(&mut parts, offset, target)?;
        }
        Ok(())
    }

    /// Copies parts to the room at `target`, and notes the pages that cannot be read.
    fn gather(
        &mut self,
        parts: &mut [Part],
        mut offset: u64,
        mut target: Target,
    ) -> Result<(), Vec<Refusal>> {
        let mut next = 0;
        while next < parts.len() {
            // SAFETY: the parts were chosen to fit into the room.
            let copied = unsafe { target.gather(&parts[next..]) }?;
            let mut copied = copied as u64 & !(PAGE - 1);
            while let Some(part) = parts.get_mut(next) {
                let len = part.len.min(copied);
                self.room.filled(MEMORY, part.start, offset, len as usize);
                target.advance(len as usize);
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
        Ok(())
    }

    /// Copies while nobody can unmap anything.
    pub(super) fn copy_stopped(&mut self, found: &[Run], readable: bool) -> Result<(), Vec<Refusal>> {
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

    /// Copies populated, readable memory.
    fn memory(&mut self, mut start: u64, end: u64) -> Result<(), Vec<Refusal>> {
        while start < end {
            let (offset, to, room) = self.room.find(self.hurries)?;
            let len = room.min((end - start) as usize);
            // SAFETY: the pages are populated and readable, and every thread that could unmap them is
            // stopped; the room is ours.
            unsafe { core::ptr::copy_nonoverlapping(start as *const u8, to, len) };
            self.room.filled(MEMORY, start, offset, len);
            start += len as u64;
        }
        Ok(())
    }

    /// Copies page by page what may not be readable. `holes`: what is not there may have been.
    pub(super) fn careful(&mut self, start: u64, end: u64, holes: bool) -> Result<(), Vec<Refusal>> {
        for at in (start..end).step_by(PAGE_SIZE) {
            if !self.page(at)? && holes {
                self.room.forget(MEMORY, at, at + PAGE);
            }
        }
        Ok(())
    }

    /// Copies a page as threads read it, waiting for it to be brought; whether there is one.
    pub(super) fn readable_page(&mut self, at: u64) -> Result<bool, Vec<Refusal>> {
        let (offset, target, _) = self.room.find_target(self.hurries)?;
        // SAFETY: the room is ours.
        let whole = unsafe { target.gather(&[Part { start: at, len: PAGE }]) }? == PAGE_SIZE;
        if whole {
            self.room.filled(MEMORY, at, offset, PAGE_SIZE);
        }
        Ok(whole)
    }

    /// Copies a page through /proc/self/mem; whether there is one: not beyond the end of a file, nor in a guard region.
    pub(super) fn page(&mut self, at: u64) -> Result<bool, Vec<Refusal>> {
        let (offset, to, _) = self.room.find(self.hurries)?;
        // SAFETY: the room is ours.
        let read = unsafe { file::pread_to(self.memory, to as usize, PAGE_SIZE, at) } == Ok(PAGE_SIZE);
        if read {
            self.room.filled(MEMORY, at, offset, PAGE_SIZE);
        }
        Ok(read)
    }
}
