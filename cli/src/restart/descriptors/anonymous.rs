//! eventfd, timerfd, signalfd, epoll and inotify.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, EpollTarget, InotifyWatch, ProcessImage},
};

use super::{
    Installed, failed,
    kernel::{self, done, owned},
    name, numbers_of, refuse,
};
use crate::{
    args::MissingFile,
    restart::plan::{attempt, call, pointing},
};

/// Makes one; a timer is armed, an interest list filled later.
pub fn make(kind: &DescriptionKind) -> io::Result<OwnedFd> {
    match *kind {
        DescriptionKind::Event { count, semaphore } => {
            let flags = if semaphore { libc::EFD_SEMAPHORE } else { 0 };
            // SAFETY: no memory is touched.
            let fd = owned(unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
            if count != 0 {
                // EINVAL for the one value that a counter cannot have (eventfd(2)).
                kernel::write_all(&fd, &count.to_ne_bytes())?;
            }
            Ok(fd)
        }
        DescriptionKind::Timer { clock, .. } => {
            // SAFETY: no memory is touched.
            owned(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) })
        }
        DescriptionKind::Signal { mask } => {
            // SAFETY: signalfd4(2) reads a mask of 8 bytes.
            let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, libc::SFD_CLOEXEC) };
            owned(fd as i32)
        }
        // SAFETY: no memory is touched.
        DescriptionKind::Epoll { .. } => owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Arms a timer with the time it had left, or for its date, and gives it the expirations not read yet.
pub fn arm(kind: &DescriptionKind, fd: RawFd, installed: &mut Installed) {
    let &DescriptionKind::Timer { settime_flags, value_ns, deadline_ns, interval_ns, ticks, .. } = kind
    else {
        return;
    };
    let absolute = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
    let (flags, value_ns) =
        if deadline_ns != 0 { (settime_flags & absolute, deadline_ns) } else { (0, value_ns) };
    let words = [interval_ns, value_ns].map(|ns| [ns / 1_000_000_000, ns % 1_000_000_000]);
    let setting: Vec<u8> = words.as_flattened().iter().flat_map(|word| word.to_ne_bytes()).collect();
    let offset = installed.keep(&setting);
    let arguments = [fd as u64, flags as u64, 0, 0];
    installed.late.push(pointing(call(libc::SYS_timerfd_settime, &arguments), 2, offset));
    if ticks != 0 {
        // TFD_IOC_SET_TICKS, of kernels with CONFIG_CHECKPOINT_RESTORE (fs/timerfd.c).
        const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
        let offset = installed.keep(&ticks.to_ne_bytes());
        let arguments = [fd as u64, TFD_IOC_SET_TICKS, 0];
        installed.late.push(pointing(attempt(libc::SYS_ioctl, &arguments), 2, offset));
    }
}

/// EPOLLONESHOT, EPOLLET, EPOLLWAKEUP and EPOLLEXCLUSIVE: a target with nothing else is disarmed (fs/eventpoll.c,
/// EP_PRIVATE_BITS).
const PRIVATE: u32 = (libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE) as u32;

/// Whether a process is the first of those that have a description.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct First(pub bool);

