//! Objects: memfds, shared memory, deleted files and files that are put back, made empty, to be filled with the content
//! that the checkpoint holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Backing, DescriptionKind, Mapping, Object, ObjectKind, ProcessImage, flag},
};

use super::{
    files::is_made_nameless,
    kernel::{self, done, owned},
    put_back::{self, Place},
};
use crate::restart::refusal;

/// How an object is named in messages.
pub fn name(image: &ProcessImage, id: u32) -> String {
    image.objects.iter().find(|object| object.id == id).map_or_else(|| format!("object {id}"), describe)
}

fn describe(object: &Object) -> String {
    match &object.kind {
        ObjectKind::SharedMemory => "shared memory".into(),
        ObjectKind::Memfd { name, .. } => format!("memfd {name}"),
        ObjectKind::DeletedFile { path } => format!("{path}, deleted"),
        ObjectKind::File { file, .. } => file.path.clone(),
        ObjectKind::Segment { of, .. } => format!("System V shared memory {}", of.id),
    }
}

fn refused(image: &ProcessImage, object: &Object, what: &str, error: &io::Error) -> Refusal {
    refusal(
        format!("pid {}, {}", image.ids.pid, describe(object)),
        format!("{what}: {error}"),
        "free memory or disk space, and restart again",
    )
}

/// The objects of a computation: each is made once, however many processes have it.
#[derive(Default)]
pub struct Objects {
    made: Vec<OwnedFd>,
    /// Which of `made` the object of a process is, by its place in the checkpoint and the object's id.
    numbers: BTreeMap<(usize, u32), usize>,
    /// Which of `made` is the file of a path.
    paths: BTreeMap<String, usize>,
    /// Which of `made` keep what they have.
    kept: BTreeSet<usize>,
    /// The seals of those that a process maps first, by its place and the object's id.
    to_seal: BTreeMap<(usize, u32), i32>,
}

impl Objects {
    /// Makes each of its size and empty.
    ///
    /// # Errors
    /// Names the object that cannot be made.
    pub fn create(images: &[&ProcessImage]) -> Result<Self, Refusal> {
        let mut keys: BTreeMap<u64, Vec<(usize, &Object)>> = BTreeMap::new();
        for (process, image) in images.iter().enumerate() {
            for object in &image.objects {
                // Those have no descriptor.
                if !matches!(object.kind, ObjectKind::Segment { .. }) {
                    keys.entry(object.key).or_default().push((process, object));
                }
            }
        }
        let mut objects = Self::default();
        for having in keys.into_values() {
            let Some(&(process, first)) = having.first() else { continue };
            let image = images[process];
            // Who has but a part of it mapped may not know how long it is.
            let size = having.iter().map(|(_, object)| object.size).max().unwrap_or(0);
            let cannot = |error| refused(image, first, "it cannot be made", &error);
            let Place { fd, keep, warning } = create(first, size).map_err(cannot)?;
            let number = objects.made.len();
            if let Some(warning) = warning {
                eprintln!("stasis: {warning}");
            }
            if keep {
                objects.kept.insert(number);
            }
            if let ObjectKind::File { file, .. } = &first.kind {
                objects.paths.insert(file.path.clone(), number);
            }
            // The owner is not in the image: it is taken to be who the program makes files as. Only the privileged can
            // say so, and for others it is so already.
            let (uid, gid) = (image.credentials.uid[3], image.credentials.gid[3]);
            // SAFETY: no memory is touched.
            let _ = unsafe { libc::fchown(fd.as_raw_fd(), uid, gid) };
            for (process, object) in having {
                objects.numbers.insert((process, object.id), number);
            }
            objects.made.push(fd);
        }
        Ok(objects)
    }

