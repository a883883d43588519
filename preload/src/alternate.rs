//! On which stack the kernel builds the frame of the stop signal: the one that a thread is on, or its alternate one
//! (sigaltstack(2)).
//!
//! An alternate stack is what was last named. It may be too small for a frame, unmapped, in other use since, or hold a handler
//! that was left by swapcontext(3) and is to go on: a frame there would end the program or overwrite what is its own. So a
//! thread's own stack is taken where it has room. Runtimes whose code runs on stacks that have none keep a good alternate stack
//! for every thread, and say so by SA_ONSTACK in the actions of all signals that may come at any time.

use stasis_sys::{
    memory,
    process::{self, KernelSigaction},
};

use crate::stop;

/// Those that an instruction raises: whoever handles them on an alternate stack looks for the end of another.
const BY_INSTRUCTIONS: [i32; 6] =
    [libc::SIGILL, libc::SIGTRAP, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV, libc::SIGSYS];

/// What the program's own actions say of its stacks.
pub struct Actions {
    /// All handlers run on alternate stacks: OCaml, Erlang, Python, the JVM.
    all_on_alternate: bool,
    /// Go: it stops its own threads by this signal, wherever they are. They wait in system calls on stacks of some 800 bytes, too,
    /// below which lie those of others (runtime/signal_unix.go, `sigPreempt`; runtime/stack.go, `stackNosplit`).
    preempts: bool,
}

impl Actions {
    pub fn ask() -> Self {
        let (mut on, mut off, mut preempts) = (false, false, false);
        for signal in (1..=64).filter(|signal| !BY_INSTRUCTIONS.contains(signal)) {
            // glibc's own two; SIGKILL and SIGSTOP have no handlers.
            if matches!(signal, libc::SIGKILL | libc::SIGSTOP | 32 | stop::SIGNAL) {
                continue;
            }
            // SAFETY: only asks.
            let action = unsafe { process::sigaction(signal, None) }.unwrap_or_default();
            let KernelSigaction { handler, flags, .. } = action;
            if handler > 1 {
                let is_on = flags & libc::SA_ONSTACK as u64 != 0;
                on |= is_on;
                off |= !is_on;
                preempts |= is_on && signal == libc::SIGURG;
            }
        }
        Self { all_on_alternate: on && !off, preempts }
    }

    /// Whether the frame of a thread belongs on its alternate stack, if it has one. `sp`: where its stack ends, if it waits in a
    /// system call; the kernel tells of no other.
    pub fn want_alternate(&self, sp: Option<u64>) -> bool {
        self.preempts || sp.map_or(self.all_on_alternate, |sp| !has_room(sp as usize))
    }
}

/// Whether a frame fits below `sp`, and the handler's first steps.
fn has_room(sp: usize) -> bool {
    /// The frame is 3.4 KiB with AVX-512, 11.7 KiB where the program uses AMX (AT_MINSIGSTKSZ).
    const ROOM: usize = 13 << 10;
    const PAGE: usize = 4096;
    let end = sp.next_multiple_of(PAGE);
    let Some(start) = sp.checked_sub(ROOM).map(|start| start & !(PAGE - 1)) else { return false };
    // SAFETY: what is not there yet is read, which makes it zeros; a guard fails.
    match unsafe { memory::advise(start, end - start, libc::MADV_POPULATE_READ) } {
        Ok(()) => true,
        // Before Linux 5.14.
        Err(error) => error.0 == libc::EINVAL,
    }
}
