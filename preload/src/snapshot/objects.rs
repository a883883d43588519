//! Memory and files whose content is in no file that will be there at restart: shared anonymous
//! memory, memfds, deleted files.

use alloc::vec::Vec;

use stasis_protocol::{
    births::Kind,
    image::{Object, ObjectKind},
};
use stasis_sys::{
    file::{self, Fd},
    process,
};

use super::system_v;

/// Where shm_open(3) and sem_open(3) make what they make.
pub const SHARED_MEMORY: &str = "/dev/shm/";

/// Where an object's content can be read.
#[derive(Clone, Copy)]
pub enum Source {
    /// A descriptor in the checkpoint thread's table.
    Descriptor(Fd),
    /// One that is opened when it is read: that table has no room for as many.
    Unopened(Opening),
    /// A mapping of it in this process: address, length, and the offset that it begins at.
    Mapped { address: u64, len: u64, offset: u64 },
    /// A System V segment, attached for as long as it is read.
    Segment(i32),
}

/// How a descriptor is made by which an object can be read.
#[derive(Clone, Copy)]
pub enum Opening {
    /// As a duplicate of the program's descriptor in the table of a thread; opened anew where that is for writing only.
    Of { tid: i32, fd: i32, reads: bool },
    /// By the name of the object's file.
    Named,
}

struct Found {
    /// A hash (FNV-1a) of the path that /proc shows, and the inode. Not the device alone: for a file on btrfs or
    /// overlayfs, maps and stat(2) tell different ones.
    path: u64,
    inode: u64,
    /// Of a descriptor: files that were deleted may have had several names.
    device: Option<u64>,
    object: Object,
    sources: Vec<Source>,
    /// The parts of it that are mapped, by offset and length.
    mapped: Vec<(u64, u64)>,
}

impl Found {
    /// By what name it is copied once for all processes that have it, and by which others it may be known to them: of an
    /// object that is only mapped, each process may have another part.
    fn names(&self) -> [u64; 2] {
        let key = self.object.key;
        if matches!(self.object.kind, ObjectKind::Segment { .. }) || self.mapped.is_empty() {
            return [key, key];
        }
        let name = self.mapped.iter().fold(key, |name, (offset, len)| {
            (name ^ len.rotate_left(17) ^ offset.rotate_left(43)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        let all = self.mapped.iter().any(|&(offset, len)| offset == 0 && len >= self.object.size);
        if self.is_open() && !all { [key, name] } else { [name, key] }
    }

    /// Whether all of the content can be read through a descriptor.
    fn is_open(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, Source::Descriptor(_) | Source::Unopened(_)))
    }
}

/// Descriptors beside those of objects that the checkpoint thread may have at once.
const OTHERS: u64 = 16;

/// The objects of a process, each once however often it is open or mapped.
#[derive(Default)]
pub struct Objects {
    found: Vec<Found>,
    /// How many descriptors more may be kept; `None`: not asked yet.
    room: Option<u64>,
}

impl Objects {
    /// The id of an object that can be read by `fd`, which is given away: see [`Self::id`]. `opening`: how it is had again where
    /// there is no room for it (RLIMIT_NOFILE counts for this thread's table, too).
    pub fn open(
        &mut self,
        path: &str,
        inode: u64,
        fd: Fd,
        opening: Opening,
        describe: impl FnOnce() -> (ObjectKind, u64, u32),
    ) -> u32 {
        let device = file::fstat(fd).ok().map(|stat| stat.st_dev);
        let room =
            *self.room.get_or_insert_with(|| process::soft_limit(libc::RLIMIT_NOFILE).saturating_sub(OTHERS));
        let count = self.found.len();
        let keeps = room > 0;
        let source = if keeps { Source::Descriptor(fd) } else { Source::Unopened(opening) };
        let id = self.find(path, inode, device, source, describe);
        if keeps && self.found.len() > count {
            self.room = Some(room - 1);
        } else {
            let _ = file::close(fd);
        }
        id
    }

