//! What the processes of a computation have together: open file descriptions that several share, connections between
//! them, and connections that lead outside. Shared descriptions and the ends of connections between processes are
//! made once, by `stasis restart`, and inherited; all else is made by the process that has it.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    thread,
    time::Duration,
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Datagram, Description, DescriptionKind, Peer, ProcessImage},
    store::SharedDescriptor,
};

use super::{
    Installed, Maker, Objects, Policy,
    datagrams::{self, Made},
    failed, kernel,
    message_queues::{self, Queues},
    numbers::Numbers,
    ptys::{self, Ptys},
    socket_files::{self, Elsewhere},
    sockets, tcp, udp,
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
    /// `detach`: who reads what `restart` prints from a pipe (`$(...)`) waits for all ends of that: the program gets none.
    pub fn look(detach: bool) -> Self {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
            return Self((0..3).filter(|&fd| is_open(fd)).collect());
        };
        let numbers: Vec<RawFd> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let is_passed = |fd: &RawFd| match *fd {
            1 if detach => is_open(1) && !is_pipe(1),
            fd @ ..=2 => is_open(fd),
            fd => is_pipe(fd),
        };
        Self(numbers.into_iter().filter(is_passed).collect())
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
    /// For pairs of which one end waits to be accepted: where, and its turn.
    waiting: BTreeMap<u64, (Place, usize)>,
    /// The pseudo-terminals whose master sides the computation has.
    ptys: BTreeSet<u64>,
}

