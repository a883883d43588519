//! x86-64: entering and leaving the stop handler, starting the checkpoint thread, registers.

mod cpu;
mod entry;
mod frame;

pub use cpu::{cpuid, xcr0, xsave_size};
pub use entry::{clone_thread, glibc_rseq_symbols, park, resume_entry, return_from_signal};
pub use frame::Frame;
