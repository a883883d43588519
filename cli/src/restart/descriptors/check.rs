//! Checks before anything is made: are the files there, and are they what they were?

use std::{
    collections::BTreeSet,
    fs::Metadata,
    os::unix::{fs::FileTypeExt, fs::MetadataExt, net::UnixStream},
    path::Path,
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, Fifo, FileIdentity, ObjectKind, ProcessImage, SocketFile},
};

use super::{Policy, joint, kernel::owned, put_back, refuse, socket_files, sockets, tcp};
use crate::args::{ChangedFile, MissingFile};

pub const PUT_IT_BACK: &str = "put it back, or restart with --on-missing-file=skip or =null";

const ACCEPT_IT: &str = "put the old one back, or restart with --on-changed-file=accept";

/// Where a path leads in the restarted process: what it sees of itself in /proc goes by its pid, which the child
/// has only when it exists.
pub fn path_now(image: &ProcessImage, path: &str) -> String {
    match path.strip_prefix(&format!("/proc/{}", image.ids.pid)) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("/proc/self{rest}"),
        _ => path.into(),
    }
}

/// Whether a file has a size and a time that mean anything: those of /proc and /sys have not.
pub fn is_verified(path: &str) -> bool {
    !path.starts_with("/proc/") && !path.starts_with("/sys/")
}

/// Files that any process of a computation has a part in.
#[derive(Default)]
pub struct Files<'a> {
    /// What was written to them after the checkpoint is cut off. By device and inode: one may have several names.
    written: BTreeSet<(u64, u64)>,
    /// Their content is in the checkpoint.
    put_back: BTreeSet<&'a str>,
    /// What /proc shows of processes of the computation is there when they are.
    pids: BTreeSet<i32>,
}

impl<'a> Files<'a> {
    pub fn of(images: impl Iterator<Item = &'a ProcessImage>) -> Self {
        let mut files = Self::default();
        for image in images {
            files.pids.insert(image.ids.pid);
            files.written.extend(image.descriptions.iter().filter_map(
                |description| match &description.kind {
                    DescriptionKind::Regular { file, .. } if writes(description) => {
                        Some((file.device, file.inode))
                    }
                    _ => None,
                },
            ));
            files.put_back.extend(image.objects.iter().filter_map(|object| match &object.kind {
                ObjectKind::File { file, .. } => Some(file.path.as_str()),
                _ => None,
            }));
        }
        files
    }

    /// Whether a file will be what it was whatever it is now.
    pub fn puts_back(&self, path: &str) -> bool {
        self.put_back.contains(path)
    }

    /// Whether a path leads to what /proc shows of a process of the computation.
    fn shows_process(&self, path: &str) -> bool {
        let pid = path.strip_prefix("/proc/").and_then(|rest| rest.split('/').next()?.parse().ok());
        pid.is_some_and(|pid| self.pids.contains(&pid))
    }
}

/// Every reason why the descriptors of an image cannot be made again here and now. Nothing is changed.
pub fn check(image: &ProcessImage, files: &Files<'_>, policy: &Policy) -> Vec<Refusal> {
    let mut refusals = consistent(image);
    for object in &image.objects {
        if let ObjectKind::File { file, memory } = &object.kind
            && let Err((reason, remedy)) = put_back::check(file, *memory, policy.changed)
        {
            let what = format!("pid {}, {}", image.ids.pid, file.path);
            refusals.push(crate::restart::refusal(what, reason, remedy));
        }
    }
    for (index, description) in image.descriptions.iter().enumerate() {
        let checked = match &description.kind {
            DescriptionKind::Regular { file, .. } if files.puts_back(&file.path) => Ok(()),
            DescriptionKind::Regular { file, .. } => {
                let written = files.written.contains(&(file.device, file.inode));
                present(files, policy, &file.path)
                    .and_then(|found| found.map_or(Ok(()), |found| regular(file, &found, written, policy)))
            }
            DescriptionKind::Directory { file } => {
                present(files, policy, &file.path).and_then(|found| match found {
                    Some(found) if !found.is_dir() => {
                        Err(("it is no directory any more".into(), PUT_IT_BACK))
                    }
                    _ => Ok(()),
                })
            }
            DescriptionKind::Path { file } => present(files, policy, &file.path).map(drop),
            DescriptionKind::CharacterDevice { path, rdev } => {
                present(files, policy, path).and_then(|found| match found {
                    Some(found) if !found.file_type().is_char_device() || found.rdev() != *rdev => {
                        Err(("another device has its name now".into(), PUT_IT_BACK))
                    }
                    _ => Ok(()),
                })
            }
            DescriptionKind::Pipe { fifo: Some(Fifo { path, deleted: false }), .. } => {
                present(files, policy, path).and_then(|found| match found {
                    Some(found) if !found.file_type().is_fifo() => {
                        Err(("it is no FIFO any more".into(), PUT_IT_BACK))
                    }
                    _ => Ok(()),
                })
            }
            DescriptionKind::Inotify { watches, .. } if policy.missing == MissingFile::Refuse => {
                let gone = watches.iter().find(|watch| Path::new(&watch.path).symlink_metadata().is_err());
                gone.map_or(Ok(()), |watch| {
                    Err((format!("{}, which it watches, is gone", watch.path), PUT_IT_BACK))
                })
            }
            DescriptionKind::Socket {
                domain,
                socket_type,
                protocol,
                local,
                peer,
                refused: None,
                file,
                options,
                ..
            } if !local.is_empty() && !tcp::is_connecting(*domain, *socket_type, peer) => {
                address(*domain, *socket_type, *protocol, local, file.as_ref(), options)
            }
            _ => Ok(()),
        };
        if let Err((reason, remedy)) = checked {
            refusals.push(refuse(image, index, reason, remedy));
        }
    }
    refusals
}

