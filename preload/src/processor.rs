//! The processor, asked once: in a virtual machine CPUID goes to the hypervisor, which takes 1 to 15 µs, and there is a score of
//! questions.

use core::cell::UnsafeCell;

/// As many register sets as XCR0 has bits behind SSE's.
const SETS: usize = 62;

/// What the program may have found out about the processor and built on.
#[derive(Clone, Copy)]
pub struct Processor {
    pub cpuid: [u32; 6],
    pub xcr0: u64,
    pub xsave_size: u32,
    pub has_protection_keys: bool,
    offsets: [(u32, u32); SETS],
    count: usize,
}

impl Processor {
    fn ask() -> Self {
        let mut asked = Self {
            cpuid: stasis_sys::cpuid(),
            xcr0: stasis_sys::xcr0(),
            xsave_size: stasis_sys::xsave_size(),
            has_protection_keys: stasis_sys::has_protection_keys(),
            offsets: [(0, 0); SETS],
            count: 0,
        };
        for (place, offset) in asked.offsets.iter_mut().zip(stasis_sys::xsave_offsets()) {
            *place = offset;
            asked.count += 1;
        }
        asked
    }

    /// Where XSAVE stores each register set: its number, the offset in bytes.
    pub fn xsave_offsets(&self) -> &[(u32, u32)] {
        &self.offsets[..self.count]
    }
}

struct Known(UnsafeCell<Option<Processor>>);

// SAFETY: used by the checkpoint thread only, or before it exists.
unsafe impl Sync for Known {}

static KNOWN: Known = Known(UnsafeCell::new(None));

/// The processor of this process.
pub fn get() -> &'static Processor {
    // SAFETY: see `Known`.
    let known = unsafe { &mut *KNOWN.0.get() };
    known.get_or_insert_with(Processor::ask)
}

/// In a restored process, which may be on another one; and in a forked one, whose parent may just have been asking.
pub fn forget() {
    // SAFETY: see `Known`.
    unsafe { *KNOWN.0.get() = None };
}
