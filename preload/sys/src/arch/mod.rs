//! What depends on the processor.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::{
    PROTECTION_KEYS, allow_all_memory, cpuid, has_protection_keys, raw, rdfsbase, xcr0, xsave_offsets,
    xsave_size,
};
