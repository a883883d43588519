//! The cryptography of a connection over TCP: all of it is BLAKE3's keyed hash, as a pseudorandom function and as a
//! message authentication code.
//!
//! Both sides choose a nonce. What each proves itself by, and the key of each direction, are keyed hashes of a label and
//! both nonces under the token: they are another connection's for nobody, so a recorded conversation is worth nothing,
//! and one direction's messages are not taken for the other's. A message's tag covers its number.

use std::{
    fs::File,
    io::{self, Read},
};

use blake3::Hash;
use stasis_protocol::wire;

use super::token::Token;

/// What a coordinator says first, before its nonce.
pub const GREETING: [u8; 16] = *b"stasis over tcp1";

/// The length of a nonce, in bytes: neither side's ever comes twice.
pub const NONCE: usize = 32;

/// The length of a proof and of a message's tag, in bytes.
pub const PROOF: usize = blake3::OUT_LEN;

pub type Nonce = [u8; NONCE];

/// # Errors
/// When there are no random numbers.
pub fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; NONCE];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// What follows from the token and both nonces.
pub struct Handshake<'a> {
    token: &'a Token,
    coordinators: Nonce,
    commands: Nonce,
}

impl<'a> Handshake<'a> {
    pub fn new(token: &'a Token, coordinators: Nonce, commands: Nonce) -> Self {
        Self { token, coordinators, commands }
    }

    fn derive(&self, label: &str) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(self.token.key());
        hasher.update(label.as_bytes()).update(&self.coordinators).update(&self.commands);
        hasher.finalize()
    }

    /// To be compared as a [`Hash`], which takes the same time wherever the difference is.
    pub fn commands_proof(&self) -> Hash {
        self.derive("the command knows the token")
    }

    /// The same, of the other side.
    pub fn coordinators_proof(&self) -> Hash {
        self.derive("the coordinator knows the token")
    }

    pub fn for_the_command(&self) -> Seals {
        Seals { own: self.seal("what the command says"), peers: self.seal("what the coordinator says") }
    }

    pub fn for_the_coordinator(&self) -> Seals {
        let Seals { own, peers } = self.for_the_command();
        Seals { own: peers, peers: own }
    }

    fn seal(&self, label: &str) -> Seal {
        Seal { key: self.derive(label).into(), messages: 0 }
    }
}

/// Of both directions of a connection.
pub struct Seals {
    pub own: Seal,
    pub peers: Seal,
}

/// Of one direction.
pub struct Seal {
    key: [u8; blake3::KEY_LEN],
    /// So many have gone before.
    messages: u64,
}

impl Seal {
    /// Puts the tag behind the frame of the next message.
    pub fn close(&mut self, frame: &mut Vec<u8>) {
        let tag = self.next_tag(&frame[wire::HEADER..]);
        frame.extend(tag.as_bytes());
    }

    /// # Errors
    /// InvalidData when it is not the next message with its tag.
    pub fn check(&mut self, payload: &[u8], tag: [u8; PROOF]) -> io::Result<()> {
        if self.next_tag(payload) == tag {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a message was changed, repeated or lost on its way"))
    }

    fn next_tag(&mut self, payload: &[u8]) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.messages.to_le_bytes()).update(payload);
        self.messages += 1;
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(seal: &mut Seal, message: &str) -> (Vec<u8>, [u8; PROOF]) {
        let mut frame = wire::frame(&message.to_string()).unwrap();
        seal.close(&mut frame);
        let tag = frame.split_off(frame.len() - PROOF).try_into().unwrap();
        (frame.split_off(wire::HEADER), tag)
    }

    fn both(token: &Token) -> (Seals, Seals) {
        let handshake = Handshake::new(token, [1; NONCE], [2; NONCE]);
        (handshake.for_the_command(), handshake.for_the_coordinator())
    }

    #[test]
    fn messages_are_taken_in_their_order_and_once() {
        let token = Token::of(b"0123456789abcdef");
        let (mut command, mut coordinator) = both(&token);
        let (first, first_tag) = sealed(&mut command.own, "first");
        let (second, second_tag) = sealed(&mut command.own, "second");
        coordinator.peers.check(&first, first_tag).unwrap();
        coordinator.peers.check(&second, second_tag).unwrap();
        let (_, mut again) = both(&token);
        assert!(again.peers.check(&second, second_tag).is_err());
        let (_, mut again) = both(&token);
        again.peers.check(&first, first_tag).unwrap();
        assert!(again.peers.check(&first, first_tag).is_err());
    }

    #[test]
    fn a_changed_message_and_one_of_the_other_direction_are_not_taken() {
        let token = Token::of(b"0123456789abcdef");
        let (mut command, mut coordinator) = both(&token);
        let (mut message, tag) = sealed(&mut command.own, "kill");
        assert!(command.peers.check(&message, tag).is_err());
        message[1] ^= 1;
        assert!(coordinator.peers.check(&message, tag).is_err());
    }

    #[test]
    fn nothing_is_the_same_under_another_token_or_nonce() {
        let (token, other) = (Token::of(b"0123456789abcdef"), Token::of(b"0123456789abcdeg"));
        let all = |token: &Token, coordinators, commands| {
            let handshake = Handshake::new(token, [coordinators; NONCE], [commands; NONCE]);
            let seals = handshake.for_the_command();
            let proofs = [handshake.commands_proof(), handshake.coordinators_proof()];
            proofs.map(<[u8; 32]>::from).into_iter().chain([seals.own.key, seals.peers.key])
        };
        let values: std::collections::BTreeSet<_> =
            [(&token, 1, 2), (&token, 3, 2), (&token, 1, 3), (&token, 2, 1), (&other, 1, 2)]
                .into_iter()
                .flat_map(|(token, coordinators, commands)| all(token, coordinators, commands))
                .collect();
        assert_eq!(values.len(), 20);
    }
}
