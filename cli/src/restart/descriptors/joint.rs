//! What the processes of a computation have together: open file descriptions that several share, connections between
//! them, and connections that lead outside. Shared descriptions and the ends of connections between processes are
//! made once, by `stasis restart`, and inherited; all else is made by the process that has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, ProcessImage},
    store::SharedDescriptor,
};

use super::{
    Installed, Maker, Objects, Policy, failed,
    kernel::{self, done},
    numbers::Numbers,
    sockets,
};

/// A description: the process that has it, by its place in the checkpoint, and its index there.
pub type Place = (usize, usize);

/// A pipe or a pair of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Connection {
    Pipe(u64),
    Pair(u64),
}

impl Connection {
    fn of(kind: &DescriptionKind) -> Option<Self> {
        match kind {
            DescriptionKind::Pipe { pipe, .. } => Some(Self::Pipe(*pipe)),
            DescriptionKind::SocketPair { pair, .. } => Some(Self::Pair(*pair)),
            _ => None,
        }
    }
}

/// What of `stasis restart`'s own descriptors restored processes may be given in the place of what leads outside: the standard
/// ones, and pipes at any number. To be looked at before anything else is opened.
#[derive(Debug, Default)]
pub struct Passed(BTreeSet<RawFd>);

impl Passed {
    pub fn look() -> Self {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
            return Self((0..3).filter(|&fd| is_open(fd)).collect());
        };
        let numbers: Vec<RawFd> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        Self(numbers.into_iter().filter(|&fd| if fd <= 2 { is_open(fd) } else { is_pipe(fd) }).collect())
    }

    /// A copy of the descriptor with this number.
    pub fn copy(&self, fd: RawFd) -> Option<OwnedFd> {
        let known = self.0.contains(&fd);
        // SAFETY: fcntl(2) with numbers.
        known.then(|| kernel::owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }).ok()).flatten()
    }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl(2) with numbers.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

fn is_pipe(fd: RawFd) -> bool {
    // SAFETY: struct stat is plain data, which fstat(2) fills in.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO }
}

/// What the images say of what their processes have together.
pub struct Relations {
    /// Descriptions that are made once, each with all of its places: the first is whom it is made for.
    groups: Vec<Vec<Place>>,
    group_of: BTreeMap<Place, usize>,
    outside: BTreeSet<Connection>,
    /// The ends of pairs of sockets, each by the first of its places.
    pairs: BTreeMap<u64, Vec<Place>>,
}

impl Relations {
    /// `shared`: what the checkpoint's record says.
    pub fn find(images: &[&ProcessImage], shared: &[Vec<SharedDescriptor>]) -> Self {
        let mut relations = Self {
            groups: Vec::new(),
            group_of: BTreeMap::new(),
            outside: BTreeSet::new(),
            pairs: BTreeMap::new(),
        };
        for group in shared {
            relations
                .share(group.iter().filter_map(|descriptor| place(images, descriptor)).collect(), images);
        }
        let mut processes: BTreeMap<Connection, BTreeSet<usize>> = BTreeMap::new();
        for ((process, _), connection, _) in connections(images) {
            processes.entry(connection).or_default().insert(process);
        }
        for (place, connection, _) in connections(images) {
            if processes.get(&connection).is_some_and(|having| having.len() > 1)
                && !relations.group_of.contains_key(&place)
            {
                relations.share(vec![place], images);
            }
        }
        relations.find_ends(images);
        relations
    }

    fn share(&mut self, mut places: Vec<Place>, images: &[&ProcessImage]) {
        // What a process sees of itself in /proc is another file in another process.
        let own = |&(process, index): &Place| match &images[process].descriptions[index].kind {
            DescriptionKind::Regular { file, .. } | DescriptionKind::Directory { file } => {
                file.path.starts_with("/proc/")
            }
            _ => false,
        };
        places.sort_unstable();
        places.dedup();
        places.retain(|place| !own(place) && !self.group_of.contains_key(place));
        if places.is_empty() {
            return;
        }
        for place in &places {
            self.group_of.insert(*place, self.groups.len());
        }
        self.groups.push(places);
    }

    /// Finds the ends of pairs, and the connections whose other end nobody has though it was not closed.
    fn find_ends(&mut self, images: &[&ProcessImage]) {
        let mut sides: BTreeMap<Connection, (bool, bool, bool)> = BTreeMap::new();
        for (place, connection, description) in connections(images) {
            let first = self.first(place);
            let (one, two, closed) = sides.entry(connection).or_default();
            match &description.kind {
                DescriptionKind::Pipe { other_closed, .. } => {
                    let access = description.flags as i32 & libc::O_ACCMODE;
                    *one |= access != libc::O_WRONLY;
                    *two |= access != libc::O_RDONLY;
                    *closed |= other_closed;
                }
                DescriptionKind::SocketPair { pair, other_closed, .. } => {
                    let ends = self.pairs.entry(*pair).or_default();
                    if !ends.contains(&first) {
                        ends.push(first);
                    }
                    (*one, *two) = (true, ends.len() > 1);
                    *closed |= other_closed;
                }
                _ => {}
            }
        }
        let outside = sides.into_iter().filter(|(_, (one, two, closed))| !(*one && *two || *closed));
        self.outside = outside.map(|(connection, _)| connection).collect();
    }