    /// The id of the object with this inode and the path that /proc shows for it (` (deleted)` included); `kind`,
    /// `size` and `mode` are asked when it is new. A further source is kept: a mapping may show a part only.
    pub fn id(
        &mut self,
        path: &str,
        inode: u64,
        source: Source,
        describe: impl FnOnce() -> (ObjectKind, u64, u32),
    ) -> u32 {
        self.find(path, inode, None, source, describe)
    }

    fn find(
        &mut self,
        path: &str,
        inode: u64,
        device: Option<u64>,
        source: Source,
        describe: impl FnOnce() -> (ObjectKind, u64, u32),
    ) -> u32 {
        let mapped = match source {
            Source::Mapped { len, offset, .. } => Some((offset, len)),
            Source::Descriptor(_) | Source::Unopened(_) | Source::Segment(_) => None,
        };
        // One file system, in which processes may have mapped the same file by different names.
        let path = if path.starts_with(SHARED_MEMORY) { SHARED_MEMORY } else { path };
        let path = path.bytes().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let is_same = |found: &Found| {
            found.inode == inode && (found.path == path || device.is_some() && found.device == device)
        };
        if let Some(found) = self.found.iter_mut().find(|found| is_same(found)) {
            found.mapped.extend(mapped);
            match source {
                Source::Descriptor(_) | Source::Unopened(_) => {}
                Source::Mapped { .. } if found.is_open() => {}
                Source::Mapped { .. } | Source::Segment(_) => found.sources.push(source),
            }
            return found.object.id;
        }
        let id = self.found.len() as u32 + 1;
        let (kind, size, mode) = describe();
        let object = Object { id, kind, size, mode, key: path ^ inode.rotate_left(32) };
        self.found.push(Found {
            path,
            inode,
            device,
            object,
            sources: [source].into(),
            mapped: mapped.into_iter().collect(),
        });
        id
    }

    /// The id of the object of a System V segment; `None` where this process may not know it. `mapped`: where all of it is
    /// mapped.
    pub fn segment(&mut self, id: i32, mapped: Option<(u64, u64)>) -> Option<u32> {
        let key = system_v::key(Kind::Segment, id);
        let index = match self.found.iter().position(|found| found.object.key == key) {
            Some(index) => index,
            None => {
                let object = Object { id: self.found.len() as u32 + 1, ..system_v::segment(id).ok()? };
                let sources = [Source::Segment(id)].into();
                self.found.push(Found {
                    path: 0,
                    inode: 0,
                    device: None,
                    object,
                    sources,
                    mapped: Vec::new(),
                });
                self.found.len() - 1
            }
        };
        let found = &mut self.found[index];
        // Who attaches it is told to others (shmctl(2), shm_lpid).
        if let Some((address, len)) = mapped.filter(|(_, len)| *len >= found.object.size) {
            found.sources = [Source::Mapped { address, len, offset: 0 }].into();
        }
        Some(found.object.id)
    }

    /// Makes an object at least as long as a mapping of it shows, where its size is known only from that.
    pub fn at_least(&mut self, id: u32, size: u64) {
        if let Some(found) = self.found.get_mut(id as usize - 1).filter(|found| !found.is_open()) {
            found.object.size = found.object.size.max(size);
        }
    }

    pub fn records(&self) -> Vec<Object> {
        self.found.iter().map(|found| found.object.clone()).collect()
    }

    /// How many there are; their ids are 1 to this.
    pub fn len(&self) -> u32 {
        self.found.len() as u32
    }

    /// Each object with its sources, and the names of what this process can read of it: the first is that by which it is copied
    /// once for all processes that have it.
    pub fn each(&self) -> impl Iterator<Item = (&Object, &[Source], [u64; 2])> {
        self.found.iter().map(|found| (&found.object, found.sources.as_slice(), found.names()))
    }

    /// Closes the descriptors that were opened for reading.
    pub fn close(&mut self) {
        for found in &self.found {
            for source in &found.sources {
                if let Source::Descriptor(fd) = source {
                    let _ = file::close(*fd);
                }
            }
        }
        *self = Self::default();
    }
}
