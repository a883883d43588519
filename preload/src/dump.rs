//! Copying memory into the staging buffer.

use alloc::{format, vec, vec::Vec};

use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    image::Mapping,
    store::{MEMORY, Space, StagedRun},
};
use stasis_sys::{Errno, file, file::Fd, process};

use crate::{
    checkpoint::store_refusal,
    link::store::Store,
    pagemap::{self, Pagemap},
    procfs,
    snapshot::{Snapshot, Source, mappings::Content},
};

/// Copies the content of a stopped process to the store server. The last of it is in the staging buffer when
/// this returns: what [`Store::hand_over`] is to be told of it, once the threads run again. A message wakes the
/// server, which may take the processor from here.
///
/// # Errors
/// Refusals that name the mapping or object; the dump is to be given up then.
pub fn dump(snapshot: &mut Snapshot, store: &mut Store) -> Result<Vec<StagedRun>, Vec<Refusal>> {
    let mut pagemap = Pagemap::open().map_err(|error| refusal("its memory", error))?;
    let memory = procfs::open(c"/proc/thread-self/mem").map_err(|error| refusal("its memory", error))?;
    let mut copier = Copier { store, memory, half: 0, room: None, runs: Vec::new() };
    let mut result = Ok(());
    for (found, mapping) in snapshot.mappings.iter().zip(&mut snapshot.image.mappings) {
        result = copier.mapping(&mut pagemap, mapping, found.content);
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() {
        for (object, sources) in snapshot.objects.each() {
            result = sources.iter().try_for_each(|source| copier.object(object.id, *source));
            if result.is_err() {
                break;
            }
        }
    }
    let _ = file::close(memory);
    pagemap.close();
    result.map(|()| copier.runs)
}

fn refusal(what: &str, error: Errno) -> Vec<Refusal> {
    vec![Refusal {
        what: format!("pid {}, {what}", process::getpid()),
        reason: format!("it cannot be read: {error}"),
        remedy: "report this with the output of `stasis doctor`".into(),
    }]
}

struct Copier<'a> {
    store: &'a mut Store,
    /// /proc/self/mem: reads what is not readable, and gives an error where a load would fault.
    memory: Fd,
    /// How much of the current half is filled.
    half: usize,
    /// The current half: its offset in the buffer, its address.
    room: Option<(u64, *mut u8)>,
    runs: Vec<StagedRun>,
}

impl Copier<'_> {
    fn mapping(
        &mut self,
        pagemap: &mut Pagemap,
        mapping: &mut Mapping,
        content: Content,
    ) -> Result<(), Vec<Refusal>> {
        let which = match content {
            Content::None => return Ok(()),
            Content::Populated => pagemap::Which::Populated,
            Content::Modified => pagemap::Which::Modified,
            Content::All => {
                let run = pagemap::Run { start: mapping.start, end: mapping.end, ..pagemap::Run::default() };
                return self.careful(run, mapping);
            }
        };
        let what = || format!("mapping {:x}-{:x}", mapping.start, mapping.end);
        let runs =
            pagemap.scan(mapping.start, mapping.end, which).map_err(|error| refusal(&what(), error))?;
        let readable = mapping.protection & libc::PROT_READ as u32 != 0;
        for run in runs {
            if run.guard {
                mapping.guards.push((run.start, run.end));
            } else if readable && !run.swapped {
                self.memory(run.start, run.end)?;
            } else {
                self.careful(run, mapping)?;
            }
        }
        Ok(())
    }

    /// Room for at least one page: where it is in the buffer, its address, how many bytes.
    fn room(&mut self) -> Result<(u64, *mut u8, usize), Vec<Refusal>> {
        if self.room.is_some() && self.half == self.store.half_len() {
            self.flush()?;
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
        let (first_page, pages) = (at / PAGE_SIZE as u64, (len / PAGE_SIZE) as u32);
        self.half += len;
        if let Some(last) = self.runs.last_mut()
            && last.space == space
            && last.first_page + u64::from(last.pages) == first_page
        {
            last.pages += pages;
            return;
        }
        self.runs.push(StagedRun { space, first_page, pages, staging_offset });
    }

    fn flush(&mut self) -> Result<(), Vec<Refusal>> {
        if self.room.take().is_some() && !self.runs.is_empty() {
            self.store.hand_over(core::mem::take(&mut self.runs)).map_err(store_refusal)?;
        }
        self.half = 0;
        Ok(())
    }

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

    /// Copies through /proc/self/mem, page by page: what cannot be read is a guard region (a marker
    /// that older kernels show as swapped), or lies beyond the end of a file.
    fn careful(&mut self, run: pagemap::Run, mapping: &mut Mapping) -> Result<(), Vec<Refusal>> {
        let page = PAGE_SIZE as u64;
        let mut at = run.start;
        while at < run.end {
            let (offset, to, _) = self.room()?;
            // SAFETY: the room is ours.
            match unsafe { file::pread_to(self.memory, to as usize, PAGE_SIZE, at) } {
                Ok(PAGE_SIZE) => self.filled(MEMORY, at, offset, PAGE_SIZE),
                _ if run.swapped => match mapping.guards.last_mut() {
                    Some(last) if last.1 == at => last.1 += page,
                    _ => mapping.guards.push((at, at + page)),
                },
                _ => {}
            }
            at += page;
        }
        Ok(())
    }

    fn object(&mut self, id: Space, source: Source) -> Result<(), Vec<Refusal>> {
        match source {
            Source::Descriptor(fd) => self.file(id, fd),
            Source::Mapped { address, len, offset } => {
                let resident =
                    pagemap::resident(address, len).map_err(|error| refusal("its shared memory", error))?;
                for (index, _) in resident.iter().enumerate().filter(|(_, state)| **state & 1 != 0) {
                    let at = (index * PAGE_SIZE) as u64;
                    let (staging, to, _) = self.room()?;
                    // SAFETY: the room is ours.
                    if unsafe { file::pread_to(self.memory, to as usize, PAGE_SIZE, address + at) }
                        == Ok(PAGE_SIZE)
                    {
                        self.filled(id, offset + at, staging, PAGE_SIZE);
                    }
                }
                Ok(())
            }
        }
    }

    /// Copies a file's data, leaving out its holes.
    fn file(&mut self, id: Space, fd: Fd) -> Result<(), Vec<Refusal>> {
        // The description is the program's: its offset is put back however the copy ends.
        let offset = file::seek(fd, 0, libc::SEEK_CUR).unwrap_or(0);
        let copied = self.data(id, fd);
        let _ = file::seek(fd, offset as i64, libc::SEEK_SET);
        copied
    }

    fn data(&mut self, id: Space, fd: Fd) -> Result<(), Vec<Refusal>> {
        let failed = |error| refusal("a deleted file or memfd", error);
        let mut at = 0;
        // ENXIO: no data behind this offset (lseek(2)).
        while let Ok(data) = file::seek(fd, at as i64, libc::SEEK_DATA) {
            let hole = file::seek(fd, data as i64, libc::SEEK_HOLE).map_err(failed)?;
            at = data - data % PAGE_SIZE as u64;
            while at < hole {
                let (staging, to, room) = self.room()?;
                let len = room.min((hole - at).next_multiple_of(PAGE_SIZE as u64) as usize);
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
            at = at.max(hole);
        }
        Ok(())
    }
}
