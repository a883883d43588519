//! How a failure is told: one record on the report pipe, then the end.

use core::{
    ffi::CStr,
    sync::atomic::{AtomicI32, Ordering},
};

use stasis_protocol::plan::{Failure, Header};
use stasis_sys::{
    Errno,
    file::{self, Fd},
    process,
};

static REPORT: AtomicI32 = AtomicI32::new(-1);

/// The checkpoint thread, whose own table has the pipe until all threads are there; 0: it is not made yet.
static HOLDER: AtomicI32 = AtomicI32::new(0);

pub fn set_holder(tid: i32) {
    HOLDER.store(tid, Ordering::Relaxed);
}

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
    if file::write(REPORT.load(Ordering::Relaxed), bytes).is_err()
        && let Some(report) = open_again()
    {
        let _ = file::write(report, bytes);
    }
    process::exit_group(1)
}

/// The pipe, when the program's table does not have it any more.
fn open_again() -> Option<Fd> {
    let mut path = [0u8; 64];
    let (mut len, holder) = (0, HOLDER.load(Ordering::Relaxed));
    let mut append = |bytes: &[u8]| {
        path.get_mut(len..len + bytes.len())?.copy_from_slice(bytes);
        len += bytes.len();
        Some(())
    };
    for (text, number) in [(&b"/proc/self/task/"[..], holder), (b"/fd/", REPORT.load(Ordering::Relaxed))] {
        append(text)?;
        let mut digits = [0u8; 10];
        let (mut at, mut rest) = (digits.len(), u32::try_from(number).ok()?);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        append(&digits[at..])?;
    }
    file::open(CStr::from_bytes_until_nul(&path).ok()?, libc::O_WRONLY, 0).ok()
}

/// The value, or the end of the process.
pub fn expect<T>(result: stasis_sys::Result<T>, step: u64, index: usize, address: u64) -> T {
    match result {
        Ok(value) => value,
        Err(Errno(errno)) => fail(step, index, errno, address),
    }
}