    /// Whom a description is made for.
    pub fn first(&self, place: Place) -> Place {
        self.group_of.get(&place).and_then(|&group| self.groups[group].first()).copied().unwrap_or(place)
    }

    /// All places of the same description.
    pub fn places(&self, place: Place) -> Vec<Place> {
        self.group_of.get(&place).map_or_else(|| vec![place], |&group| self.groups[group].clone())
    }

    pub fn leads_outside(&self, kind: &DescriptionKind) -> bool {
        Connection::of(kind).is_some_and(|connection| self.outside.contains(&connection))
    }

    /// The ends of a pair of sockets that there are.
    pub fn ends(&self, pair: u64) -> &[Place] {
        self.pairs.get(&pair).map_or(&[], Vec::as_slice)
    }
}

fn connections<'a>(
    images: &'a [&'a ProcessImage],
) -> impl Iterator<Item = (Place, Connection, &'a Description)> {
    images.iter().enumerate().flat_map(|(process, image)| {
        image.descriptions.iter().enumerate().filter_map(move |(index, description)| {
            Some(((process, index), Connection::of(&description.kind)?, description))
        })
    })
}

fn place(images: &[&ProcessImage], shared: &SharedDescriptor) -> Option<Place> {
    let process = images.iter().position(|image| image.ids.pid as u32 == shared.pid)?;
    let image = images[process];
    let descriptor = image.descriptors.iter().find(|descriptor| descriptor.fd == shared.fd)?;
    let index = descriptor.description as usize;
    (index < image.descriptions.len()).then_some((process, index))
}

/// All that descriptors of a computation are made from.
pub struct Common<'a> {
    pub images: Vec<&'a ProcessImage>,
    pub relations: Relations,
    pub objects: Objects,
    pub passed: &'a Passed,
    pub policy: &'a Policy,
    /// What is made once, by group; `None` where the policy is to go without.
    made: Vec<Option<OwnedFd>>,
}

impl<'a> Common<'a> {
    pub fn new(
        images: Vec<&'a ProcessImage>,
        shared: &[Vec<SharedDescriptor>],
        objects: Objects,
        passed: &'a Passed,
        policy: &'a Policy,
    ) -> Self {
        let relations = Relations::find(&images, shared);
        Self { images, relations, objects, passed, policy, made: Vec::new() }
    }

    /// Makes what is made once.
    ///
    /// # Errors
    /// A refusal that names a process and its descriptor.
    pub fn make(&mut self) -> Result<(), Refusal> {
        let mut maker = Maker::new(self, 0, Numbers::default());
        let mut made = Vec::with_capacity(self.relations.groups.len());
        for group in &self.relations.groups {
            let &(process, index) = group.first().unwrap_or(&(0, 0));
            let image = self.images[process];
            maker.process = process;
            maker.image = image;
            let description = &image.descriptions[index];
            let there = Elsewhere::enter(image, &description.kind)
                .map_err(|error| failed(image, index, "its directory cannot be entered", &error))?;
            made.push(maker.make(index, description)?);
            drop(there);
        }
        let Installed { warnings, .. } = maker.finish();
        for warning in warnings {
            eprintln!("stasis: {warning}");
        }
        self.made = made;
        Ok(())
    }

    /// A description that was made once: what takes its place, and whether it was made for this place.
    pub fn ready(&self, place: Place) -> Option<(Option<&OwnedFd>, bool)> {
        let group = *self.relations.group_of.get(&place)?;
        Some((self.made.get(group)?.as_ref(), self.relations.first(place) == place))
    }

    pub fn description(&self, (process, index): Place) -> &'a Description {
        &self.images[process].descriptions[index]
    }
}

/// The working directory of a process, for as long as something is made whose path may be relative to it.
struct Elsewhere {
    back: OwnedFd,
}

impl Elsewhere {
    fn enter(image: &ProcessImage, kind: &DescriptionKind) -> std::io::Result<Option<Self>> {
        let DescriptionKind::Socket { local, .. } = kind else { return Ok(None) };
        if sockets::path(local).is_none_or(|path| path.is_absolute()) {
            return Ok(None);
        }
        let back = kernel::open(".", libc::O_PATH | libc::O_DIRECTORY)?;
        std::env::set_current_dir(Path::new(&image.cwd))?;
        Ok(Some(Self { back }))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // SAFETY: no memory is touched. The directory was this process' a moment ago.
        let _ = done(unsafe { libc::fchdir(self.back.as_raw_fd()) });
    }
}