    /// Makes files that the program may give a name yet (O_TMPFILE) once more, in the mounts that it will have: linkat(2) does so
    /// only within the mount that a file was made in. To be called in the program's mount namespace, when all are filled.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub fn make_linkable(&self, images: &[&ProcessImage]) -> io::Result<()> {
        let mut moved = BTreeSet::new();
        for (process, image) in images.iter().enumerate() {
            for description in image.descriptions.iter().filter(|one| is_made_nameless(one)) {
                let DescriptionKind::Object { object: id, .. } = description.kind else { continue };
                let object = image.objects.iter().find(|object| object.id == id);
                let (Some(object), Some(old)) = (object, self.get(process, id)) else { continue };
                if moved.insert(old.as_raw_fd()) && is_nameless(old)? {
                    let new = create(object, object.size)?.fd;
                    copy_data(old, &new)?;
                    let stat = kernel::stat(old)?;
                    // SAFETY: no memory is touched; the number is ours.
                    let _ = unsafe { libc::fchown(new.as_raw_fd(), stat.st_uid, stat.st_gid) };
                    // SAFETY: as above.
                    done(unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) })?;
                }
            }
        }
        Ok(())
    }

    pub fn get(&self, process: usize, id: u32) -> Option<&OwnedFd> {
        self.numbers.get(&(process, id)).and_then(|&number| self.made.get(number))
    }

    /// The same, unless it is to keep what it has.
    pub fn to_fill(&self, process: usize, id: u32) -> Option<&OwnedFd> {
        let number = self.numbers.get(&(process, id)).filter(|number| !self.kept.contains(number))?;
        self.made.get(*number)
    }

    /// What is to be opened by a path.
    pub fn at(&self, path: &str) -> Option<&OwnedFd> {
        self.paths.get(path).and_then(|&number| self.made.get(number))
    }

    /// Says that all are filled.
    pub fn date(&self, images: &[&ProcessImage]) {
        for (process, image) in images.iter().enumerate() {
            for object in &image.objects {
                if let (ObjectKind::File { file, .. }, Some(fd)) =
                    (&object.kind, self.to_fill(process, object.id))
                {
                    put_back::date(fd, file);
                }
            }
        }
    }

    /// Seals the memfds that were sealed (F_ADD_SEALS). To be called when they are filled. One sealed against future
    /// writing is left to the process that has it mapped for writing: see [`Self::to_seal`].
    ///
    /// # Errors
    /// Names the memfd.
    pub fn seal(&mut self, images: &[&ProcessImage]) -> Result<(), Refusal> {
        let mut sealed: BTreeMap<i32, i32> = BTreeMap::new();
        let writers = self.writers(images);
        for (process, image) in images.iter().enumerate() {
            for object in &image.objects {
                let (ObjectKind::Memfd { seals, .. }, Some(fd)) =
                    (&object.kind, self.get(process, object.id))
                else {
                    continue;
                };
                let mut seals = *seals as i32;
                let against_future = seals & libc::F_SEAL_FUTURE_WRITE != 0;
                match writers.get(&fd.as_raw_fd()).map(Vec::as_slice) {
                    Some([writer]) if against_future => {
                        self.to_seal.insert(*writer, seals);
                        continue;
                    }
                    Some(_) if against_future => {
                        eprintln!(
                            "stasis: {} is not sealed against future writing again: several processes have it mapped",
                            describe(object)
                        );
                        seals &= !(libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL);
                    }
                    _ => {}
                }
                if seals & !sealed.insert(fd.as_raw_fd(), seals).unwrap_or(0) != 0 {
                    kernel::fcntl(fd, libc::F_ADD_SEALS, seals)
                        .map_err(|error| refused(image, object, "it cannot be sealed", &error))?;
                }
            }
        }
        Ok(())
    }

    /// The memfds that a process is to seal when it has mapped them, and their seals.
    pub fn to_seal(&self, process: usize) -> impl Iterator<Item = (u32, i32)> {
        self.to_seal.range((process, 0)..=(process, u32::MAX)).map(|(&(_, id), &seals)| (id, seals))
    }

    /// Which processes have each object mapped such that they may write to it, and as which of their objects.
    fn writers(&self, images: &[&ProcessImage]) -> BTreeMap<RawFd, Vec<(usize, u32)>> {
        let mut writers: BTreeMap<RawFd, Vec<(usize, u32)>> = BTreeMap::new();
        for (process, image) in images.iter().enumerate() {
            let may_write = |mapping: &&Mapping| {
                let writes = mapping.protection & libc::PROT_WRITE as u32 != 0;
                mapping.shared && (writes || mapping.flags & flag::MAY_WRITE != 0)
            };
            for mapping in image.mappings.iter().filter(may_write) {
                let Backing::Object(id) = mapping.backing else { continue };
                let Some(fd) = self.get(process, id) else { continue };
                let known = writers.entry(fd.as_raw_fd()).or_default();
                if known.last() != Some(&(process, id)) {
                    known.push((process, id));
                }
            }
        }
        writers
    }
}

fn create(object: &Object, size: u64) -> io::Result<Place> {
    let size = i64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    let fd = match &object.kind {
        ObjectKind::File { file, memory } => return put_back::open(file, *memory, size, object.mode),
        ObjectKind::Segment { .. } => return Err(io::ErrorKind::Unsupported.into()),
        ObjectKind::SharedMemory => memfd("stasis-shared", 0)?,
        ObjectKind::Memfd { hugetlb: true, .. } => return Err(io::ErrorKind::Unsupported.into()),
        ObjectKind::Memfd { name, .. } => memfd(name, libc::MFD_ALLOW_SEALING)?,
        ObjectKind::DeletedFile { path } => nameless(path)?,
    };
    // SAFETY: no memory is touched.
    done(unsafe { libc::fchmod(fd.as_raw_fd(), object.mode & 0o7777) })?;
    // SAFETY: no memory is touched.
    done(unsafe { libc::ftruncate(fd.as_raw_fd(), size) })?;
    Ok(Place { fd, keep: false, warning: None })
}

/// A file without a name where one of this path would be; in memory where there is no such directory any more, or a file
/// system without O_TMPFILE.
pub fn nameless(path: &str) -> io::Result<OwnedFd> {
    let directory = path.rsplit_once('/').map_or(".", |(directory, _)| directory);
    kernel::open(if directory.is_empty() { "/" } else { directory }, libc::O_TMPFILE | libc::O_RDWR)
        .or_else(|_| memfd("stasis-deleted", 0))
}

/// Whether it was made by O_TMPFILE: one in memory (memfd) gets no name whatever mount it is in.
fn is_nameless(fd: &OwnedFd) -> io::Result<bool> {
    Ok(kernel::fcntl(fd, libc::F_GETFL, 0)? & libc::O_TMPFILE == libc::O_TMPFILE)
}

/// Copies what is not a hole.
fn copy_data(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let seek = |offset: i64, whence: i32| {
        // SAFETY: no memory is touched.
        let at = unsafe { libc::lseek(from.as_raw_fd(), offset, whence) };
        if at < 0 { Err(io::Error::last_os_error()) } else { Ok(at) }
    };
    let mut end = 0;
    loop {
        let mut at = match seek(end, libc::SEEK_DATA) {
            Ok(at) => at,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
            Err(error) => return Err(error),
        };
        end = seek(at, libc::SEEK_HOLE)?;
        while at < end {
            let (mut there, len) = (at, (end - at) as usize);
            // SAFETY: reads and advances the two offsets.
            let copied = unsafe {
                libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut there, len, 0)
            };
            match copied {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                ..0 => return Err(io::Error::last_os_error()),
                _ => {}
            }
        }
    }
}

fn memfd(name: &str, flags: u32) -> io::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: reads a string.
    owned(unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) })
}
