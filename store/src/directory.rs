//! The directory of a store: who may use it, which format it has, its secret, its room.
//!
//! FORMAT is written last when a store is made, after the index: a directory without it is a store that was never
//! finished, and making it goes on where it stopped. Where there is a FORMAT there was an index; a new one would make
//! every pack one that nothing refers to.
//!
//! Not here: what is in packs and index.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::{
    sys::statvfs::statvfs,
    unistd::{geteuid, getpid},
};

use crate::{
    error::StoreError,
    failpoint::FailPoint,
    location::{LOCK, identity},
    pack::reader::list,
    usable::{self, FORMAT_FILE, INDEX, KEY_FILE, PACKS},
};

/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 3;

const SCRATCH: &str = "scratch.new";

/// The file by which RocksDB begins to read its database.
pub(crate) const CURRENT: &str = "CURRENT";

/// A store directory that this process holds the lock of.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    lock: File,
    key: [u8; 32],
    is_finished: bool,
}

impl Directory {
    /// Opens the store in `path`, making it if there is none. With `wait`, waits for another server
    /// to release it (a server that goes away when idle does within milliseconds).
    ///
    /// # Errors
    /// The directory cannot be made or is not this user's alone; it is no store, or one of a newer
    /// format; another server has it open.
    pub fn open(path: &Path, wait: bool) -> Result<Self, StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(StoreError::io("cannot make the directory", path))?;
        let path = fs::canonicalize(path).map_err(StoreError::io("cannot find", path))?;
        check_owner(&path)?;
        // Nothing is advised, changed or left in a directory that is somebody else's.
        if let Some(found) = usable::foreign(&path).map_err(StoreError::io("cannot list", &path))? {
            return Err(StoreError::NotAStore { directory: path, found });
        }
        close_to_others(&path)?;
        let lock = take_lock(&path, wait)?;
        let format = read_format(&path)?;
        let key = match format {
            Some(FORMAT) => read_key(&path)?,
            // All that was written stays readable; what is written from now on, an older program would misread.
            Some(_) => {
                write_format(&path)?;
                read_key(&path)?
            }
            None => create(&path)?,
        };
        let directory = Self { path, lock, key, is_finished: format.is_some() };
        directory.check_index()?;
        Ok(directory)
    }

    /// Whether the store was made before: it has an index.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// The index has been made: from now on this is a store.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(&mut self) -> Result<(), StoreError> {
        if !self.is_finished {
            sync_directory(&self.index())?;
            write_format(&self.path)?;
            self.is_finished = true;
        }
        Ok(())
    }

    fn check_index(&self) -> Result<(), StoreError> {
        let is_old = self.is_finished || !list(&self.packs())?.is_empty();
        if is_old && !has(&self.index(), CURRENT)? {
            return Err(StoreError::Damaged(format!(
                "{} is missing, without which nobody knows what is in {}; nothing was changed: put the directory \
                 {INDEX} back as it was, or use another store (--store DIR)",
                self.index().join(CURRENT).display(),
                self.packs().display()
            )));
        }
        Ok(())
    }

    /// Whether the directory is where it was when it was opened: a checkpoint in one that was deleted is lost, and one
    /// that was moved away is not where it will be looked for.
    ///
    /// # Errors
    /// [`StoreError::Gone`]; or nobody can tell.
    pub fn check_in_place(&self) -> Result<(), StoreError> {
        if is_at(&self.lock, &self.path.join(LOCK))? {
            return Ok(());
        }
        Err(StoreError::Gone { directory: self.path.clone() })
    }

    /// The canonical path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store's secret, which page names are keyed with.
    #[must_use]
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    #[must_use]
    pub fn packs(&self) -> PathBuf {
        self.path.join(PACKS)
    }

    #[must_use]
    pub fn index(&self) -> PathBuf {
        self.path.join(INDEX)
    }

    /// Tells clients which socket this server listens on.
    ///
    /// # Errors
    /// The lock file cannot be written.
    pub fn announce(&self, socket: &Path) -> Result<(), StoreError> {
        let write = || {
            let which = identity(&self.lock.metadata()?);
            write_lock(&self.lock, &format!("{}\n{}\n{which}\n", getpid(), socket.display()))
        };
        write().map_err(StoreError::io("cannot write", self.path.join(LOCK)))
    }

    /// A new file without a name.
    ///
    /// # Errors
    /// There can be none.
    pub fn scratch(&self) -> Result<File, StoreError> {
        static TURN: Mutex<()> = Mutex::new(());
        // Each takes the same name for a moment.
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.join(SCRATCH);
        let make = || {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        };
        make().map_err(StoreError::io("cannot make", &path))
    }

    /// For `map_err`: a file of [`Self::scratch`] cannot be read or written.
    pub fn scratch_error(&self) -> impl FnOnce(io::Error) -> StoreError {
        StoreError::io("cannot use the scratch file", self.path.join(SCRATCH))
    }

    /// Whether `bytes` more can be written without touching the reserve that the index needs to go on
    /// working (and the user to log in).
    ///
    /// # Errors
    /// [`StoreError::Full`], or the file system cannot be asked.
    pub fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let (free, reserve) = self.room()?;
        if free < reserve + bytes {
            return Err(StoreError::Full { directory: self.path.clone(), free, reserve });
        }
        Ok(())
    }

    /// Whether the index can take `bytes` more, which it writes twice: to its log now, to a table later.
    /// The reserve is there for that.
    ///
    /// # Errors
    /// As [`Directory::check_room`].
    pub fn check_room_for_index(&self, bytes: u64) -> Result<(), StoreError> {
        let (free, reserve) = self.room()?;
        if free < 2 * bytes + (1 << 20) {
            return Err(StoreError::Full { directory: self.path.clone(), free, reserve });
        }
        Ok(())
    }

    /// The error for a write that met a full file system.
    #[must_use]
    pub fn full(&self) -> StoreError {
        let (free, reserve) = self.room().unwrap_or_default();
        StoreError::Full { directory: self.path.clone(), free, reserve }
    }

    /// How much room there is, for a message.
    #[must_use]
    pub fn full_in_numbers(&self) -> String {
        let (free, reserve) = self.room().unwrap_or_default();
        format!("{} MiB free, {} MiB kept in reserve", free >> 20, reserve >> 20)
    }

    /// Bytes free for this user, and bytes to leave alone: a 32nd of the file system, but at least
    /// 4 MiB and at most 64.
    fn room(&self) -> Result<(u64, u64), StoreError> {
        let status = statvfs(&self.path)
            .map_err(io::Error::from)
            .map_err(StoreError::io("cannot ask the file system of", &self.path))?;
        let unit = status.fragment_size();
        let free = status.blocks_available() * unit;
        let reserve = (status.blocks() * unit / 32).clamp(4 << 20, 64 << 20);
        Ok((free, reserve))
    }
}

