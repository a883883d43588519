//! What the program may have found out about the processor and built on.

use core::arch::x86_64::{__cpuid, __cpuid_count};

/// CPUID 1 (ECX, EDX), 7.0 (EBX, ECX, EDX), 7.1 (EAX). Bits of CPUID 1 that the system sets or that
/// vary from core to core (OSXSAVE is kept; the APIC id is in EBX, not here) need no masking.
pub fn cpuid() -> [u32; 6] {
    let highest = __cpuid(0).eax;
    let one = __cpuid(1);
    let (seven, seven_one) = if highest >= 7 {
        let seven = __cpuid_count(7, 0);
        let sub = if seven.eax >= 1 { __cpuid_count(7, 1).eax } else { 0 };
        ((seven.ebx, seven.ecx, seven.edx), sub)
    } else {
        ((0, 0, 0), 0)
    };
    [one.ecx, one.edx, seven.0, seven.1, seven.2, seven_one]
}

/// The register sets that the system saves with XSAVE (Intel SDM 1, 13.3); 0 without OSXSAVE.
pub fn xcr0() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: XGETBV with ECX = 0 is available when OSXSAVE is set.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Protection keys beside the one that all memory has (pkeys(7)), a bit each.
pub const PROTECTION_KEYS: u32 = 0xfffe;

/// Whether memory can have protection keys here: OSPKE (Intel SDM 2A, CPUID).
pub fn has_protection_keys() -> bool {
    const OSPKE: u32 = 1 << 4;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ecx & OSPKE != 0
}

/// Lets the calling thread read and write memory under any protection key.
///
/// # Safety
/// The processor must have them: [`has_protection_keys`].
pub unsafe fn allow_all_memory() {
    // SAFETY: WRPKRU is there when OSPKE is set; it only takes restrictions away.
    unsafe {
        core::arch::asm!("wrpkru", in("eax") 0, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags));
    }
}

/// The size in bytes of what XSAVE stores for the enabled register sets.
pub fn xsave_size() -> u32 {
    if xcr0() == 0 { 512 } else { __cpuid_count(0xd, 0).ebx }
}

/// Where XSAVE stores the register sets of XCR0 behind SSE's (bits 0 and 1 have fixed places): the number of each and its offset
/// in bytes.
pub fn xsave_offsets() -> impl Iterator<Item = (u32, u32)> {
    let sets = xcr0();
    (2..63).filter(move |set| sets >> set & 1 != 0).map(|set| (set, __cpuid_count(0xd, set).ebx))
}
