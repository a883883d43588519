//! What waits on a socket, for SO_RCVTIMEO and SO_SNDTIMEO: such a call is not restarted by the kernel,
//! and nobody but its caller knows when it began.
//!
//! Each of these functions is one jump through a slot, to libc's own, until the program sets such an
//! option for the first time (read(2)'s: or until events are kept for it, [`mod@read`]). From then on the slots lead to functions here that note when they begin.
//! A socket that came with the option over exec(2) or SCM_RIGHTS is not noticed: its calls then have their
//! whole time again after a checkpoint.

use core::{
    arch::naked_asm,
    ffi::CStr,
    mem::MaybeUninit,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use libc::{c_int, c_void, socklen_t};
use stasis_sys::process;

use super::{fill_cancellable, finish, given, next, now, read, returned, table::Time, wrap};
use crate::{
    arch,
    confined::{self, REUSEPORT},
    interrupted::{call::Call, remaining},
};

/// Whether the program has set a time-out on a socket.
static TIMEOUTS: AtomicBool = AtomicBool::new(false);

pub fn have_timeouts() -> bool {
    TIMEOUTS.load(Ordering::Relaxed)
}

/// A function that can be led elsewhere.
struct Slot {
    name: &'static CStr,
    target: &'static AtomicUsize,
    noted: usize,
}

/// The first arguments count; the system call's others are zero (recv(2) is recvfrom(2) without an
/// address).
extern "C" fn prepare<const NR: i64, const KEPT: usize, const NOTED: bool>(call: &mut MaybeUninit<Call>) {
    let mut arguments = given(call);
    arguments[KEPT..].fill(0);
    let call = fill_cancellable(call, NR, arguments);
    if NOTED {
        call.started = now();
    }
}

/// Where a slot leads: before the constructor has found libc's function, and after the first time-out.
#[unsafe(naked)]
unsafe extern "C" fn make<const NR: i64, const KEPT: usize, const NOTED: bool>() {
    naked_asm!(
        ".cfi_startproc",
        "lea rax, [rip + {prepare}]",
        "lea r11, [rip + {finish}]",
        "jmp {call}",
        ".cfi_endproc",
        prepare = sym prepare::<NR, KEPT, NOTED>,
        finish = sym finish,
        call = sym arch::wrapped_call,
    )
}

macro_rules! slots {
    ($($name:ident $target:ident = $nr:ident, $count:literal;)*) => {
        $(
            static $target: AtomicUsize = AtomicUsize::new(0);

            #[doc = concat!(stringify!($name), "(2).")]
            ///
            /// # Safety
            /// The call's.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                naked_asm!(
                    ".cfi_startproc",
                    "mov rax, [rip + {target}]",
                    "test rax, rax",
                    "jz {plain}",
                    "jmp rax",
                    ".cfi_endproc",
                    target = sym $target,
                    plain = sym make::<{ libc::$nr }, $count, false>,
                )
            }
        )*

        static SLOTS: [fn() -> Slot; [$(stringify!($name)),*].len()] = [$(
            || Slot {
                // SAFETY: ends with its only NUL.
                name: unsafe {
                    CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes())
                },
                target: &$target,
                noted: make::<{ libc::$nr }, $count, true> as *const () as usize,
            }
        ),*];
    };
}

slots! {
    read READ = SYS_read, 3;
    write WRITE = SYS_write, 3;
    readv READV = SYS_readv, 3;
    writev WRITEV = SYS_writev, 3;
    recv RECV = SYS_recvfrom, 4;
    recvfrom RECVFROM = SYS_recvfrom, 6;
    recvmsg RECVMSG = SYS_recvmsg, 3;
    send SEND = SYS_sendto, 4;
    sendto SENDTO = SYS_sendto, 6;
    sendmsg SENDMSG = SYS_sendmsg, 3;
    sendmmsg SENDMMSG = SYS_sendmmsg, 4;
    accept ACCEPT = SYS_accept, 3;
    accept4 ACCEPT4 = SYS_accept4, 4;
    connect CONNECT = SYS_connect, 3;
}

/// recvmmsg(2), which the kernel restarts with the whole of the time-out that is its argument.
extern "C" fn prepare_recvmmsg(call: &mut MaybeUninit<Call>) {
    let [fd, messages, count, flags, timeout, _] = given(call);
    let call = fill_cancellable(call, libc::SYS_recvmmsg, [fd, messages, count, flags, timeout, 0]);
    note_between(call);
}

wrap!(
    /// recvmmsg(2).
    recvmmsg, prepare_recvmmsg, finish_between
);

