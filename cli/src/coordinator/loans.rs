//! Connections to the store for processes that may not make one themselves, since they are another user's: with such a one a process
//! can dump itself for one checkpoint, and nothing else.
//!
//! Not here: what they are restricted to (store/src/server/restricted.rs).

use std::{collections::BTreeMap, os::fd::OwnedFd};

use super::{
    checkpoint::blocking,
    computation::{Computation, MemberId},
};
use crate::{process, store};

/// Connections, each for one process.
pub type Lent = BTreeMap<MemberId, OwnedFd>;

/// The coordinator's own connection to the store, from which those are made for one checkpoint.
pub struct Lender {
    token: u64,
    /// `None` when it has failed, or nothing is lent any more.
    store: Option<store::Client>,
    /// A process has become another user between being asked and connecting: whoever may be about to is lent one.
    wary: bool,
}

impl Lender {
    pub fn new(token: u64, store: store::Client, wary: bool) -> Self {
        Self { token, store: Some(store), wary }
    }

    /// The coordinator's connection, from which nothing is lent any more; `None` where it has failed.
    pub fn end(&mut self) -> Option<store::Client> {
        self.store.take()
    }

    /// Makes connections for those of the processes, given with their pids here, that need one.
    ///
    /// # Errors
    /// Why the store makes none.
    pub async fn lend(
        &mut self,
        computation: &Computation,
        members: &[(MemberId, u32)],
    ) -> Result<Lent, String> {
        let own = nix::unistd::geteuid();
        let is_old = |id| {
            computation
                .with_members(|members| members.get(&id).is_none_or(|member| member.is_in_a_checkpoint))
        };
        // One that was lent a connection is copied as a whole, since that knows of no earlier checkpoint.
        let needs_one = |&(id, real_pid): &(MemberId, u32)| {
            process::user(real_pid).is_some_and(|uid| uid != own.as_raw())
                || (self.wary && own.is_root() && !is_old(id))
        };
        let borrowers: Vec<MemberId> =
            members.iter().filter(|member| needs_one(member)).map(|(id, _)| *id).collect();
        if borrowers.is_empty() {
            return Ok(Lent::new());
        }
        let Some(mut store) = self.store.take() else { return Err("its server is gone".into()) };
        let token = self.token;
        let lending = blocking(move || {
            let lent: Result<Lent, _> =
                borrowers.into_iter().map(|id| Ok((id, store.restrict(token)?))).collect();
            lent.map(|lent| (store, lent)).map_err(|error: stasis_store::client::ClientError| error)
        });
        let (store, lent) = lending.await?;
        self.store = Some(store);
        Ok(lent)
    }
}
