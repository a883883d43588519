//! The kernel's interface, called directly: what the preload library and the restorer use instead
//! of libc.
//!
//! Nothing here touches errno, thread-local storage, a lock or an allocator, so it may be called in
//! a signal handler, on a thread that libc does not know, and before or after libc exists.
//!
//! Not here: policy. A wrapper here is one system call, with its arguments typed.

#![no_std]

mod arch;
mod call;
pub mod file;
pub mod memory;
pub mod pagemap;
pub mod process;
pub mod queue;
pub mod socket;
pub mod sync;
pub mod system_v;
pub mod terminal;
pub mod userfaultfd;

pub use arch::{
    PROTECTION_KEYS, allow_all_memory, cpuid, has_protection_keys, raw, rdfsbase, xcr0, xsave_offsets,
    xsave_size,
};
pub use call::{Errno, Result};
