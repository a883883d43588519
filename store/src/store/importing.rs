//! Checkpoints that come from elsewhere, ready made.

use std::{
    io::Read,
    sync::{Arc, PoisonError},
};

use stasis_protocol::store::CheckpointRecord;

use super::Store;
use crate::{
    error::StoreError,
    nodelog::NodeLog,
    session::{End, Outcome, Session},
};

impl Store {
    /// Starts a session under a token of its own.
    ///
    /// # Errors
    /// There is no random number.
    pub fn begin_import(&self) -> Result<Arc<Session>, StoreError> {
        let mut token = [0; 8];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut token))
            .map_err(StoreError::io("cannot read", "/dev/urandom"))?;
        let session = Session::new(u64::from_le_bytes(token), self.shared_directory(), self.peers.next());
        session.join()?;
        self.sessions().insert(session.token, Arc::clone(&session));
        Ok(session)
    }

    /// Ends a session; what it wrote is cut off its packs.
    pub fn give_up(&self, session: &Arc<Session>, why: &str) {
        self.drop_session(session, why);
    }

    /// Makes those of `checkpoints` that are not there, all at once; returns them. The session is over.
    ///
    /// # Errors
    /// They could not be written: there is none of them.
    pub fn commit_import(
        &self,
        session: &Arc<Session>,
        checkpoints: Vec<CheckpointRecord>,
        nodes: NodeLog,
    ) -> Result<Vec<CheckpointRecord>, StoreError> {
        session.close("the import is over");
        let _gate = self.sharing.shared();
        let _turn = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = session.outcome().and_then(|outcome| {
            let own: Vec<u32> = outcome.grown.iter().map(|growth| growth.number).collect();
            Ok((self.store_nodes(&[nodes], &own)?, outcome))
        });
        let (nodes, outcome) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.end_session(session, End::Rewind);
                return Err(error);
            }
        };
        let Outcome { written, grown, .. } = outcome;
        let imported = self.indexer.import(checkpoints, nodes, written, grown);
        let end = match &imported {
            Ok(new) if new.is_empty() => End::Rewind,
            Ok(_) => End::Commit,
            // As with a commit, only the next start of the server can tell.
            Err(_) => End::Abandon,
        };
        self.end_session(session, end);
        imported
    }
}
