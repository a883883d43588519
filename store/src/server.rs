//! The store server: one process per store, a thread per connection, gone when nobody needs it.
//!
//! A connection that fails, lies or hangs costs itself only. Threads write to shared state under
//! locks that are never held while waiting for a client.
//!
//! Not here: what the requests do (`connection`), becoming a background process (`main.rs`).

mod background;
mod connection;
mod restricted;

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::{
            fs::MetadataExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};

use background::Background;

use crate::{error::StoreError, location::socket_path, log, store::Store};

pub use crate::{directory::FORMAT, usable::LOG};

/// The most connections at a time: a thread and two descriptors each.
const MAX_CONNECTIONS: usize = 8192;

/// How long the server waits at least for the first to connect: whoever started it.
const FIRST: Duration = Duration::from_secs(10);

/// How often dumps that nobody commits are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// An open store and the socket it is reached by.
pub struct Server {
    listener: UnixListener,
    socket: PathBuf,
    /// The socket's inode: the next server of this path may have its own there, where this one's store was moved away.
    inode: u64,
    idle: Duration,
    shared: Arc<Shared>,
}

/// What the connections share.
struct Shared {
    store: Store,
    connections: AtomicUsize,
    /// No checkpoint begins any more.
    stopping: AtomicBool,
    /// The server ends.
    ended: AtomicBool,
    /// Written to when a connection ends, when the server is to stop, and when nothing is left to be done in the background.
    wake: EventFd,
    background: Background,
}

impl Server {
    /// Opens the store in `directory` and its socket; `idle` is how long the server stays when nobody
    /// is connected; see [`Store::open`] for `wait`.
    ///
    /// # Errors
    /// The store cannot be opened, or the socket cannot be made.
    pub fn open(directory: &Path, idle: Duration, wait: bool) -> Result<Self, StoreError> {
        let store = Store::open(directory, wait)?;
        let path = store.directory().path();
        let socket =
            socket_path(path).map_err(StoreError::io("cannot find a place for the socket of", path))?;
        let (listener, inode) = listen(&socket)?;
        store.directory().announce(&socket)?;
        let wake = EventFd::new().map_err(io::Error::from).map_err(StoreError::io("no eventfd for", path))?;
        let shared = Shared {
            store,
            connections: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            wake,
            background: Background::default(),
        };
        Ok(Self { listener, socket, inode, idle, shared: Arc::new(shared) })
    }

    /// The path of the socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Serves until nobody has been connected for a while, or a client asks for the end.
    ///
    /// # Errors
    /// The listening socket fails.
    pub fn run(mut self) -> Result<(), StoreError> {
        let background = background::start(&self.shared)
            .map_err(StoreError::io("cannot start a thread for", self.shared.store.directory().path()))?;
        let served = self.serve_all();
        self.shared.ended.store(true, Ordering::Release);
        self.shared.background.end();
        let _ = background.join();
        self.shared.store.close();
        served
    }

    fn serve_all(&mut self) -> Result<(), StoreError> {
        let socket = self.socket.clone();
        let failed = |error| StoreError::io("cannot listen on", &socket)(error);
        let mut last_used = Instant::now();
        let mut idle = self.idle.max(FIRST);
        loop {
            if self.shared.ended.load(Ordering::Acquire) {
                self.remove_socket();
                return Ok(());
            }
            log::bound(self.shared.store.directory().path());
            let busy = self.shared.connections.load(Ordering::Acquire) > 0 || self.shared.store.is_busy();
            if busy {
                last_used = Instant::now();
                idle = self.idle;
                self.shared.background.stay();
            } else if last_used.elapsed() >= idle && self.shared.background.settle() {
                // From here on a client finds no socket and starts another server, which waits for the
                // lock of this one. One that got in just before is still served.
                self.remove_socket();
                match self.listener.accept() {
                    Ok((stream, _)) => {
                        (self.listener, self.inode) = listen(&self.socket)?;
                        self.serve(stream);
                        continue;
                    }
                    Err(_) => return Ok(()),
                }
            }
            // What is being done before it leaves wakes it.
            let left = idle.saturating_sub(last_used.elapsed());
            let wait = if busy || left.is_zero() { HOUSEKEEPING } else { left };
            let timeout = PollTimeout::try_from(wait.min(HOUSEKEEPING) + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX);
            let mut events = [
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut events, timeout) {
                Ok(0) => self.shared.store.drop_abandoned(),
                Ok(_) => {}
                Err(nix::Error::EINTR) => continue,
                Err(errno) => return Err(failed(errno.into())),
            }
            if events[1].any() == Some(true) {
                let _ = self.shared.wake.read();
            }
            if events[0].any() == Some(true) {
                match self.listener.accept() {
                    Ok((stream, _)) => self.serve(stream),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => log!("a connection could not be accepted: {error}"),
                }
            }
        }
    }

    fn remove_socket(&self) {
        if fs::symlink_metadata(&self.socket).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.socket);
        }
    }

    fn serve(&self, stream: UnixStream) {
        if let Err(reason) = self.shared.start(move |shared| connection::serve(shared, stream)) {
            log!("a connection was refused: {reason}");
        }
    }
}

/// A connection that counts. Told by dropping it, also when its thread could not be started.
struct Connected(Arc<Shared>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
        let _ = self.0.wake.write(1);
    }
}

impl Shared {
    /// Starts the thread of a connection, which counts until `serve` returns.
    fn start(self: &Arc<Self>, serve: impl FnOnce(&Arc<Self>) + Send + 'static) -> Result<(), String> {
        let before = self.connections.fetch_add(1, Ordering::AcqRel);
        let guard = Connected(Arc::clone(self));
        if before >= MAX_CONNECTIONS {
            return Err(format!("there are {MAX_CONNECTIONS} connections already"));
        }
        thread::Builder::new()
            .name("connection".into())
            .spawn(move || serve(&guard.0))
            .map(drop)
            .map_err(|error| format!("there are no more threads ({error})"))
    }

    /// Ends the server.
    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let _ = self.wake.write(1);
    }
}

/// Listens on a fresh socket; returns its inode, too. Whatever has its name is a leftover: this process holds the
/// store's lock.
fn listen(socket: &Path) -> Result<(UnixListener, u64), StoreError> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io("cannot remove", socket)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(StoreError::io("cannot listen on", socket))?;
    listener.set_nonblocking(true).map_err(StoreError::io("cannot listen on", socket))?;
    let inode = fs::symlink_metadata(socket).map_err(StoreError::io("cannot look at", socket))?.ino();
    Ok((listener, inode))
}
