//! A client of the store server: blocking, one request at a time but for [`Client::send_pages`].
//!
//! Not here: the checkpoint threads, which cannot use std and speak the protocol themselves.

mod starting;
mod stop;
mod waiting;

use std::{
    fs::DirBuilder,
    io,
    ops::Range,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{sys::socket::MsgFlags, unistd::geteuid};
use stasis_protocol::{
    VERSION,
    store::{
        CheckpointDraft, CheckpointRecord, Collected, Difference, DiskUsage, DumpStats, Exported, Hash,
        Imported, PageRange, Reply, Request, Space, StagedRun, Usage, WorkingSet,
    },
};

use starting::Starting;

pub use crate::stored::{ListedPages, PageNames, StoredProcess};
use crate::{
    location::{announced_socket, socket_path},
    transport::{self, TransportError},
};

/// The file name of the server's program, which lies beside the program that starts it.
const SERVER: &str = "stasis-store";

/// How often a server is started for one client.
const ATTEMPTS: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no store server runs for {}", .0.display())]
    NotRunning(PathBuf),
    #[error("the store server of {} could not be started: {reason}", directory.display())]
    NotStarted { directory: PathBuf, reason: String },
    #[error("{} cannot be used as a store: {error}", path.display())]
    Directory { path: PathBuf, error: io::Error },
    /// What the server says, in its words.
    #[error("{0}")]
    Refused(String),
    #[error("the store server went away: {0}")]
    Lost(TransportError),
    #[error("the store server gave an answer to something else: {0}")]
    Unexpected(String),
}

/// Not its source: it is in the text already.
impl From<TransportError> for ClientError {
    fn from(error: TransportError) -> Self {
        Self::Lost(error)
    }
}

/// A connection to a store server.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    socket: PathBuf,
    server_pid: u32,
}

/// The connection. As long as it is open in any process, what [`Client::read_process`] has told of stays where it is.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What [`Client::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    pub pages: u64,
    /// How many pages and nodes are damaged.
    pub damaged: u64,
    /// A line for each, as far as there is room.
    pub damage: Vec<String>,
    /// The same in short.
    pub summary: Vec<String>,
}

impl Client {
    /// Connects to the server of the store in `directory`, if one runs.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`]; or the server is another user's or another version's.
    pub fn connect(directory: &Path) -> Result<Self, ClientError> {
        let computed = socket_path(directory).ok();
        let sockets = announced_socket(directory).into_iter().chain(computed);
        for socket in sockets {
            match Self::connect_to(&socket) {
                Err(ClientError::NotRunning(_)) => {}
                other => return other,
            }
        }
        Err(ClientError::NotRunning(directory.to_owned()))
    }

