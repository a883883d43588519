//! POSIX message queues, with what was in them. They are made where the processes are: in an IPC namespace of their own, if
//! there is one.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, ProcessImage},
};

use super::{
    failed,
    joint::{Common, Place},
    kernel::{self, done},
    refuse,
};

/// The queues of a computation.
#[derive(Default)]
pub struct Queues {
    /// Open for reading and writing, by their names in the images.
    all: BTreeMap<u64, OwnedFd>,
    /// Descriptions that several processes share, by group.
    pub shared: BTreeMap<usize, OwnedFd>,
}

/// A queue as an image has it.
struct Wanted<'a> {
    place: Place,
    name: &'a str,
    unlinked: bool,
    mode: u32,
    most: u64,
    size: u64,
    messages: &'a [(u32, Vec<u8>)],
}

/// Each queue once; of those who have it, one has its messages.
fn wanted<'a>(images: &[&'a ProcessImage]) -> BTreeMap<u64, Wanted<'a>> {
    let mut all: BTreeMap<u64, Wanted<'a>> = BTreeMap::new();
    for (process, image) in images.iter().enumerate() {
        for (index, description) in image.descriptions.iter().enumerate() {
            let DescriptionKind::MessageQueue { queue, name, unlinked, mode, most, size, messages } =
                &description.kind
            else {
                continue;
            };
            let (unlinked, mode, most, size) = (*unlinked, *mode, *most, *size);
            let place = (process, index);
            let new = Wanted { place, name, unlinked, mode, most, size, messages };
            let known = all.entry(*queue).or_insert(new);
            if known.messages.is_empty() {
                known.messages = messages;
            }
        }
    }
    all
}

/// Whether there are any.
pub fn are_in(images: &[&ProcessImage]) -> bool {
    !wanted(images).is_empty()
}

/// Makes them; `own`: in an IPC namespace in which nobody else is.
///
/// # Errors
/// A refusal that names the queue; whether it may be to be had in another place.
pub fn make(common: &Common<'_>, own: bool) -> Result<Queues, (Refusal, bool)> {
    let mut queues = Queues::default();
    for (queue, wanted) in wanted(&common.images) {
        let (process, index) = wanted.place;
        let image = common.images[process];
        let cannot = |what: &str, error: &io::Error| (failed(image, index, what, error), false);
        if own {
            // The limits of a new namespace are the default ones.
            raise("msg_max", wanted.most);
            raise("msgsize_max", wanted.size);
        }
        let made = open(&wanted).map_err(|error| cannot("it cannot be made (mq_open)", &error))?;
        let fd = made.ok_or_else(|| {
            let reason = "another message queue has its name, of another size";
            (refuse(image, index, reason, "remove that one (mq_unlink)"), true)
        })?;
        let uids = (image.credentials.uid[3], image.credentials.gid[3]);
        // SAFETY: no memory is touched. Only the privileged can say whose it is, and for others it is so already.
        let _ = unsafe { libc::fchown(fd.as_raw_fd(), uids.0, uids.1) };
        // SAFETY: no memory is touched.
        done(unsafe { libc::fchmod(fd.as_raw_fd(), wanted.mode & 0o7777) })
            .map_err(|error| cannot("its permissions cannot be set", &error))?;
        for (priority, text) in wanted.messages {
            // SAFETY: reads the text.
            done(unsafe { libc::mq_send(fd.as_raw_fd(), text.as_ptr().cast(), text.len(), *priority) })
                .map_err(|error| cannot("its messages cannot be put back", &error))?;
        }
        queues.all.insert(queue, fd);
    }
    for (group, (process, index)) in common.queue_groups() {
        if let Some(fd) = queues.open(common.images[process], index)? {
            queues.shared.insert(group, fd);
        }
    }
    Ok(queues)
}

impl Queues {
    /// A description of one.
    ///
    /// # Errors
    /// A refusal that names it.
    pub fn open(&self, image: &ProcessImage, index: usize) -> Result<Option<OwnedFd>, (Refusal, bool)> {
        let description = &image.descriptions[index];
        let DescriptionKind::MessageQueue { queue, .. } = &description.kind else { return Ok(None) };
        let Some(fd) = self.all.get(queue) else { return Ok(None) };
        let flags = description.flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK);
        kernel::reopen(fd, flags)
            .map(Some)
            .map_err(|error| (failed(image, index, "it cannot be opened", &error), false))
    }
}

/// Opens a queue that is empty; `None` where one of another kind has its name.
fn open(wanted: &Wanted<'_>) -> io::Result<Option<OwnedFd>> {
    // SAFETY: struct mq_attr is plain data.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    (attributes.mq_maxmsg, attributes.mq_msgsize) = (wanted.most as i64, wanted.size as i64);
    let own = format!("/stasis-{}", std::process::id());
    let name = CString::new(if wanted.unlinked { own.as_str() } else { wanted.name })
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: reads a string and the attributes.
    let made = unsafe {
        libc::mq_open(name.as_ptr(), flags | libc::O_CREAT | libc::O_EXCL, 0o600, &raw const attributes)
    };
    if made >= 0 {
        if wanted.unlinked {
            // SAFETY: reads a string.
            unsafe { libc::mq_unlink(name.as_ptr()) };
        }
        // SAFETY: the call made it.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(made) }));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EEXIST) {
        return Err(error);
    }
    // SAFETY: reads a string; the descriptor is new.
    let left = kernel::owned(unsafe { libc::mq_open(name.as_ptr(), flags) })?;
    // SAFETY: plain data, which the call fills in.
    let mut found: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    done(unsafe { libc::mq_getattr(left.as_raw_fd(), &raw mut found) })?;
    if (found.mq_maxmsg, found.mq_msgsize) != (attributes.mq_maxmsg, attributes.mq_msgsize) {
        return Ok(None);
    }
    let mut text = vec![0u8; wanted.size as usize];
    // SAFETY: writes at most as much as a message of this queue is long.
    while unsafe {
        libc::mq_receive(left.as_raw_fd(), text.as_mut_ptr().cast(), text.len(), std::ptr::null_mut()) >= 0
    } {}
    Ok(Some(left))
}

fn raise(limit: &str, wanted: u64) {
    let path = format!("/proc/sys/fs/mqueue/{limit}");
    let now = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    if now.is_some_and(|now: u64| now < wanted) {
        // Where that is not allowed, mq_open(3) says what is missing.
        let _ = fs::write(&path, wanted.to_string());
    }
}
