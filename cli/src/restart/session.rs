//! Where init belongs: with the first process of the computation.

use nix::unistd::{Pid, setpgid, setsid};
use stasis_protocol::image::ProcessImage;

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
    pub fn of(image: &ProcessImage, detach: bool) -> Self {
        let ids = image.ids;
        if ids.sid == ids.pid || detach {
            Self::Own
        } else if ids.pgid == ids.pid {
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
