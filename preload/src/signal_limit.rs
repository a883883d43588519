//! Room for signals that are queued where the program's limit is reached: the stop signal, and those that are taken to be looked at
//! and queued again, whose room others of this user may have filled meanwhile.

use stasis_sys::process;

/// RLIMIT_SIGPENDING, as high as it may be until this is dropped; what it was.
pub struct Raised([u64; 2]);

impl Raised {
    pub fn limit() -> Option<Self> {
        let was @ [_, hard] = process::limit(libc::RLIMIT_SIGPENDING).ok()?;
        // Beyond the hard limit with CAP_SYS_RESOURCE only.
        let unlimited = process::set_limit(libc::RLIMIT_SIGPENDING, [u64::MAX; 2]);
        unlimited.or_else(|_| process::set_limit(libc::RLIMIT_SIGPENDING, [hard; 2])).ok()?;
        Some(Self(was))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        let _ = process::set_limit(libc::RLIMIT_SIGPENDING, self.0);
    }
}
