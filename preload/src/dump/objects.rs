//! Copying what is shared: files that are deleted, memfds, shared memory. Others can write to it in ways that no tracker
//! sees, so all of it is taken while threads stand still, and compared by hash.

use alloc::{format, vec::Vec};

use stasis_protocol::{PAGE_SIZE, coordinator::Refusal, store::Space};
use stasis_sys::{
    file,
    file::Fd,
    process::{self, Part},
    system_v,
};

use super::{Dump, PAGE, SPACE_END, refusal};
use crate::{pagemap, snapshot::Source};

impl Dump<'_> {
    pub(super) fn object(&mut self, id: Space, sources: &[Source]) -> Result<(), Vec<Refusal>> {
        let mut gap = 0;
        for source in sources {
            gap = match *source {
                Source::Descriptor(fd) => self.file(id, fd, gap)?,
                Source::Mapped { address, len, offset } => {
                    self.room.forget(id, gap, offset);
                    self.mapped(id, address, len, offset)?;
                    gap.max(offset + len)
                }
                Source::Segment(segment) => self.segment(id, segment)?,
            };
        }
        self.room.forget(id, gap, SPACE_END);
        Ok(())
    }

    /// Copies a System V segment that this process has not mapped as a whole; where it ends.
    fn segment(&mut self, id: Space, segment: i32) -> Result<u64, Vec<Refusal>> {
        let failed = |error| refusal(&format!("System V shared memory {segment}"), error);
        let size = system_v::shm_stat(segment).map_err(failed)?.shm_segsz as u64;
        let len = size.next_multiple_of(PAGE);
        let address = system_v::attach(segment).map_err(failed)?;
        let copied = self.mapped(id, address as u64, len, 0);
        // SAFETY: attached a moment ago, and unknown to the program.
        unsafe { system_v::detach(address) }.map_err(failed)?;
        copied.map(|()| len)
    }

    fn mapped(&mut self, id: Space, address: u64, len: u64, offset: u64) -> Result<(), Vec<Refusal>> {
        let resident =
            pagemap::resident(address, len).map_err(|error| refusal("its shared memory", error))?;
        let mut at = 0;
        for part in resident.chunk_by(|one, other| one & 1 == other & 1) {
            let (start, end) = (at, at + (part.len() * PAGE_SIZE) as u64);
            at = end;
            if part[0] & 1 == 0 {
                self.room.forget(id, offset + start, offset + end);
                continue;
            }
            let mut from = start;
            while from < end {
                let (staging, to, room) = self.room.find(self.hurries)?;
                let wanted = room.min((end - from) as usize);
                let part = Part { start: address + from, len: wanted as u64 };
                // SAFETY: the room is ours.
                let gathered = unsafe { process::gather(&[part], to) }.unwrap_or(0) & !(PAGE_SIZE - 1);
                let whole = if gathered == 0 { self.forced(&part, to) } else { gathered };
                self.room.filled(id, offset + from, staging, whole);
                from += whole as u64;
                if whole == 0 {
                    // Beyond the object's end.
                    self.room.forget(id, offset + from, offset + from + PAGE);
                    from += PAGE;
                }
            }
        }
        Ok(())
    }

    /// Copies what threads may not read, where anybody can; how many bytes of whole pages. /proc/self/mem copies everything twice.
    fn forced(&self, part: &Part, to: *mut u8) -> usize {
        // SAFETY: the caller has made room for the part.
        let read = unsafe { file::pread_to(self.memory, to as usize, part.len as usize, part.start) };
        read.unwrap_or(0) & !(PAGE_SIZE - 1)
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
            self.room.forget(id, gap, at);
            while at < hole {
                let (staging, to, room) = self.room.find(self.hurries)?;
                let len = room.min((hole - at).next_multiple_of(PAGE) as usize);
                // SAFETY: the room is ours.
                let read = unsafe { file::pread_to(fd, to as usize, len, at) }.map_err(failed)?;
                let whole = read.next_multiple_of(PAGE_SIZE);
                if whole == 0 {
                    break;
                }
                // SAFETY: still inside the room, which is a multiple of the page size.
                unsafe { core::ptr::write_bytes(to.add(read), 0, whole - read) };
                self.room.filled(id, at, staging, whole);
                at += whole as u64;
            }
            gap = gap.max(at);
            at = at.max(hole);
        }
        Ok(gap)
    }
}
