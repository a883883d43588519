//! Copying what is shared: files that are deleted, memfds, shared memory. Others can write to it in ways that no tracker
//! sees, so all of it is taken while threads stand still, and compared by hash.

use alloc::{format, vec::Vec};
use core::ffi::CStr;

use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    image::{Object, ObjectKind},
    store::Space,
};
use stasis_sys::{
    Errno, file,
    file::Fd,
    memory,
    process::{self, Part},
    system_v, userfaultfd,
};

use super::{Dump, PAGE, SPACE_END, refusal};
use crate::{
    pagemap::{self, Pagemap},
    procfs,
    snapshot::{self, Opening, Source},
};

/// A mapping without its guard regions, which hide what lies there.
struct View {
    address: u64,
    len: u64,
    is_own: bool,
}

impl View {
    /// A mapping of its own only where there are any.
    fn of(pagemap: &mut Pagemap, address: u64, len: u64) -> Self {
        let mut guards = Vec::new();
        let _ = pagemap.guards(address, address + len, &mut guards);
        let again = (!guards.is_empty()).then(|| memory::map_again(address as usize, len as usize).ok());
        match again.flatten() {
            Some(own) => Self { address: own as u64, len, is_own: true },
            None => Self { address, len, is_own: false },
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.is_own {
            // SAFETY: made by `of`, and unknown to the program.
            let _ = unsafe { memory::unmap(self.address as usize, self.len as usize) };
        }
    }
}

/// Holes of a mapping that cannot be read meanwhile: whoever reads one gets an error, and no page of zeros is made. What is in
/// swap is read.
struct Holes(Fd);

impl Holes {
    fn refused(start: u64, end: u64) -> Option<Self> {
        let holes = Self(userfaultfd::open(userfaultfd::SIGBUS).ok()?);
        userfaultfd::register(holes.0, start, end, userfaultfd::MODE_MISSING).ok()?;
        Some(holes)
    }
}

impl Drop for Holes {
    fn drop(&mut self) {
        let _ = file::close(self.0);
    }
}

/// A descriptor by which an object can be read.
fn open(kind: &ObjectKind, opening: Opening) -> Result<Fd, Errno> {
    const FLAGS: i32 = libc::O_RDONLY | libc::O_CLOEXEC;
    match (opening, kind) {
        // On its way to the program.
        (Opening::Of { tid, fd, reads: true }, _) if tid == process::gettid() => file::duplicate(fd),
        (Opening::Of { tid, fd, reads: true }, _) => {
            let pidfd = snapshot::open_pidfd(tid)?;
            let duplicate = process::pidfd_getfd(pidfd, fd);
            let _ = file::close(pidfd);
            duplicate
        }
        (Opening::Of { tid, fd, .. }, _) => {
            file::open(path!("/proc/self/task/{tid}/fd/{fd}").as_c_str(), FLAGS, 0)
        }
        (Opening::Named, ObjectKind::File { file, .. }) => {
            let name = procfs::c_path(file.path.as_bytes());
            let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
            file::open(name, FLAGS | libc::O_NOFOLLOW | libc::O_NOCTTY, 0)
        }
        (Opening::Named, _) => Err(Errno(libc::ENOENT)),
    }
}

impl Dump<'_> {
    pub(super) fn object(&mut self, object: &Object, sources: &[Source]) -> Result<(), Vec<Refusal>> {
        let (id, kind) = (object.id, &object.kind);
        let mut gap = 0;
        for source in sources {
            gap = match *source {
                Source::Descriptor(fd) => self.file(id, fd, gap)?,
                Source::Unopened(opening) => {
                    let fd =
                        open(kind, opening).map_err(|error| refusal("a deleted file or memfd", error))?;
                    let copied = self.file(id, fd, gap);
                    let _ = file::close(fd);
                    copied?
                }
                Source::Mapped { address, len, offset } => {
                    self.room.forget(id, gap, offset);
                    self.mapped(id, kind, address, len, offset)?;
                    gap.max(offset + len)
                }
                Source::Segment(segment) => self.segment(id, kind, segment)?,
            };
        }
        self.room.forget(id, gap, SPACE_END);
        Ok(())
    }