/// Fills an interest list, when all targets are at their numbers. `shared`: other processes have it as well, and add what
/// they have of it.
pub fn watch(
    image: &ProcessImage,
    index: usize,
    epoll: RawFd,
    targets: &[EpollTarget],
    shared: Option<First>,
    installed: &mut Installed,
) -> Result<(), Refusal> {
    let is_disarmed = |target: &EpollTarget| {
        target.events & !PRIVATE == 0 && target.events & libc::EPOLLONESHOT as u32 != 0
    };
    // Disarmed ones first: see `add_disarmed`.
    let (first, then): (Vec<_>, Vec<_>) = targets.iter().partition(|target| is_disarmed(target));
    for target in first.into_iter().chain(then) {
        let Some(description) = target.description.map(|description| description as usize) else { continue };
        let is_at_home = numbers_of(image, description).any(|fd| fd == target.fd);
        let mut event = libc::epoll_event { events: target.events, u64: target.data };
        if is_signalfd(image, description) {
            if shared == Some(First(false)) {
                continue;
            }
            if !is_at_home {
                let what = name(image, index);
                let left_out =
                    format!("{what} does not watch what was fd {}, a signalfd, any more", target.fd);
                installed.warnings.push(left_out);
                continue;
            }
            // It tells of the signals of the process that adds it (signalfd(2), fork and epoll semantics).
            // SAFETY: struct epoll_event is packed plain data.
            let bytes: [u8; size_of::<libc::epoll_event>()] = unsafe { std::mem::transmute(event) };
            let offset = installed.keep(&bytes);
            let arguments = [epoll as u64, libc::EPOLL_CTL_ADD as u64, target.fd as u64, 0];
            installed.late.push(pointing(call(libc::SYS_epoll_ctl, &arguments), 3, offset));
            continue;
        }
        let lent = match numbers_of(image, description).next() {
            Some(duplicate) if !is_at_home => Some(Lent::take(target.fd, duplicate)),
            _ => None,
        };
        let add = |event: &mut libc::epoll_event| control(epoll, libc::EPOLL_CTL_ADD, target.fd, event);
        let added = match lent.transpose() {
            Err(error) => Err(error),
            Ok(_) if is_disarmed(target) => add_disarmed(epoll, target),
            Ok(_) => add(&mut event),
        };
        match added {
            Err(error) if shared.is_some() && error.raw_os_error() == Some(libc::EEXIST) => {}
            added => added.map_err(|error| {
                failed(image, index, &format!("fd {} cannot be added to it", target.fd), &error)
            })?,
        }
    }
    Ok(())
}

/// The numbers of targets that nobody who has the epoll has any more: a process without it does.
pub fn unknown(images: &[&ProcessImage], targets: &[EpollTarget]) -> Vec<i32> {
    let is_known = |target: &EpollTarget| {
        let is_it = |other: &EpollTarget| {
            other.description.is_some()
                && (other.fd, other.events, other.data) == (target.fd, target.events, target.data)
        };
        images.iter().flat_map(|image| &image.descriptions).any(|description| match &description.kind {
            DescriptionKind::Epoll { targets } => targets.iter().any(is_it),
            _ => false,
        })
    };
    let gone = targets.iter().filter(|target| target.description.is_none() && !is_known(target));
    gone.map(|target| target.fd).collect()
}

/// A number that stands for something else for a moment: an interest list knows its targets by numbers that may be closed since.
struct Lent {
    number: RawFd,
    /// What was there.
    before: Option<OwnedFd>,
}

impl Lent {
    fn take(number: RawFd, duplicate: RawFd) -> io::Result<Self> {
        // SAFETY: fcntl(2) with numbers.
        let before = owned(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }).ok();
        let lent = Self { number, before };
        // SAFETY: dup2(2) with numbers; what was there is kept.
        done(unsafe { libc::dup2(duplicate, number) })?;
        Ok(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        match &self.before {
            // SAFETY: dup2(2) with numbers: the one that was lent is as it was, and stays open across exec.
            Some(before) => unsafe { libc::dup2(before.as_raw_fd(), self.number) },
            // SAFETY: opened in `take`, if at all.
            None => unsafe { libc::close(self.number) },
        };
    }
}

fn control(epoll: RawFd, operation: i32, fd: RawFd, event: &mut libc::epoll_event) -> io::Result<()> {
    // SAFETY: reads one struct epoll_event.
    done(unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut *event) }).map(drop)
}

/// Adds a target whose one shot was fired. EPOLL_CTL_ADD always adds EPOLLERR and EPOLLHUP; only firing takes them
/// away. So it is fired where it is ready for anything, while the list holds no armed target that looking
/// would fire.
fn add_disarmed(epoll: RawFd, target: &EpollTarget) -> io::Result<()> {
    let anything = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLONESHOT) as u32;
    let mut event = libc::epoll_event { events: anything, u64: target.data };
    control(epoll, libc::EPOLL_CTL_ADD, target.fd, &mut event)?;
    let mut fired = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: writes at most one event.
    let count = unsafe { libc::epoll_wait(epoll, &raw mut fired, 1, 0) };
    if count > 0 {
        return Ok(());
    }
    let mut event = libc::epoll_event { events: target.events, u64: target.data };
    control(epoll, libc::EPOLL_CTL_MOD, target.fd, &mut event)
}