    /// Connects to the server that listens on `socket`.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_to(socket: &Path) -> Result<Self, ClientError> {
        let not_running = |_| ClientError::NotRunning(socket.to_owned());
        let stream = UnixStream::connect(socket).map_err(not_running)?;
        let peer = transport::peer(&stream).map_err(TransportError::Io)?;
        if peer.uid() != geteuid().as_raw() && peer.uid() != 0 && !geteuid().is_root() {
            return Err(ClientError::Refused(format!(
                "{} is served by uid {}, not by you (uid {})",
                socket.display(),
                peer.uid(),
                geteuid()
            )));
        }
        let mut client = Self { stream, socket: socket.to_owned(), server_pid: 0 };
        // A server that is just ending takes the connection and closes it.
        match client.send(&Request::Hello { version: VERSION }).and_then(|()| client.receive()) {
            Ok((Reply::Welcome { server_pid, .. }, _)) => client.server_pid = server_pid,
            Ok((other, _)) => return Err(unexpected(&other)),
            Err(ClientError::Lost(_)) => return Err(ClientError::NotRunning(socket.to_owned())),
            Err(error) => return Err(error),
        }
        Ok(client)
    }

    /// Connects to the server of the store in `directory`; makes the directory, and starts the server
    /// that lies beside this program, where they are missing.
    ///
    /// # Errors
    /// The directory cannot be made, the server cannot be started; as [`Client::connect`].
    pub fn connect_or_start(directory: &Path) -> Result<Self, ClientError> {
        let beside = std::env::current_exe().map(|exe| exe.with_file_name(SERVER));
        let server = beside.map_err(|error| ClientError::NotStarted {
            directory: directory.to_owned(),
            reason: format!("this program does not know where it lies: {error}"),
        })?;
        Self::connect_or_start_with(directory, Command::new(server))
    }

    /// As [`Client::connect_or_start`], with a command for the server to which the directory is added.
    ///
    /// # Errors
    /// As [`Client::connect_or_start`].
    pub fn connect_or_start_with(directory: &Path, mut server: Command) -> Result<Self, ClientError> {
        server
            .arg(directory)
            // It must not run under the preload library.
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // A server that is idle may go away between its start, or a look at it, and the connection.
        for _ in 1..ATTEMPTS {
            match Self::start_once(directory, &mut server) {
                Err(ClientError::NotRunning(_)) => {}
                other => return other,
            }
        }
        Self::start_once(directory, &mut server)
    }

    fn start_once(directory: &Path, server: &mut Command) -> Result<Self, ClientError> {
        match Self::connect(directory) {
            Err(ClientError::NotRunning(_)) => {}
            other => return other,
        }
        let unusable = |error| ClientError::Directory { path: directory.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(unusable)?;
        // Of several that come at once, one starts the server; the others find it when they get here.
        let _starting = Starting::take(directory).map_err(unusable)?;
        match Self::connect(directory) {
            Err(ClientError::NotRunning(_)) => {}
            other => return other,
        }
        let not_started =
            |reason: String| ClientError::NotStarted { directory: directory.to_owned(), reason };
        // The command returns when the server is ready.
        let output = server
            .output()
            .map_err(|error| not_started(format!("{}: {error}", server.get_program().display())))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(not_started(match said.trim() {
                "" => output.status.to_string(),
                said => said.trim_start_matches("stasis-store: ").to_owned(),
            }));
        }
        Self::connect(directory)
    }

    /// The path of the socket that this client is connected to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    #[must_use]
    pub fn server_pid(&self) -> u32 {
        self.server_pid
    }

    /// Starts a dump; returns whether it has a base. Problems are told by the next request that is answered.
    ///
    /// # Errors
    /// The connection failed.
    pub fn begin_dump(&mut self, token: u64, pid: u32, base: Option<Hash>) -> Result<bool, ClientError> {
        self.send(&Request::BeginDump { token, pid, base })?;
        if base.is_none() {
            return Ok(false);
        }
        match self.receive()? {
            (Reply::Begun { base }, _) => Ok(base),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Hands over the staging buffer: a memfd of at least `len` bytes, sealed with F_SEAL_SHRINK.
    ///
    /// # Errors
    /// The connection failed.
    pub fn staging(&mut self, memfd: BorrowedFd<'_>, len: u64) -> Result<(), ClientError> {
        Ok(transport::send(&self.stream, &Request::Staging { len }, &[memfd], MsgFlags::empty())?)
    }

    /// Sends pages that lie in the staging buffer. Up to 64 such messages may be under way; each needs
    /// its [`Client::released`].
    ///
    /// # Errors
    /// The connection failed.
    pub fn send_pages(&mut self, runs: Vec<StagedRun>) -> Result<(), ClientError> {
        self.send(&Request::Pages { runs })
    }

    /// Waits until the buffer of the first unanswered [`Client::send_pages`] may be written again.
    ///
    /// # Errors
    /// The pages could not be stored.
    pub fn released(&mut self) -> Result<(), ClientError> {
        match self.receive()? {
            (Reply::Released, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Makes holes of pages of the base.
    ///
    /// # Errors
    /// The connection failed.
    pub fn forget(&mut self, space: Space, first_page: u64, pages: u64) -> Result<(), ClientError> {
        self.send(&Request::Forget { ranges: vec![PageRange { space, first_page, pages }] })
    }

    /// Ends the dump; its pages are durable when this returns.
    ///
    /// # Errors
    /// Anything that went wrong since [`Client::begin_dump`].
    pub fn end_dump(&mut self, record: Vec<u8>) -> Result<(Hash, DumpStats), ClientError> {
        match self.ask(&Request::EndDump { record })? {
            Reply::Dumped { manifest, stats } => Ok((manifest, stats)),
            other => Err(unexpected(&other)),
        }
    }

    /// Forgets the dump of this connection.
    ///
    /// # Errors
    /// The connection failed.
    pub fn abort_dump(&mut self) -> Result<(), ClientError> {
        self.send(&Request::AbortDump)
    }

    /// Makes a checkpoint of the dumps made under `token`; it is durable when this returns.
    ///
    /// # Errors
    /// A process was not dumped, or the store could not write.
    pub fn commit(&mut self, token: u64, draft: CheckpointDraft) -> Result<CheckpointRecord, ClientError> {
        match self.ask(&Request::Commit { token, draft })? {
            Reply::Committed(record) => Ok(record),
            other => Err(unexpected(&other)),
        }
    }

    /// Forgets the dumps made under `token`.
    ///
    /// # Errors
    /// The connection failed.
    pub fn discard(&mut self, token: u64) -> Result<(), ClientError> {
        self.done(&Request::Discard { token })
    }

    /// All checkpoints, oldest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&mut self) -> Result<Vec<CheckpointRecord>, ClientError> {
        match self.ask(&Request::List)? {
            Reply::Checkpoints(records) => Ok(records),
            other => Err(unexpected(&other)),
        }
    }

    /// The checkpoint that a reference names; see [`Request::Resolve`].
    ///
    /// # Errors
    /// It names none, or several.
    pub fn resolve(&mut self, reference: &str) -> Result<CheckpointRecord, ClientError> {
        match self.ask(&Request::Resolve { reference: reference.to_owned() })? {
            Reply::Checkpoint(record) => Ok(record),
            other => Err(unexpected(&other)),
        }
    }

    /// What is needed to restore the process called `manifest`. Memory that `may_wait`, in pages and in address order, is left to
    /// [`Self::read_pages`] where there is much in it.
    ///
    /// # Errors
    /// It is not in the store, or its manifest is damaged.
    pub fn read_process(
        &mut self,
        manifest: &Hash,
        may_wait: &[Range<u64>],
    ) -> Result<StoredProcess, ClientError> {
        let may_wait = may_wait.iter().map(|pages| (pages.start, pages.end)).collect();
        self.send(&Request::ReadProcess { manifest: *manifest, may_wait })?;
        match self.receive()? {
            (Reply::Process { key, directory, extents, pages, later, later_pages }, descriptors) => {
                let list = ListedPages { memfd: beside(descriptors)?, extents, pages };
                let later = later.into_iter().map(|(first, end)| first..end).collect();
                Ok(StoredProcess { key, directory: directory.into(), list, later, later_pages })
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Lists memory of the process called `manifest`, from one page to the one behind the last.
    ///
    /// # Errors
    /// As [`Self::read_process`].
    pub fn read_pages(&mut self, manifest: &Hash, pages: Range<u64>) -> Result<ListedPages, ClientError> {
        let (first_page, end_page) = (pages.start, pages.end);
        self.send(&Request::ReadPages { manifest: *manifest, first_page, end_page })?;
        match self.receive()? {
            (Reply::Pages { extents, pages }, descriptors) => {
                Ok(ListedPages { memfd: beside(descriptors)?, extents, pages })
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Reads every page of a checkpoint (`None`: of all) against its hash.
    ///
    /// # Errors
    /// There is no such checkpoint, or the index cannot be read.
    pub fn verify(&mut self, reference: Option<&str>) -> Result<Verification, ClientError> {
        match self.ask(&Request::Verify { id: reference.map(str::to_owned) })? {
            Reply::Verified { pages, damaged, damage, summary } => {
                Ok(Verification { pages, damaged, damage, summary })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// # Errors
    /// The store cannot be read.
    pub fn usage(&mut self) -> Result<Usage, ClientError> {
        match self.ask(&Request::Usage)? {
            Reply::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    /// A connection for a process of another user, which can do nothing but dump one process under `token`. It ends
    /// at the latest with this client.
    ///
    /// # Errors
    /// The server has no room for it.
    pub fn restrict(&mut self, token: u64) -> Result<OwnedFd, ClientError> {
        self.send(&Request::Restrict { token })?;
        match self.receive()? {
            (Reply::Restricted, mut descriptors) => descriptors
                .pop()
                .ok_or_else(|| ClientError::Unexpected("a restricted connection that did not come".into())),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Keeps what a process touched first after a restart from `checkpoint`.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn keep_working_set(
        &mut self,
        checkpoint: &str,
        pid: u32,
        set: WorkingSet,
    ) -> Result<(), ClientError> {
        self.done(&Request::KeepWorkingSet { checkpoint: checkpoint.to_owned(), pid, set })
    }

    /// What a process touched first after restarts from `checkpoint` or what led to it; empty: nothing is known.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn working_set(&mut self, checkpoint: &str, pid: u32) -> Result<WorkingSet, ClientError> {
        match self.ask(&Request::ReadWorkingSet { checkpoint: checkpoint.to_owned(), pid })? {
            Reply::WorkingSet(set) => Ok(set),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes the checkpoints with these ids, all at once; returns those that there were.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn prune(&mut self, ids: Vec<String>) -> Result<Vec<CheckpointRecord>, ClientError> {
        match self.ask(&Request::Prune { ids })? {
            Reply::Pruned(records) => Ok(records),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives back the room of what no checkpoint needs; with `compress`, also compresses what is not and is worth it.
    ///
    /// # Errors
    /// A checkpoint is damaged, or the store cannot be written; nothing that is needed is touched.
    pub fn collect(&mut self, compress: bool) -> Result<Collected, ClientError> {
        match self.ask(&Request::Collect { compress })? {
            Reply::Collected(collected) => Ok(collected),
            other => Err(unexpected(&other)),
        }
    }

    /// How much room each checkpoint takes.
    ///
    /// # Errors
    /// A manifest is damaged, or the store cannot be read.
    pub fn disk_usage(&mut self) -> Result<DiskUsage, ClientError> {
        match self.ask(&Request::DiskUsage)? {
            Reply::DiskUsage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    /// What differs between two dumped processes, by their manifests.
    ///
    /// # Errors
    /// One is not in the store, or is damaged.
    pub fn diff(&mut self, from: &Hash, to: &Hash) -> Result<Vec<Difference>, ClientError> {
        match self.ask(&Request::Diff { from: *from, to: *to })? {
            Reply::Differences(ranges) => Ok(ranges),
            other => Err(unexpected(&other)),
        }
    }

    /// The record of a dumped process, by its manifest.
    ///
    /// # Errors
    /// It is not in the store, or is damaged.
    pub fn read_record(&mut self, manifest: &Hash) -> Result<Vec<u8>, ClientError> {
        match self.ask(&Request::ReadRecord { manifest: *manifest })? {
            Reply::Record(record) => Ok(record),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes the checkpoints that `references` name to `out`.
    ///
    /// # Errors
    /// A reference names none, something is damaged, or `out` cannot be written.
    pub fn export(&mut self, references: Vec<String>, out: OwnedFd) -> Result<Exported, ClientError> {
        let request = Request::Export { references };
        transport::send(&self.stream, &request, &[out.as_fd()], MsgFlags::empty())?;
        // What is written to a pipe ends with its last writer.
        drop(out);
        match self.receive()?.0 {
            Reply::Exported(exported) => Ok(exported),
            other => Err(unexpected(&other)),
        }
    }

    /// Imports the checkpoints that `source` holds; all of them or none.
    ///
    /// # Errors
    /// It is not a whole stream, or the store cannot be written.
    pub fn import(&mut self, source: OwnedFd) -> Result<Imported, ClientError> {
        transport::send(&self.stream, &Request::Import, &[source.as_fd()], MsgFlags::empty())?;
        drop(source);
        match self.receive()?.0 {
            Reply::Imported(imported) => Ok(imported),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the server, once no checkpoint is being taken.
    ///
    /// # Errors
    /// The connection failed.
    pub fn shutdown(&mut self) -> Result<(), ClientError> {
        match self.done(&Request::Shutdown) {
            // It may be gone before its answer is out.
            Err(ClientError::Lost(_)) => Ok(()),
            other => other,
        }
    }

    fn done(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.send(request)?;
        Ok(self.receive()?.0)
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        Ok(transport::send(&self.stream, request, &[], MsgFlags::empty())?)
    }

    fn receive(&mut self) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        waiting::await_answer(&self.stream);
        match transport::receive(&self.stream)? {
            Some((Reply::Refused(why), _)) => Err(ClientError::Refused(why)),
            Some(message) => Ok(message),
            None => Err(TransportError::Truncated.into()),
        }
    }
}

/// The list of pages that comes with a reply.
fn beside(mut descriptors: Vec<OwnedFd>) -> Result<OwnedFd, ClientError> {
    descriptors.pop().ok_or_else(|| ClientError::Unexpected("a process without its pages".into()))
}

fn unexpected(reply: &Reply) -> ClientError {
    let text = format!("{reply:?}");
    ClientError::Unexpected(text.chars().take(80).collect())
}