    /// Copies a System V segment that this process has not mapped as a whole; where it ends.
    fn segment(&mut self, id: Space, kind: &ObjectKind, segment: i32) -> Result<u64, Vec<Refusal>> {
        let failed = |error| refusal(&format!("System V shared memory {segment}"), error);
        let size = system_v::shm_stat(segment).map_err(failed)?.shm_segsz as u64;
        let len = size.next_multiple_of(PAGE);
        let address = system_v::attach(segment).map_err(failed)?;
        let copied = self.mapped(id, kind, address as u64, len, 0);
        // SAFETY: attached a moment ago, and unknown to the program.
        unsafe { system_v::detach(address) }.map_err(failed)?;
        copied.map(|()| len)
    }

    /// Copies what a mapping shows of an object that has no descriptor. That of the mapping (/proc/PID/map_files, for who has
    /// CAP_CHECKPOINT_RESTORE) tells data from holes; else the pages are read that are not provably holes.
    fn mapped(
        &mut self,
        id: Space,
        kind: &ObjectKind,
        address: u64,
        len: u64,
        offset: u64,
    ) -> Result<(), Vec<Refusal>> {
        let end = address + len;
        if let Ok(fd) = procfs::open(path!("/proc/self/map_files/{address:x}-{end:x}").as_c_str()) {
            let copied = self.data(id, fd, offset, offset + len, offset);
            let _ = file::close(fd);
            let gap = copied?;
            self.room.forget(id, gap, offset + len);
            return Ok(());
        }
        // A further mapping of a System V segment would show (shmctl(2), shm_lpid).
        let view = match kind {
            ObjectKind::Segment { .. } => None,
            _ => Some(View::of(&mut self.pagemap, address, len)),
        };
        let address = view.as_ref().map_or(address, |view| view.address);
        let resident =
            pagemap::resident(address, len).map_err(|error| refusal("its shared memory", error))?;
        let lies_in_memory = !matches!(kind, ObjectKind::DeletedFile { .. });
        let absent = resident.iter().any(|page| page & 1 == 0);
        let swaps = lies_in_memory && absent && process::is_anything_swapped();
        // Reading a hole of what lies in memory would fill it.
        let holes = if swaps { Holes::refused(address, address + len) } else { None };
        let mut at = 0;
        for part in resident.chunk_by(|one, other| one & 1 == other & 1) {
            let (start, end) = (at, at + (part.len() * PAGE_SIZE) as u64);
            at = end;
            let is_resident = part[0] & 1 != 0;
            if !is_resident && lies_in_memory && !swaps {
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
                if whole == 0 && is_resident && (absent || lies_in_memory) {
                    let page = format!("shared memory at {:x}", address + from);
                    return Err(refusal(&page, Errno(libc::EFAULT)));
                }
                if whole == 0 {
                    // Beyond the object's end, or a hole.
                    self.room.forget(id, offset + from, offset + from + PAGE);
                    from += PAGE;
                }
            }
        }
        drop((holes, view));
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
        let copied = self.data(id, fd, 0, SPACE_END, gap);
        let _ = file::seek(fd, offset as i64, libc::SEEK_SET);
        copied
    }

    /// Copies the data of a part of a file.
    fn data(&mut self, id: Space, fd: Fd, start: u64, end: u64, mut gap: u64) -> Result<u64, Vec<Refusal>> {
        let failed = |error| refusal("a deleted file or memfd", error);
        let mut at = start;
        while at < end {
            let data = match file::seek(fd, at as i64, libc::SEEK_DATA) {
                Ok(data) if data < end => data,
                // No data behind this offset (lseek(2)).
                Ok(_) | Err(Errno(libc::ENXIO)) => break,
                Err(error) => return Err(failed(error)),
            };
            let hole = file::seek(fd, data as i64, libc::SEEK_HOLE).map_err(failed)?.min(end);
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
