//! A connection to the store server, blocking.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use stasis_protocol::{
    VERSION,
    store::{CheckpointDraft, CheckpointRecord, Hash, Reply, Request},
    wire,
};

pub type Result<T> = std::result::Result<T, anyhow::Error>;

pub struct Client {
    stream: UnixStream,
}

pub fn socket_path(directory: &Path) -> PathBuf {
    let announced = std::fs::read_to_string(directory.join("LOCK")).unwrap_or_default();
    announced.lines().nth(1).unwrap_or_default().into()
}

impl Client {
    pub fn connect(directory: &Path) -> Result<Self> {
        let mut client = Self { stream: UnixStream::connect(socket_path(directory))? };
        client.request(&Request::Hello { version: VERSION })?;
        Ok(client)
    }

    pub fn connect_or_start(directory: &Path) -> Result<Self> {
        Self::connect(directory)
    }

    fn request(&mut self, request: &Request) -> Result<Reply> {
        self.stream.write_all(&wire::frame(request)?)?;
        let mut header = [0; wire::HEADER];
        self.stream.read_exact(&mut header)?;
        let mut payload = vec![0; wire::payload_len(header)?];
        self.stream.read_exact(&mut payload)?;
        match wire::decode(&payload)? {
            Reply::Refused(reason) => Err(anyhow::anyhow!(reason)),
            reply => Ok(reply),
        }
    }

    pub fn commit(&mut self, token: u64, draft: CheckpointDraft) -> Result<CheckpointRecord> {
        match self.request(&Request::Commit { token, draft })? {
            Reply::Committed(record) => Ok(record),
            reply => anyhow::bail!("{reply:?}"),
        }
    }

    pub fn discard(&mut self, token: u64) -> Result<()> {
        self.request(&Request::Discard { token }).map(|_| ())
    }

    pub fn list(&mut self) -> Result<Vec<CheckpointRecord>> {
        match self.request(&Request::List)? {
            Reply::Checkpoints(records) => Ok(records),
            reply => anyhow::bail!("{reply:?}"),
        }
    }

    pub fn resolve(&mut self, reference: &str) -> Result<CheckpointRecord> {
        match self.request(&Request::Resolve { reference: reference.into() })? {
            Reply::Checkpoint(record) => Ok(record),
            reply => anyhow::bail!("{reply:?}"),
        }
    }

    pub fn read_process(&mut self, manifest: Hash) -> Result<Vec<u8>> {
        match self.request(&Request::ReadProcess { manifest })? {
            Reply::Process { record, .. } => Ok(record),
            reply => anyhow::bail!("{reply:?}"),
        }
    }
}

/// Connects to the server of an existing store.
pub fn open(directory: &Path) -> Result<Client> {
    Client::connect(directory)
}
