//! x86-64: entering and leaving the stop handler, starting the checkpoint thread, registers.

mod calls;
mod entry;
mod frame;
mod patch;

pub use calls::{Stub, behind_injection, stub_at, wrapped_call};
pub use entry::{
    allow_unaligned, begin_anew, clone_thread, glibc_rseq_symbols, handler, is_interpreted, park,
    resume_entry, return_from_signal,
};
pub use frame::Frame;
pub use patch::{JUMP, is_stub_of, jump};
