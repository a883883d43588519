//! Descriptors on their way through unix sockets (unix(7), SCM_RIGHTS): they come with what is peeked at, as duplicates in
//! the checkpoint thread's own table, and are described like those of the program's.

use alloc::{collections::BTreeMap, vec::Vec};
use core::cell::RefCell;

use stasis_protocol::{
    coordinator::Refusal,
    image::{Datagram, Description, DescriptionKind, IN_FLIGHT, Sender},
};
use stasis_sys::{file::Fd, process, socket};

use super::{
    Directories, Duplicate, Open, Share, datagrams, refusal,
    unread::{self, Unread},
};
use crate::procfs;

/// The descriptors that come with a message.
pub type Rights = Vec<Duplicate>;

/// Messages, whom they are of, and the places among all that is open of what comes with them.
pub type Messages = (Vec<Vec<u8>>, Vec<Option<Sender>>, Vec<Vec<u32>>);

enum Queue {
    Messages(Messages),
    Datagrams(Vec<Datagram>),
}

/// What sockets have not read with which descriptors come.
#[derive(Default)]
pub struct InFlight {
    /// By the descriptors of those sockets; each is taken once.
    queues: RefCell<BTreeMap<Fd, Queue>>,
    rights: Rights,
}

/// Whether descriptors are on their way to a socket. /proc tells since Linux 5.7.
pub fn is_receiver(open: &Open) -> bool {
    open.is_socket() && open.field("scm_fds:").and_then(procfs::decimal).is_some_and(|count| count > 0)
}

impl InFlight {
    /// Looks at the sockets among `opens` whose queues this process copies. `duplicate` makes a descriptor for the checkpoint
    /// thread.
    pub fn look(
        opens: &[Open],
        share: Share<'_>,
        duplicate: impl Fn(&Open) -> Result<Duplicate, Refusal>,
    ) -> Result<Self, Refusal> {
        let (mut queues, mut all) = (BTreeMap::new(), Rights::new());
        let mut number = |rights: Vec<Rights>| -> Vec<Vec<u32>> {
            let mut place = |right| {
                all.push(right);
                (opens.len() + all.len() - 1) as u32
            };
            rights.into_iter().map(|rights| rights.into_iter().map(&mut place).collect()).collect()
        };
        for open in opens.iter().filter(|open| is_receiver(open) && share.copies_queue(open)) {
            let socket = duplicate(open)?;
            let kind = socket::number_option(socket.0, libc::SOL_SOCKET, libc::SO_TYPE)
                .map_err(|error| open.failed("it does not answer getsockopt", error))?;
            let queue = if kind == libc::SOCK_DGRAM {
                let (mut datagrams, rights) = datagrams::received(open, socket.0)?;
                for (datagram, rights) in datagrams.iter_mut().zip(number(rights)) {
                    datagram.rights = rights;
                }
                Queue::Datagrams(datagrams)
            } else {
                let Unread { messages, senders, rights } = unread::received(open, kind, socket.0)?;
                Queue::Messages((messages, senders, number(rights)))
            };
            queues.insert(open.fd, queue);
        }
        Ok(Self { queues: queues.into(), rights: all })
    }

    /// The descriptors, as /proc shows them.
    pub fn opens(&self) -> Result<Vec<Open>, Refusal> {
        if self.rights.is_empty() {
            return Ok(Vec::new());
        }
        let tid = process::gettid();
        let unknown = |error| {
            let reason = alloc::format!("/proc does not describe it: {error}");
            refusal(IN_FLIGHT, "?", reason, "take another checkpoint; see `stasis doctor`")
        };
        let directories = Directories::open(tid).map_err(unknown)?;
        let look = |right: &Duplicate| Ok(Open { fd: IN_FLIGHT + right.0, ..directories.look_at(right.0)? });
        self.rights.iter().map(look).collect::<Result<_, _>>().map_err(unknown)
    }

    /// What a connected socket has not read, if descriptors come with it.
    pub fn messages(&self, open: &Open) -> Option<Messages> {
        Some(match self.queues.borrow_mut().remove(&open.fd)? {
            Queue::Messages(messages) => messages,
            Queue::Datagrams(datagrams) => {
                let mut all = Messages::default();
                for Datagram { sender, bytes, rights, .. } in datagrams {
                    all.0.push(bytes);
                    all.1.push(sender);
                    all.2.push(rights);
                }
                all
            }
        })
    }

    /// The same for a socket that takes datagrams from anybody.
    pub fn datagrams(&self, open: &Open) -> Option<Vec<Datagram>> {
        match self.queues.borrow_mut().remove(&open.fd)? {
            Queue::Datagrams(datagrams) => Some(datagrams),
            Queue::Messages(_) => None,
        }
    }

    /// What keeps the descriptors open.
    pub fn into_held(self) -> Rights {
        self.rights
    }
}

/// Replaces places among all that is open by the descriptions that are there (`numbers`).
pub fn number(descriptions: &mut [Description], numbers: &[u32]) {
    for description in descriptions {
        let rights: Vec<&mut Vec<u32>> = match &mut description.kind {
            DescriptionKind::SocketPair { rights, .. } => rights.iter_mut().collect(),
            DescriptionKind::Socket { received, .. } => {
                received.iter_mut().map(|datagram| &mut datagram.rights).collect()
            }
            _ => continue,
        };
        for place in rights.into_iter().flatten() {
            *place = numbers[*place as usize];
        }
    }
}

/// Refuses what can be made again only where it has a number.
pub fn check(open: &Open, description: &Description) -> Result<(), Refusal> {
    let what = match &description.kind {
        DescriptionKind::Timer { .. } => "it is a timerfd",
        DescriptionKind::Signal { .. } => "it is a signalfd",
        DescriptionKind::Epoll { .. } => "it is an epoll",
        DescriptionKind::Inotify { .. } => "it is an inotify",
        DescriptionKind::Process { .. } => "it is a pidfd",
        DescriptionKind::MessageQueue { .. } => "it is a message queue",
        DescriptionKind::Regular { .. } | DescriptionKind::Directory { .. }
            if open.link.starts_with("/proc/") =>
        {
            "it is a file of /proc"
        }
        _ if description.flock.is_some()
            || description.lease.is_some()
            || !description.ofd_locks.is_empty() =>
        {
            "it has locks"
        }
        _ if description.owner.is_some() || description.signal != 0 => "it signals somebody (F_SETOWN)",
        _ => return Ok(()),
    };
    open.refuse(
        &alloc::format!("{what}, and nobody has it but who will receive it (SCM_RIGHTS)"),
        "take the checkpoint when the program has received it",
    )
}