fn is_signalfd(image: &ProcessImage, description: usize) -> bool {
    let description = image.descriptions.get(description);
    description.is_some_and(|description| matches!(description.kind, DescriptionKind::Signal { .. }))
}

/// More watches than this in a row that only exist to be removed again are not made: an image is hostile input.
const MOST_SKIPPED: i32 = 1 << 20;

/// Makes an inotify instance with the watch descriptors that the program knows; without those of files that are gone, where the
/// policy is to go without.
pub fn make_inotify(
    image: &ProcessImage,
    index: usize,
    watches: &[InotifyWatch],
    missing: MissingFile,
) -> Result<OwnedFd, Refusal> {
    let error = |error: io::Error| failed(image, index, "it cannot be made again", &error);
    // SAFETY: no memory is touched.
    let fd = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }).map_err(error)?;
    let mut sorted: Vec<&InotifyWatch> = watches.iter().collect();
    sorted.sort_unstable_by_key(|watch| watch.wd);
    if sorted.last().is_some_and(|last| last.wd > MOST_SKIPPED) {
        return Err(refuse(
            image,
            index,
            "its watch descriptors are too high to be made again",
            "watch fewer files",
        ));
    }
    let is_there = |watch: &&InotifyWatch| {
        missing == MissingFile::Refuse || Path::new(&watch.path).symlink_metadata().is_ok()
    };
    for watch in sorted.into_iter().filter(is_there) {
        // Watch descriptors are handed out in ascending order (fs/notify/inotify/inotify_user.c, idr_alloc_cyclic).
        loop {
            let wd = add(&fd, watch).map_err(|error| {
                failed(image, index, &format!("{} cannot be watched", watch.path), &error)
            })?;
            if wd == watch.wd {
                break;
            }
            if wd > watch.wd {
                return Err(refuse(
                    image,
                    index,
                    format!("{} cannot be watched under its number {}", watch.path, watch.wd),
                    "two of its paths are one file now: make them as they were",
                ));
            }
            // SAFETY: no memory is touched.
            done(unsafe { libc::inotify_rm_watch(fd.as_raw_fd(), wd) }).map_err(error)?;
        }
    }
    drain(&fd);
    Ok(fd)
}

/// Puts an event into a queue that stands for those that the library keeps (preload/src/unread_events.rs): of a watch that is
/// removed, of what nobody else watches.
///
/// # Errors
/// inotify_add_watch(2)'s.
pub fn stand_in(queue: &OwnedFd) -> io::Result<()> {
    let mask = libc::IN_ATTRIB | libc::IN_MASK_CREATE;
    // SAFETY: reads a string.
    let watch =
        done(unsafe { libc::inotify_add_watch(queue.as_raw_fd(), c"/proc/self/comm".as_ptr(), mask) })?;
    // SAFETY: no memory is touched.
    done(unsafe { libc::inotify_rm_watch(queue.as_raw_fd(), watch) }).map(drop)
}

fn add(fd: &OwnedFd, watch: &InotifyWatch) -> io::Result<i32> {
    let path = CString::new(watch.path.as_str()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let is_link = std::fs::symlink_metadata(&watch.path).is_ok_and(|found| found.is_symlink());
    let mask = if is_link { watch.mask | libc::IN_DONT_FOLLOW } else { watch.mask };
    // SAFETY: reads a string.
    done(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })
}

/// Reads the events that removing watches made (IN_IGNORED).
fn drain(fd: &OwnedFd) {
    let mut events = [0u8; 4096];
    // SAFETY: writes at most the buffer's length; the descriptor does not block.
    while unsafe { libc::read(fd.as_raw_fd(), events.as_mut_ptr().cast(), events.len()) } > 0 {}
}