type Checked<T> = Result<T, (String, &'static str)>;

fn writes(description: &Description) -> bool {
    description.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY
}

/// What is at a path; `None` where nothing is and the policy allows that.
fn present(files: &Files<'_>, policy: &Policy, path: &str) -> Checked<Option<Metadata>> {
    if files.shows_process(path) {
        return Ok(None);
    }
    match Path::new(path).symlink_metadata() {
        Ok(found) => Ok(Some(found)),
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && policy.missing != MissingFile::Refuse =>
        {
            Ok(None)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(("it is gone".into(), PUT_IT_BACK)),
        Err(error) => Err((format!("it cannot be looked at: {error}"), "restart as a user that may")),
    }
}

fn regular(file: &FileIdentity, found: &Metadata, written: bool, policy: &Policy) -> Checked<()> {
    if !found.is_file() {
        return Err(("something of another type has its name now".into(), PUT_IT_BACK));
    }
    if policy.changed == ChangedFile::Accept || !is_verified(&file.path) {
        return Ok(());
    }
    let size = found.size();
    if size < file.size {
        return Err((format!("it has {size} bytes, and had {} at the checkpoint", file.size), ACCEPT_IT));
    }
    if written {
        return if found.ino() == file.inode {
            Ok(())
        } else {
            Err(("another file has its name now, which would be written over".into(), ACCEPT_IT))
        };
    }
    if size > file.size {
        return Err((format!("it has {size} bytes, and had {} at the checkpoint", file.size), ACCEPT_IT));
    }
    let mtime_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    if mtime_ns == file.mtime_ns {
        Ok(())
    } else {
        Err(("it was modified since the checkpoint".into(), ACCEPT_IT))
    }
}

/// Whether an address can be bound, by doing so for a moment. A unix socket's file is replaced unless somebody
/// listens behind it.
fn address(
    domain: i32,
    socket_type: i32,
    protocol: i32,
    local: &[u8],
    file: Option<&SocketFile>,
    options: &[stasis_protocol::image::SocketOption],
) -> Checked<()> {
    const REMEDY: &str = "end the process that uses the address (ss -nlp tells which)";
    if socket_files::path(local).is_some() {
        let Some(file) = file else { return Ok(()) };
        let path = Path::new(&file.path);
        if path.parent().is_some_and(|directory| directory.symlink_metadata().is_err()) {
            return Err((format!("the directory of {} is gone", file.path), "make it again"));
        }
        return match path.symlink_metadata() {
            Ok(found) if !found.file_type().is_socket() => {
                Err(("something that is no socket has its name now".into(), "move it away"))
            }
            Ok(_) if socket_type == libc::SOCK_STREAM && UnixStream::connect(path).is_ok() => {
                Err(("another process listens there".into(), REMEDY))
            }
            _ => Ok(()),
        };
    }
    // SAFETY: no memory is touched.
    let socket = owned(unsafe { libc::socket(domain, socket_type | libc::SOCK_CLOEXEC, protocol) })
        .map_err(|error| (format!("such a socket cannot be made here: {error}"), "see `stasis doctor`"))?;
    let _ = sockets::set_options(&socket, options);
    if socket_type == libc::SOCK_STREAM {
        let _ = tcp::reuse(&socket);
    }
    socket_files::bind(&socket, local)
        .map_err(|error| (format!("its address cannot be bound: {error}"), REMEDY))
}

/// What `install` relies on: an image is hostile input.
fn consistent(image: &ProcessImage) -> Vec<Refusal> {
    let mut seen = BTreeSet::new();
    let mut refusals = Vec::new();
    let is_known = |description: u32| (description as usize) < image.descriptions.len();
    for descriptor in &image.descriptors {
        let known = is_known(descriptor.description);
        if descriptor.fd < 0 || !known || !seen.insert(descriptor.fd) {
            refusals.push(crate::restart::refusal(
                format!("pid {}, fd {}", image.ids.pid, descriptor.fd),
                "the image contradicts itself about it",
                "run `stasis verify`",
            ));
        }
    }
    let mut rights =
        image.descriptions.iter().flat_map(|description| joint::rights(&description.kind)).flatten();
    if let Some(unknown) = rights.find(|&&right| !is_known(right)) {
        refusals.push(crate::restart::refusal(
            format!("pid {}, description {unknown}", image.ids.pid),
            "the image contradicts itself about what is on its way through a socket",
            "run `stasis verify`",
        ));
    }
    refusals
}
