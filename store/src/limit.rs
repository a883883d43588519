//! The largest file that this process may make (`RLIMIT_FSIZE`), which the server has from who started it.

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigHandler, Signal, signal},
    },
};

/// Raises the limit as far as it may be; beyond, writing is an error, and does not end the process.
///
/// # Errors
/// The kernel refuses.
pub fn lift() -> Result<(), Errno> {
    // SAFETY: no handler is installed that could run, and nothing here waits for this signal.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard)
}

/// Why a file cannot become larger, and what can be done.
#[must_use]
pub fn explain() -> String {
    let limit = getrlimit(Resource::RLIMIT_FSIZE).map_or(0, |(soft, _)| soft);
    format!(
        "the store's server (pid {}) may not make files of more than {limit} bytes (RLIMIT_FSIZE), as who started it \
         may not: end it (stasis store --stop), and use the store first where there is no such limit (ulimit -f)",
        std::process::id()
    )
}