impl Relations {
    /// `shared`: what the checkpoint's record says.
    pub fn find(images: &[&ProcessImage], shared: &[Vec<SharedDescriptor>]) -> Self {
        let mut relations = Self {
            groups: Vec::new(),
            group_of: BTreeMap::new(),
            outside: BTreeSet::new(),
            pairs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ptys: ptys::keys(images),
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
        relations.share_terminals(images);
        relations.share_addressed(images);
        relations.share_in_flight(images);
        relations.find_ends(images);
        relations
    }

    fn share(&mut self, mut places: Vec<Place>, images: &[&ProcessImage]) {
        // What a process sees of itself in /proc is another file in another process.
        let own = |&(process, index): &Place| match &images[process].descriptions[index].kind {
            DescriptionKind::Regular { file, .. } | DescriptionKind::Directory { file } => {
                file.path.starts_with("/proc/")
            }
            // There is no process yet that it could stand for.
            DescriptionKind::Process { .. } => true,
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

    /// Both sides of a pseudo-terminal are made where it is.
    fn share_terminals(&mut self, images: &[&ProcessImage]) {
        for (process, image) in images.iter().enumerate() {
            for (index, description) in image.descriptions.iter().enumerate() {
                let is_one = matches!(description.kind, DescriptionKind::Pseudoterminal { .. })
                    || self.is_within(&description.kind);
                if is_one && !self.group_of.contains_key(&(process, index)) {
                    self.share(vec![(process, index)], images);
                }
            }
        }
    }

    /// Whether it is the slave side of a pseudo-terminal that the computation has, or of one that nobody has any more.
    pub fn is_within(&self, kind: &DescriptionKind) -> bool {
        match kind {
            DescriptionKind::Terminal { pty, hung_up, .. } => {
                *pty != 0 && (*hung_up || self.ptys.contains(pty))
            }
            _ => false,
        }
    }

    /// Sockets that need each other's addresses are made in an order, which no process could keep for the others.
    fn share_addressed(&mut self, images: &[&ProcessImage]) {
        let named: BTreeSet<u64> = connections(images)
            .filter_map(|(_, _, description)| match &description.kind {
                DescriptionKind::SocketPair { pair, local, .. } if !local.is_empty() => Some(*pair),
                _ => None,
            })
            .collect();
        for (process, image) in images.iter().enumerate() {
            for (index, description) in image.descriptions.iter().enumerate() {
                let place = (process, index);
                // Nobody else's id can be had for the moment when all processes are there.
                let is_others =
                    |peer: &Option<Peer>| peer.as_ref().is_some_and(|peer| peer.pid != image.ids.pid);
                let is_addressed = match &description.kind {
                    DescriptionKind::SocketPair { domain, pair, peer_is, .. } => {
                        *domain != libc::AF_UNIX || named.contains(pair) || is_others(peer_is)
                    }
                    DescriptionKind::Socket {
                        domain,
                        socket_type,
                        received,
                        waiting,
                        peer,
                        listener_is,
                        ..
                    } => {
                        let datagrams = *domain == libc::AF_UNIX && *socket_type == libc::SOCK_DGRAM;
                        let connecting = tcp::is_connecting(*domain, *socket_type, peer);
                        let waits = !received.is_empty() || !waiting.is_empty();
                        datagrams || connecting || waits || is_others(listener_is)
                    }
                    _ => false,
                };
                if is_addressed && !self.group_of.contains_key(&place) {
                    self.share(vec![place], images);
                }
                if let DescriptionKind::Socket { waiting, .. } = &description.kind {
                    let first = self.first(place);
                    for (turn, pair) in waiting.iter().enumerate() {
                        self.waiting.entry(*pair).or_insert((first, turn));
                    }
                }
            }
        }
        let clients: Vec<Place> = connections(images)
            .filter(|(_, connection, _)| {
                matches!(connection, Connection::Pair(pair) if self.waiting.contains_key(pair))
            })
            .map(|(place, ..)| place)
            .filter(|place| !self.group_of.contains_key(place))
            .collect();
        for client in clients {
            self.share(vec![client], images);
        }
    }

    /// What is sent again is made where it is sent, and so are the sockets that it goes through; of a connection, both ends are
    /// made together.
    fn share_in_flight(&mut self, images: &[&ProcessImage]) {
        for (process, image) in images.iter().enumerate() {
            for (index, description) in image.descriptions.iter().enumerate() {
                let rights: Vec<u32> = rights(&description.kind).flatten().copied().collect();
                if rights.is_empty() {
                    continue;
                }
                let known = rights
                    .into_iter()
                    .map(|right| right as usize)
                    .filter(|right| *right < image.descriptions.len());
                for place in known.chain([index]).map(|index| (process, index)) {
                    if !self.group_of.contains_key(&place) {
                        self.share(vec![place], images);
                    }
                }
            }
        }
        let made: BTreeSet<Connection> = connections(images)
            .filter(|(place, ..)| self.group_of.contains_key(place))
            .map(|(_, connection, _)| connection)
            .collect();
        for (place, connection, _) in connections(images) {
            if made.contains(&connection) && !self.group_of.contains_key(&place) {
                self.share(vec![place], images);
            }
        }
    }

    /// The order in which groups are made: connections, while nobody listens yet; then what has an address; then what waits
    /// to be accepted, in its turn; then what no listener has room for.
    fn order(&self, images: &[&ProcessImage]) -> Vec<usize> {
        let rank = |&group: &usize| {
            let first = self.groups[group].first().copied().unwrap_or_default();
            match &images[first.0].descriptions[first.1].kind {
                DescriptionKind::SocketPair { pair, .. } => {
                    self.waiting.get(pair).map_or((0, (0, 0), 0), |(place, turn)| (2, *place, *turn))
                }
                DescriptionKind::Socket { domain, socket_type, peer, .. }
                    if tcp::is_connecting(*domain, *socket_type, peer) =>
                {
                    (3, (0, 0), 0)
                }
                DescriptionKind::Socket { .. } => (1, (0, 0), 0),
                _ => (0, (0, 0), 0),
            }
        };
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order.sort_by_key(rank);
        order
    }

    /// Whether a description is made by the process that has it.
    pub fn is_alone(&self, place: Place) -> bool {
        !self.group_of.contains_key(&place)
    }

    /// The socket that has one end of a pair waiting in it to be accepted.
    pub fn listener_of(&self, pair: u64) -> Option<Place> {
        self.waiting.get(&pair).map(|(place, _)| *place)
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
                    (*one, *two) = (true, ends.len() > 1 || self.waiting.contains_key(pair));
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

/// The descriptions that come with each message that a socket has not read.
pub fn rights(kind: &DescriptionKind) -> impl Iterator<Item = &Vec<u32>> {
    let (messages, datagrams) = match kind {
        DescriptionKind::SocketPair { rights, .. } => (&rights[..], &[][..]),
        DescriptionKind::Socket { received, .. } => (&[][..], &received[..]),
        _ => (&[][..], &[][..]),
    };
    messages.iter().chain(datagrams.iter().map(|datagram| &datagram.rights))
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
    let mut descriptors = image.descriptors.iter().chain(&image.in_flight);
    let descriptor = descriptors.find(|descriptor| descriptor.fd == shared.fd)?;
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
    pub ptys: Ptys,
    /// What is made once, by group; `None` where the policy is to go without.
    made: Vec<Option<OwnedFd>>,
    /// Made later, where the processes are.
    queues: OnceCell<Queues>,
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
        Self {
            images,
            relations,
            objects,
            passed,
            policy,
            ptys: Ptys::default(),
            made: Vec::new(),
            queues: OnceCell::new(),
        }
    }

    /// Makes what is made once.
    ///
    /// # Errors
    /// A refusal that names a process and its descriptor.
    pub fn make(&mut self) -> Result<(), Refusal> {
        self.ptys = Ptys::create(&self.images)?;
        let mut maker = Maker::new(self, 0, Numbers::default());
        self.fill_udp(&mut maker)?;
        let mut made: Vec<Option<OwnedFd>> = self.relations.groups.iter().map(|_| None).collect();
        for at in self.relations.order(&self.images) {
            let group = &self.relations.groups[at];
            let &(process, index) = group.first().unwrap_or(&(0, 0));
            let image = self.images[process];
            maker.process = process;
            maker.image = image;
            let description = &image.descriptions[index];
            if matches!(description.kind, DescriptionKind::MessageQueue { .. }) {
                continue;
            }
            if let DescriptionKind::SocketPair { pair, .. } = &description.kind
                && self.relations.waiting.get(pair).is_some_and(|(_, turn)| *turn > 0)
            {
                thread::sleep(TICK);
            }
            let there = enter(image, &description.kind)
                .map_err(|error| failed(image, index, "its directory cannot be entered", &error))?;
            made[at] = maker.make(index, description)?;
            drop(there);
        }
        let resent = Resent { common: self, made: &made };
        for pair in std::mem::take(&mut maker.unfilled) {
            pair.fill(self, &resent)?;
        }
        self.fill_datagrams(&mut maker, &made)?;
        let Installed { warnings, .. } = maker.finish();
        for warning in warnings {
            eprintln!("stasis: {warning}");
        }
        self.made = made;
        self.ptys.finish(&self.images);
        Ok(())
    }

    /// Makes the message queues; `own`: in an IPC namespace in which nobody else is.
    ///
    /// # Errors
    /// A refusal that names the queue; whether it may be to be had in another place.
    pub fn make_queues(&self, own: bool) -> Result<(), (Refusal, bool)> {
        let queues = message_queues::make(self, own)?;
        let _ = self.queues.set(queues);
        Ok(())
    }

    /// The descriptions of message queues that are made once: their groups, and whom they are made for.
    pub fn queue_groups(&self) -> impl Iterator<Item = (usize, Place)> {
        let firsts = self.relations.groups.iter().enumerate();
        firsts.filter_map(|(group, places)| {
            let place = *places.first()?;
            let is_queue = matches!(self.description(place).kind, DescriptionKind::MessageQueue { .. });
            is_queue.then_some((group, place))
        })
    }

    /// A description of a message queue.
    ///
    /// # Errors
    /// A refusal that names it.
    pub fn open_queue(&self, image: &ProcessImage, index: usize) -> Result<Option<OwnedFd>, Refusal> {
        let Some(queues) = self.queues.get() else { return Ok(None) };
        queues.open(image, index).map_err(|(refusal, _)| refusal)
    }

    /// Makes the sockets of UDP that had something to read, which is in them; they are bound in their turn.
    fn fill_udp<'m>(&'m self, maker: &mut Maker<'m>) -> Result<(), Refusal> {
        for group in &self.relations.groups {
            let Some(&(process, index)) = group.first() else { continue };
            let image = self.images[process];
            let DescriptionKind::Socket {
                domain,
                socket_type: libc::SOCK_DGRAM,
                protocol: libc::IPPROTO_UDP,
                local,
                ..
            } = &image.descriptions[index].kind
            else {
                continue;
            };
            let (_, received) = self.received(group);
            if received.is_empty() {
                continue;
            }
            let (socket, lost) = udp::filled(*domain, local, received)
                .map_err(|error| failed(image, index, "what it had not read cannot be sent to it", &error))?;
            maker.filled.insert((process, index), socket);
            maker.installed.warnings.extend(lost.iter().map(|from| lost_from(image, index, from)));
        }
        Ok(())
    }

    /// Gives unix datagram sockets what they had not read, and then connects all: a connected one takes nothing from others.
    fn fill_datagrams<'m>(&'m self, maker: &mut Maker<'m>, made: &[Option<OwnedFd>]) -> Result<(), Refusal> {
        let reaches = std::mem::take(&mut maker.reaches);
        let sockets: Vec<(Place, usize, Made<'_>)> = (self.relations.groups.iter().zip(made))
            .filter_map(|(group, fd)| {
                let &(process, index) = group.first()?;
                let DescriptionKind::Socket { domain, socket_type: libc::SOCK_DGRAM, local, peer, .. } =
                    &self.images[process].descriptions[index].kind
                else {
                    return None;
                };
                let (from, received) =
                    if *domain == libc::AF_UNIX { self.received(group) } else { Default::default() };
                let reach = reaches.get(&(process, index));
                let made = Made { local, socket: fd.as_ref()?, reach, peer, received };
                Some(((process, index), from, made))
            })
            .collect();
        let all: Vec<Made<'_>> = sockets.iter().map(|(.., made)| *made).collect();
        for ((process, index), from, receiver) in &sockets {
            let (image, index) = (self.images[*process], *index);
            let there = enter(image, &image.descriptions[index].kind);
            let resent = Resent { common: self, made };
            let send = || datagrams::send(receiver, &all, |right| resent.right((*from, right)));
            let lost = there.and_then(|_there| send()).map_err(|error| {
                let reason = format!("what it had not read cannot be sent to it: {error}");
                super::refuse(image, index, reason, sockets::remedy(&error, "see `stasis doctor`"))
            })?;
            maker.installed.warnings.extend(lost.iter().map(|from| lost_from(image, index, from)));
        }
        for ((process, index), _, socket) in &sockets {
            (maker.process, maker.image) = (*process, self.images[*process]);
            let reach = datagrams::find(&all, socket.peer);
            let at = socket_files::reached_at(reach.and_then(|made| made.reach), socket.peer);
            sockets::point(maker, *index, socket.socket, socket.peer, &at);
        }
        Ok(())
    }

    /// Each process that has a socket may have what it had not read in its image; which one has.
    fn received(&self, group: &[Place]) -> (usize, &'a [Datagram]) {
        let mut all = group.iter().map(|&place| match &self.description(place).kind {
            DescriptionKind::Socket { received, .. } => (place.0, &received[..]),
            _ => (place.0, &[][..]),
        });
        all.find(|(_, received)| !received.is_empty()).unwrap_or_default()
    }

    /// A description that was made once: what takes its place, and whether it was made for this place.
    pub fn ready(&self, place: Place) -> Option<(Option<&OwnedFd>, bool)> {
        let group = *self.relations.group_of.get(&place)?;
        let queue = self.queues.get().and_then(|queues| queues.shared.get(&group));
        Some((queue.or(self.made.get(group)?.as_ref()), self.relations.first(place) == place))
    }

    pub fn description(&self, (process, index): Place) -> &'a Description {
        &self.images[process].descriptions[index]
    }
}

/// What was made once, by those whose messages it comes with.
pub struct Resent<'a, 'm> {
    common: &'m Common<'a>,
    made: &'m [Option<OwnedFd>],
}

impl Resent<'_, '_> {
    /// A descriptor of a description; `None` where the policy is to go without.
    pub fn right(&self, (process, description): (usize, u32)) -> Option<RawFd> {
        let group = self.common.relations.group_of.get(&(process, description as usize))?;
        self.made.get(*group)?.as_ref().map(AsRawFd::as_raw_fd)
    }
}

fn lost_from(image: &ProcessImage, index: usize, from: &[u8]) -> String {
    let name = super::name(image, index);
    format!("{name}: a datagram from {} that was not read is lost", sockets::display(from))
}

/// Goes to the working directory of a process where a path is relative to it.
fn enter(image: &ProcessImage, kind: &DescriptionKind) -> std::io::Result<Option<Elsewhere>> {
    let (DescriptionKind::Socket { local, .. } | DescriptionKind::SocketPair { local, .. }) = kind else {
        return Ok(None);
    };
    let is_relative = socket_files::path(local).is_some_and(|path| path.is_relative());
    is_relative.then(|| Elsewhere::enter(Path::new(&image.cwd))).transpose()
}

/// More than a tick of the kernel's clock (10 ms at most): to within one it tells which of several connections waits first to
/// be accepted.
const TICK: Duration = Duration::from_millis(12);
