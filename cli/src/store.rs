//! The store as the commands and the coordinator see it: a server that starts when it is needed, and
//! whose failures have an exit code.

use std::{
    ffi::OsString,
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use stasis_protocol::store::{CheckpointRecord, Collected, Difference, DiskUsage, Exported, Hash, Imported};
pub use stasis_store::client::Client;
use stasis_store::{
    client::{ClientError, StoredProcess, Verification},
    pager::order::{self, Order},
};

use crate::{failure::Failure, locate};

/// Connects to the server of the store in `directory`; makes the store and starts its server where they
/// are missing.
///
/// # Errors
/// Why there is no store to be had.
pub fn connect_or_start(directory: &Path) -> anyhow::Result<Client> {
    match Client::connect(directory) {
        Err(ClientError::NotRunning(_)) => {}
        other => return Ok(other?),
    }
    start(directory, &[])
}

/// Connects to the server of the store in `directory`; where none runs, starts one with these options of `stasis-store`.
///
/// # Errors
/// As [`connect_or_start`].
pub fn start(directory: &Path, options: &[OsString]) -> anyhow::Result<Client> {
    let mut server = Command::new(locate::find(locate::STORE_SERVER)?);
    server.args(options);
    Ok(Client::connect_or_start_with(directory, server)?)
}

/// Looks whether there is a store in `directory`, or can be one: nothing is opened or made.
///
/// # Errors
/// [`Failure::Store`].
pub fn check(directory: &Path) -> Result<(), Failure> {
    stasis_store::usable::check(directory)
        .map_err(|unusable| Failure::Store { directory: directory.to_owned(), message: unusable.to_string() })
}

/// A store to read from.
pub struct Store {
    client: Client,
    directory: PathBuf,
}

/// The connection to the store's server.
impl AsFd for Store {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}

impl Store {
    /// Opens the store in `directory`, starting its server if none runs.
    ///
    /// # Errors
    /// [`Failure::Store`]: there is none, or it cannot be opened.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let failure = |message: String| Failure::Store { directory: directory.to_owned(), message };
        match directory.metadata() {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(failure("is not a directory; name another one with --store".into()).into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(failure("does not exist: the first checkpoint makes it".into()).into());
            }
            Err(error) => return Err(failure(error.to_string()).into()),
        }
        let client = connect_or_start(directory).map_err(|error| failure(format!("{error:#}")))?;
        Ok(Self { client, directory: directory.to_owned() })
    }

    /// As [`Store::open`]; makes the store where there is none.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn open_or_make(directory: &Path) -> Result<Self, Failure> {
        let failure = |message: String| Failure::Store { directory: directory.to_owned(), message };
        let client = connect_or_start(directory).map_err(|error| failure(format!("{error:#}")))?;
        Ok(Self { client, directory: directory.to_owned() })
    }

    /// Writes checkpoints to `out`.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn export(&mut self, ids: Vec<String>, out: OwnedFd) -> Result<Exported, Failure> {
        self.client.export(ids, out).map_err(|error| self.failure(&error))
    }

    /// Imports the checkpoints that `source` holds.
    ///
    /// # Errors
    /// [`Failure::Store`]; then there is none of them.
    pub fn import(&mut self, source: OwnedFd) -> Result<Imported, Failure> {
        self.client.import(source).map_err(|error| self.failure(&error))
    }

    /// All checkpoints, oldest first.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn list(&mut self) -> Result<Vec<CheckpointRecord>, Failure> {
        self.client.list().map_err(|error| self.failure(&error))
    }

    /// The checkpoint that a reference names.
    ///
    /// # Errors
    /// Why it names none; [`Failure::Store`] when the store cannot tell.
    pub fn resolve(&mut self, reference: &str) -> anyhow::Result<CheckpointRecord> {
        match self.client.resolve(reference) {
            Ok(record) => Ok(record),
            Err(ClientError::Refused(reason)) => Err(anyhow::Error::msg(reason)),
            Err(error) => Err(self.failure(&error).into()),
        }
    }

    /// Reads every page of a checkpoint (`None`: of all) against its hash.
    ///
    /// # Errors
    /// [`Failure::Store`] when that cannot be done; damage is no error.
    pub fn verify(&mut self, id: Option<&str>) -> Result<Verification, Failure> {
        self.client.verify(id).map_err(|error| self.failure(&error))
    }

    /// Deletes the checkpoints with these ids; returns those that there were.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn prune(&mut self, ids: Vec<String>) -> Result<Vec<CheckpointRecord>, Failure> {
        self.client.prune(ids).map_err(|error| self.failure(&error))
    }

    /// Gives back the room of what no checkpoint needs; with `compress`, also compresses the rest where that pays.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn collect(&mut self, compress: bool) -> Result<Collected, Failure> {
        self.client.collect(compress).map_err(|error| self.failure(&error))
    }

    /// How much room each checkpoint takes.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn disk_usage(&mut self) -> Result<DiskUsage, Failure> {
        self.client.disk_usage().map_err(|error| self.failure(&error))
    }

    /// What differs between two processes, by their manifests.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn diff(&mut self, from: &Hash, to: &Hash) -> Result<Vec<Difference>, Failure> {
        self.client.diff(from, to).map_err(|error| self.failure(&error))
    }

    /// The record of a process, by its manifest.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn read_record(&mut self, manifest: &Hash) -> Result<Vec<u8>, Failure> {
        self.client.read_record(manifest).map_err(|error| self.failure(&error))
    }

    /// A process of a checkpoint, by its manifest.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn read_process(
        &mut self,
        manifest: &Hash,
        may_wait: &[Range<u64>],
    ) -> Result<StoredProcess, Failure> {
        self.client.read_process(manifest, may_wait).map_err(|error| self.failure(&error))
    }

    /// What a process touched first after restarts from a checkpoint or what led to it.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn working_set(&mut self, checkpoint: &str, pid: u32) -> Result<Order, Failure> {
        let set = self.client.working_set(checkpoint, pid).map_err(|error| self.failure(&error))?;
        Ok(order::decode(&set))
    }

    /// The failure for something that is wrong with this store.
    pub fn failure(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::Store { directory: self.directory.clone(), message: error.to_string() }
    }
}
