//! Internet addresses, the same for a connection's ends of either family.

use alloc::vec::Vec;

/// An address and a port. IPv4 addresses are as in IPv6 sockets (::ffff:1.2.3.4): one end of a connection may be a
/// socket of the one family, and the other of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub ip: [u8; 16],
    pub port: u16,
}

const V4: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Address {
    /// From a struct sockaddr_in or sockaddr_in6.
    pub fn parse(address: &[u8]) -> Option<Self> {
        let family = i32::from(u16::from_ne_bytes(address.get(..2)?.try_into().ok()?));
        let port = u16::from_be_bytes(address.get(2..4)?.try_into().ok()?);
        let ip = match family {
            libc::AF_INET => v4(address.get(4..8)?.try_into().ok()?),
            libc::AF_INET6 => address.get(8..24)?.try_into().ok()?,
            _ => return None,
        };
        Some(Self { ip, port })
    }

    /// From the four words of a struct inet_diag_sockid.
    pub fn from_kernel(family: i32, port: u16, words: [u8; 16]) -> Self {
        let ip = if family == libc::AF_INET { v4([words[0], words[1], words[2], words[3]]) } else { words };
        Self { ip, port }
    }

    fn is_v4(&self) -> bool {
        self.ip[..12] == V4
    }

    pub fn family(&self) -> i32 {
        if self.is_v4() { libc::AF_INET } else { libc::AF_INET6 }
    }

    /// As in a struct inet_diag_sockid.
    pub fn as_asked(&self) -> [u8; 16] {
        if !self.is_v4() {
            return self.ip;
        }
        let mut words = [0; 16];
        words[..4].copy_from_slice(&self.ip[12..]);
        words
    }

    pub fn is_any(&self) -> bool {
        self.ip == [0; 16] || self.is_v4() && self.ip[12..] == [0; 4]
    }

    /// Whether it is this machine's, as far as the other end's address tells.
    pub fn is_near(&self, other: &Self) -> bool {
        let loopback = self.is_v4() && self.ip[12] == 127 || self.ip[..15] == [0; 15] && self.ip[15] == 1;
        loopback || self.ip == other.ip
    }

    /// As a struct sockaddr of a socket of this family; `interface` is what a link-local address goes through.
    pub fn sockaddr(&self, domain: i32, interface: u32) -> Vec<u8> {
        let mut address = Vec::from((domain as u16).to_ne_bytes());
        address.extend(self.port.to_be_bytes());
        if domain == libc::AF_INET {
            address.extend(&self.ip[12..]);
            address.resize(size_of::<libc::sockaddr_in>(), 0);
        } else {
            let is_link_local = self.ip[0] == 0xfe && self.ip[1] & 0xc0 == 0x80;
            address.extend([0; 4]);
            address.extend(self.ip);
            address.extend(if is_link_local { interface } else { 0 }.to_ne_bytes());
        }
        address
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from(self.ip);
        bytes.extend(self.port.to_be_bytes());
        bytes
    }
}

fn v4(ip: [u8; 4]) -> [u8; 16] {
    let mut mapped = [0; 16];
    mapped[..12].copy_from_slice(&V4);
    mapped[12..].copy_from_slice(&ip);
    mapped
}
