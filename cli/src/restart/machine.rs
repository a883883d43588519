//! Whether this machine's processor can go on with the image.

use stasis_protocol::{coordinator::Refusal, image::Machine};

use super::refusal;

/// Names of the feature bits whose loss people meet: word of [`Machine::cpuid`], bit, name (Intel SDM 2A, CPUID).
const FEATURES: [(usize, u32, &str); 16] = [
    (0, 0, "sse3"),
    (0, 9, "ssse3"),
    (0, 12, "fma"),
    (0, 19, "sse4.1"),
    (0, 20, "sse4.2"),
    (0, 23, "popcnt"),
    (0, 25, "aes"),
    (0, 28, "avx"),
    (2, 3, "bmi1"),
    (2, 5, "avx2"),
    (2, 8, "bmi2"),
    (2, 16, "avx512f"),
    (2, 29, "sha"),
    (2, 30, "avx512bw"),
    (2, 31, "avx512vl"),
    (4, 24, "amx-tile"),
];

/// Bits that tell of the system or the core rather than of instructions: HTT (CPUID 1, EDX 28), the hypervisor
/// (ECX 31).
const NOT_INSTRUCTIONS: [u32; 6] = [1 << 31, 1 << 28, 0, 0, 0, 0];

pub fn check(image: &Machine, refusals: &mut Vec<Refusal>) {
    let here = stasis_sys::cpuid();
    let mut missing = Vec::new();
    for word in 0..here.len() {
        let lost = image.cpuid[word] & !here[word] & !NOT_INSTRUCTIONS[word];
        for bit in (0..32).filter(|bit| lost & 1 << bit != 0) {
            let known = FEATURES.iter().find(|(w, b, _)| (*w, *b) == (word, bit));
            missing.push(
                known.map_or(format!("cpuid word {word} bit {bit}"), |(_, _, name)| (*name).to_string()),
            );
        }
    }
    if !missing.is_empty() {
        refusals.push(refusal(
            "the processor of this machine",
            format!("it lacks what the program may be using: {}", missing.join(", ")),
            "restart on a machine with these features",
        ));
    }
    let lost = image.xcr0 & !stasis_sys::xcr0();
    let places: Vec<(u32, u32)> = stasis_sys::xsave_offsets().collect();
    if let Some((set, offset)) = image.xsave_offsets.iter().find(|place| !places.contains(place))
        && lost == 0
    {
        refusals.push(refusal(
            "the processor of this machine",
            format!(
                "it keeps registers in other places than the image has them in: bit {set} of XCR0 is not at byte {offset} of \
                 the register state"
            ),
            "restart on a processor of the same maker",
        ));
    }
    if lost != 0 || image.xsave_size > stasis_sys::xsave_size() {
        refusals.push(refusal(
            "the processor of this machine",
            format!(
                "its register state ({} bytes, XCR0 {:#x}) does not hold the image's ({} bytes, XCR0 {:#x})",
                stasis_sys::xsave_size(),
                stasis_sys::xcr0(),
                image.xsave_size,
                image.xcr0
            ),
            "restart on a machine with these features",
        ));
    }
}
