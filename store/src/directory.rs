//! The directory of a store: who may use it, which format it has, its secret, its room.
//!
//! FORMAT is written last when a store is made: a directory without it is a store that was never
//! finished, and making it goes on where it stopped.
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

use crate::{error::StoreError, failpoint::FailPoint, location::LOCK};

/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 3;

const FORMAT_FILE: &str = "FORMAT";
const KEY_FILE: &str = "key";
const PACKS: &str = "packs";
const INDEX: &str = "index";
const SCRATCH: &str = "scratch.new";

/// The server's log, in the store's directory.
pub const LOG: &str = "server.log";

/// A store directory that this process holds the lock of.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    lock: File,
    key: [u8; 32],
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
        let lock = take_lock(&path, wait)?;
        let key = match read_format(&path)? {
            Some(FORMAT) => read_key(&path)?,
            // All that was written stays readable; what is written from now on, an older program would misread.
            Some(_) => {
                write_format(&path)?;
                read_key(&path)?
            }
            None => create(&path)?,
        };
        Ok(Self { path, lock, key })
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
        write_lock(&self.lock, &format!("{}\n{}\n", getpid(), socket.display()))
            .map_err(StoreError::io("cannot write", self.path.join(LOCK)))
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

fn check_owner(path: &Path) -> Result<(), StoreError> {
    let problem = |problem: String, remedy: String| StoreError::Directory {
        directory: path.to_owned(),
        problem,
        remedy,
    };
    if path.to_str().is_none() {
        return Err(problem("has a name that is not UTF-8".into(), "use another directory".into()));
    }
    let metadata = fs::metadata(path).map_err(StoreError::io("cannot look at", path))?;
    if metadata.uid() != geteuid().as_raw() {
        return Err(problem(
            format!("belongs to uid {}, not to uid {}", metadata.uid(), geteuid()),
            "use a store of your own (--store DIR)".into(),
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        let empty = fs::read_dir(path).map_err(StoreError::io("cannot list", path))?.next().is_none();
        if !empty {
            return Err(problem(
                format!("is open to other users (mode {:04o})", metadata.mode() & 0o7777),
                format!("close it: chmod 700 {}", path.display()),
            ));
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(StoreError::io("cannot close to others", path))?;
    }
    Ok(())
}

fn take_lock(path: &Path, wait: bool) -> Result<File, StoreError> {
    let lock_path = path.join(LOCK);
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(StoreError::io("cannot open", &lock_path))?;
    if wait {
        lock.lock().map_err(StoreError::io("cannot lock", &lock_path))?;
    } else {
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = lock.read_to_string(&mut text);
                let pid = text.lines().next().unwrap_or("unknown").to_owned();
                return Err(StoreError::Locked { directory: path.to_owned(), pid });
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(StoreError::io("cannot lock", &lock_path)(error));
            }
        }
    }
    write_lock(&lock, &format!("{}\n", getpid())).map_err(StoreError::io("cannot write", &lock_path))?;
    Ok(lock)
}

fn write_lock(mut lock: &File, text: &str) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(text.as_bytes())
}

/// `None`: there is no store here yet.
fn read_format(path: &Path) -> Result<Option<u32>, StoreError> {
    let file = path.join(FORMAT_FILE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("cannot read", file)(error)),
    };
    let found = text.trim().strip_prefix("stasis store ").unwrap_or(text.trim());
    match found.parse::<u32>() {
        Ok(version) if version <= FORMAT => Ok(Some(version)),
        _ => Err(StoreError::NewerFormat {
            directory: path.to_owned(),
            found: found.to_owned(),
            known: FORMAT,
        }),
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
    for entry in fs::read_dir(path).map_err(StoreError::io("cannot list", path))? {
        let name = entry.map_err(StoreError::io("cannot list", path))?.file_name();
        let known = [LOCK, LOG, KEY_FILE, PACKS, INDEX, "lost+found"].iter().any(|known| name == *known);
        if !known && !name.to_string_lossy().ends_with(".new") {
            return Err(StoreError::NotAStore {
                directory: path.to_owned(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    for name in [PACKS, INDEX] {
        let directory = path.join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(StoreError::io("cannot make the directory", directory))?;
    }
    let key = match read_key(path) {
        Ok(key) => key,
        Err(_) => {
            let mut key = [0; 32];
            File::open("/dev/urandom")
                .and_then(|mut random| random.read_exact(&mut key))
                .map_err(StoreError::io("cannot read", "/dev/urandom"))?;
            write_durably(path, KEY_FILE, &key)?;
            key
        }
    };
    FailPoint::KeyWritten.hit();
    write_format(path)?;
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
