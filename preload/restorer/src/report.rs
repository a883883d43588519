//! How a failure is told: one record on the report pipe, then the end.

use core::sync::atomic::{AtomicI32, Ordering};

use stasis_protocol::plan::{Failure, Header};
use stasis_sys::{Errno, file, process};

static REPORT: AtomicI32 = AtomicI32::new(-1);

pub fn set(header: &Header) {
    REPORT.store(header.report_fd as i32, Ordering::Relaxed);
}

/// Ends the process, saying at which step and why.
pub fn fail(step: u64, index: usize, errno: i32, address: u64) -> ! {
    let pid = process::getpid() as u64;
    let failure = Failure { step, index: index as u64, errno: errno as u64, address, pid };
    // SAFETY: words without padding.
    let bytes =
        unsafe { core::slice::from_raw_parts((&raw const failure).cast::<u8>(), size_of::<Failure>()) };
    let _ = file::write(REPORT.load(Ordering::Relaxed), bytes);
    process::exit_group(1)
}

/// The value, or the end of the process.
pub fn expect<T>(result: stasis_sys::Result<T>, step: u64, index: usize, address: u64) -> T {
    match result {
        Ok(value) => value,
        Err(Errno(errno)) => fail(step, index, errno, address),
    }
}
