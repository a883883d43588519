//! libstasis.so: what `stasis launch` puts into a program, by LD_PRELOAD.
//!
//! It starts one checkpoint thread, which answers the coordinator: brings the program's threads to
//! a stop inside a signal handler, copies what changed to the store server, lets them go on; and
//! which, after a restart, finds itself in the restored memory and puts back the kernel's half of
//! the state.
//!
//! Rules that hold in this crate, because its code runs inside somebody else's process:
//! - no malloc, directly or through libc; the checkpoint thread allocates from [`arena`], the
//!   program's threads never allocate here;
//! - no function of libc that the program may have another of, which may lock, count or check: the memory functions that
//!   the compiler calls are our own;
//! - no thread-local storage, no errno: the kernel is called directly (`stasis-sys`);
//! - no lock that a thread of the program may hold: while they stand still the checkpoint thread
//!   must always get on;
//! - no panic that unwinds, formats through std or allocates: [`panic`] writes one line and ends the
//!   process.
//!
//! The checkpoint thread has its own descriptor table (clone without CLONE_FILES): the program can
//! neither see nor close what Stasis has open, and inherits none of it.
//!
//! Not here: hashing, disk, policy on files at restart. Those are the store server's and
//! `stasis restart`'s.

#![no_std]

extern crate alloc;

#[macro_use]
mod procfs;

mod aio;
mod alternate;
mod arch;
mod arena;
mod births;
mod checkpoint;
mod confined;
mod contagion;
mod credentials;
mod dormant;
mod dump;
mod fork;
mod interrupted;
mod lazy;
mod link;
mod memory_policy;
mod pagemap;
mod panic;
mod precopy;
mod processor;
mod quiesce;
mod restart;
mod signal_limit;
mod slices;
mod snapshot;
mod stacks;
mod start;
mod state;
mod stop;
mod system_v;
mod threads;
mod tracker;
mod unread_events;
mod vdso;
mod watches;
mod wrappers;

stasis_sys::define_memory_functions!();
