//! Which coordinator a computation's id belongs to: where the original runs on, what is restarted beside it is another
//! computation, and has an id of its own. Otherwise `stasis prune` would take the checkpoints of both for those of one.

use std::os::{
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixListener},
};

/// The name of an abstract socket (unix(7)), which ends with the coordinator, however that ends.
pub struct Claim {
    id: String,
    _socket: Option<UnixListener>,
}

impl Claim {
    /// Takes an id; `None`: another coordinator has it. One that cannot be taken otherwise is nobody else's as far as can be
    /// told.
    pub fn take(id: &str) -> Option<Self> {
        let name = format!("stasis-computation-{id}");
        let socket = SocketAddr::from_abstract_name(name).and_then(|name| UnixListener::bind_addr(&name));
        match socket {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => None,
            socket => Some(Self { id: id.into(), _socket: socket.ok() }),
        }
    }

    pub fn is_of(&self, id: &str) -> bool {
        self.id == id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_belongs_to_one_until_it_is_let_go() {
        let id = format!("test-{}", std::process::id());
        let claim = Claim::take(&id);
        assert!(claim.as_ref().is_some_and(|claim| claim.is_of(&id)));
        assert!(Claim::take(&id).is_none());
        drop(claim);
        assert!(Claim::take(&id).is_some());
    }
}