/// Makes entries of `directory` durable.
///
/// # Errors
/// As fsync(2).
pub fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(StoreError::io("cannot sync", directory))
}

fn problem(path: &Path, problem: String, remedy: String) -> StoreError {
    StoreError::Directory { directory: path.to_owned(), problem, remedy }
}

fn check_owner(path: &Path) -> Result<(), StoreError> {
    if path.to_str().is_none() {
        return Err(problem(path, "has a name that is not UTF-8".into(), "use another directory".into()));
    }
    let metadata = fs::metadata(path).map_err(StoreError::io("cannot look at", path))?;
    if metadata.uid() != geteuid().as_raw() {
        return Err(problem(
            path,
            format!("belongs to uid {}, not to uid {}", metadata.uid(), geteuid()),
            "use a store of your own (--store DIR)".into(),
        ));
    }
    Ok(())
}

fn close_to_others(path: &Path) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(StoreError::io("cannot look at", path))?;
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let is_empty = fs::read_dir(path).map_err(StoreError::io("cannot list", path))?.next().is_none();
    if !is_empty {
        return Err(problem(
            path,
            format!("is open to other users (mode {:04o})", metadata.mode() & 0o7777),
            format!("close it: chmod 700 {}", path.display()),
        ));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(StoreError::io("cannot close to others", path))
}