/// Notes when a call of recvmmsg(2) begins, and when its own time-out is over: that is given to the kernel in a
/// copy, which can be changed.
pub fn note_between(call: &mut Call) {
    if have_timeouts() {
        call.started = now();
    }
    // The system call takes five arguments: the sixth is where the program's time-out is.
    let timeout = call.arguments[4];
    call.arguments[5] = 0;
    let mut bytes = [0u8; size_of::<libc::timespec>()];
    // An address that cannot be read is the kernel's to refuse.
    if timeout == 0 || process::read_memory(timeout as usize, &mut bytes) != Ok(bytes.len()) {
        return;
    }
    let [seconds, part] = *bytes.as_chunks::<8>().0 else { return };
    call.time = libc::timespec { tv_sec: i64::from_ne_bytes(seconds), tv_nsec: i64::from_ne_bytes(part) };
    call.arguments[4] = &raw const call.time as u64;
    call.arguments[5] = timeout;
    if let Some(given) = remaining::given(Time::Relative(4), &call.arguments) {
        call.between = now().saturating_add(given);
    }
}

/// The kernel leaves what is left where a message has come.
pub extern "C" fn finish_between(call: &mut Call) -> isize {
    if call.arguments[5] != 0 && (call.result > 0 || call.done > 0) {
        let _ = process::write_memory(call.arguments[5] as usize, &[call.time.tv_sec, call.time.tv_nsec]);
    }
    finish(call)
}

/// libc's functions where nobody else stands between: only these may be replaced by system calls.
static LIBC: AtomicUsize = AtomicUsize::new(0);

/// Leads the slots to the functions behind this library.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    for (index, slot) in SLOTS.iter().enumerate() {
        let slot = slot();
        // SAFETY: the caller's promise.
        if let Some(next) = unsafe { next::find(slot.name) } {
            LIBC.fetch_or(usize::from(next.is_libc) << index, Ordering::Relaxed);
            if !(next.is_libc && have_timeouts()) {
                slot.target.store(next.address, Ordering::Release);
            }
        }
    }
}

/// Where read(2) leads behind [`read::kept`].
static BEHIND_READ: AtomicUsize = AtomicUsize::new(0);

/// From now on read(2) leads to what looks for kept events.
pub fn read_kept() {
    let (kept, now) = (read::kept as *const () as usize, READ.load(Ordering::Relaxed));
    if now != kept {
        let plain = make::<{ libc::SYS_read }, 3, false> as *const () as usize;
        BEHIND_READ.store(if now == 0 { plain } else { now }, Ordering::Relaxed);
        READ.store(kept, Ordering::Release);
    }
}

/// The function behind that.
pub fn behind_read() -> usize {
    BEHIND_READ.load(Ordering::Relaxed)
}

/// From now on the beginning of every call is noted.
fn note_beginnings() {
    if TIMEOUTS.swap(true, Ordering::AcqRel) {
        return;
    }
    let libc = LIBC.load(Ordering::Relaxed);
    for (index, slot) in SLOTS.iter().enumerate() {
        let slot = slot();
        let leads_to_kept = slot.target.load(Ordering::Relaxed) == read::kept as *const () as usize;
        let target = if leads_to_kept { &BEHIND_READ } else { slot.target };
        if target.load(Ordering::Relaxed) == 0 || libc >> index & 1 != 0 {
            target.store(slot.noted, Ordering::Release);
        }
    }
}

/// setsockopt(2).
///
/// # Safety
/// setsockopt(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // asm-generic/socket.h: the options of 64-bit time, which are the same here.
    const SO_RCVTIMEO_NEW: c_int = 66;
    const SO_SNDTIMEO_NEW: c_int = 67;
    if level == libc::SOL_SOCKET
        && matches!(option, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO | SO_RCVTIMEO_NEW | SO_SNDTIMEO_NEW)
    {
        note_beginnings();
    }
    // linux/socket.h; before the call: where it succeeds, the next checkpoint must know.
    const SO_DETACH_REUSEPORT_BPF: c_int = 68;
    let chooses = level == libc::SOL_SOCKET
        && matches!(option, libc::SO_ATTACH_REUSEPORT_CBPF | libc::SO_ATTACH_REUSEPORT_EBPF);
    if chooses {
        confined::note(REUSEPORT);
    }
    let arguments = [fd as usize, level as usize, option as usize, value as usize, len as usize, 0];
    // SAFETY: the caller's call.
    let result = returned(unsafe { stasis_sys::raw(libc::SYS_setsockopt, arguments) }) as c_int;
    if level == libc::SOL_SOCKET && option == SO_DETACH_REUSEPORT_BPF && result == 0 {
        confined::withdraw(REUSEPORT);
    }
    result
}
