//! A connection to the store server, blocking.

use std::path::{Path, PathBuf};

use stasis_protocol::store::{CheckpointDraft, CheckpointRecord, Hash};

pub type Result<T> = std::result::Result<T, anyhow::Error>;

pub struct Client(stasis_store::client::Client);

pub fn socket_path(directory: &Path) -> PathBuf {
    stasis_store::location::socket_path(directory).unwrap_or_default()
}

impl Client {
    pub fn connect_or_start(directory: &Path) -> Result<Self> {
        Ok(Self(stasis_store::client::Client::connect_or_start(directory)?))
    }

    pub fn commit(&mut self, token: u64, draft: CheckpointDraft) -> Result<CheckpointRecord> {
        Ok(self.0.commit(token, draft)?)
    }

    pub fn discard(&mut self, token: u64) -> Result<()> {
        Ok(self.0.discard(token)?)
    }

    pub fn list(&mut self) -> Result<Vec<CheckpointRecord>> {
        Ok(self.0.list()?)
    }

    pub fn resolve(&mut self, reference: &str) -> Result<CheckpointRecord> {
        Ok(self.0.resolve(reference)?)
    }

    pub fn read_process(&mut self, manifest: &Hash) -> Result<stasis_store::client::StoredProcess> {
        Ok(self.0.read_process(manifest)?)
    }
}

/// Connects to the server of an existing store.
pub fn open(directory: &Path) -> Result<Client> {
    Client::connect_or_start(directory)
}