fn has(directory: &Path, name: &str) -> Result<bool, StoreError> {
    let path = directory.join(name);
    path.try_exists().map_err(StoreError::io("cannot look at", path))
}

/// Whether `file` is what is called `path` now.
///
/// # Errors
/// Nobody can tell.
pub fn is_at(file: &File, path: &Path) -> Result<bool, StoreError> {
    let look = || -> io::Result<bool> {
        let (held, named) = (file.metadata()?, fs::metadata(path)?);
        Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
    };
    match look() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        other => other.map_err(StoreError::io("cannot look at", path)),
    }
}

fn take_lock(path: &Path, wait: bool) -> Result<File, StoreError> {
    let lock_path = path.join(LOCK);
    loop {
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(StoreError::io("cannot open", &lock_path))?;
        lock_file(&lock, path, wait)?;
        // Who held it may have waited for the end of a store that was deleted or moved meanwhile.
        if is_at(&lock, &lock_path)? {
            write_lock(&lock, &format!("{}\n", getpid()))
                .map_err(StoreError::io("cannot write", &lock_path))?;
            return Ok(lock);
        }
    }
}

fn lock_file(mut lock: &File, path: &Path, wait: bool) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("cannot lock", path.join(LOCK))(error);
    if wait {
        return lock.lock().map_err(failed);
    }
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = lock.read_to_string(&mut text);
            let pid = text.lines().next().unwrap_or("unknown").to_owned();
            Err(StoreError::Locked { directory: path.to_owned(), pid })
        }
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn write_lock(mut lock: &File, text: &str) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(text.as_bytes())
}

/// `None`: there is no store here yet.
fn read_format(path: &Path) -> Result<Option<u32>, StoreError> {
    let file = path.join(FORMAT_FILE);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("cannot read", file)(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    match text.trim().strip_prefix("stasis store ").map(str::parse::<u32>) {
        Some(Ok(version @ 1..=FORMAT)) => Ok(Some(version)),
        Some(Ok(found @ 1..)) => {
            Err(StoreError::NewerFormat { directory: path.to_owned(), found, known: FORMAT })
        }
        _ => {
            let shown: String = text.chars().take(40).collect();
            Err(StoreError::Damaged(format!(
                "{} holds {shown:?}; if this Stasis wrote the store, let it hold \"stasis store {FORMAT}\"",
                file.display()
            )))
        }
    }
}

fn read_key(path: &Path) -> Result<[u8; 32], StoreError> {
    let file = path.join(KEY_FILE);
    let bytes = fs::read(&file).map_err(StoreError::io("cannot read the store's secret,", &file))?;
    bytes.try_into().map_err(|bytes: Vec<u8>| {
        StoreError::Damaged(format!("{} has {} bytes instead of 32", file.display(), bytes.len()))
    })
}

fn create(path: &Path) -> Result<[u8; 32], StoreError> {
    for name in [PACKS, INDEX] {
        let directory = path.join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(StoreError::io("cannot make the directory", directory))?;
    }
    if has(path, KEY_FILE)? || !list(&path.join(PACKS))?.is_empty() {
        return read_key(path);
    }
    let mut key = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut key))
        .map_err(StoreError::io("cannot read", "/dev/urandom"))?;
    write_durably(path, KEY_FILE, &key)?;
    FailPoint::KeyWritten.hit();
    Ok(key)
}

fn write_format(path: &Path) -> Result<(), StoreError> {
    write_durably(path, FORMAT_FILE, format!("stasis store {FORMAT}\n").as_bytes())
}

/// Writes a file so that after a crash it is there with all of its content, or not at all.
fn write_durably(directory: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    let fresh = directory.join(format!("{name}.new"));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, directory.join(name))
    };
    write().map_err(StoreError::io("cannot write", &fresh))?;
    sync_directory(directory)
}
