//! Where init belongs: with the first process of the computation.

use nix::unistd::{Pid, setpgid, setsid};

use super::tree::Node;

/// Where a process is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// With `stasis restart`.
    Same,
    /// In a process group of its own, in the session of `stasis restart`.
    Group,
    /// In a session of its own.
    Own,
}

impl Session {
    /// Of the computation's first process.
    pub fn of(first: &Node) -> Self {
        if first.session == Some(first.id) {
            Self::Own
        } else if first.group == Some(first.id) {
            Self::Group
        } else {
            Self::Same
        }
    }

    /// Puts this process there. Neither call fails for a process that was just made.
    pub fn enter(self) {
        match self {
            Self::Same => {}
            Self::Group => {
                let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            }
            Self::Own => {
                let _ = setsid();
            }
        }
    }
}
