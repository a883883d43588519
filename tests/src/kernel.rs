//! What the running kernel can do, found without asking Stasis: a test of it must not pass because Stasis
//! thinks that it has nothing to do.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use crate::requirement::skip;

/// Whether userfaultfd has asynchronous write protection (Linux 6.7); says so where the test is skipped.
pub fn has_wp_async() -> bool {
    is_since((6, 7), "has no asynchronous write protection")
}

/// Whether each pid namespace has a highest id of its own (Linux 6.14); says so where the test is skipped.
pub fn has_id_limits_of_namespaces() -> bool {
    is_since((6, 14), "has one highest id for all pid namespaces")
}

/// Whether the kernel is of this version or later; `lack`: what is said of one before.
fn is_since(wanted: (u32, u32), lack: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let is = version(&release) >= wanted;
    if !is {
        skip(&format!("Linux {} {lack} ({}.{})", release.trim(), wanted.0, wanted.1));
    }
    is
}

/// Whether pages that are written have a bit that tells (CONFIG_MEM_SOFT_DIRTY); says so where the test is skipped.
pub fn has_soft_dirty() -> bool {
    const SOFT_DIRTY: u64 = 1 << 55;
    const PAGE: usize = 4096;
    let mut pages = vec![1u8; 3 * PAGE];
    let at = pages.as_ptr().addr().next_multiple_of(PAGE);
    fs::write("/proc/self/clear_refs", "4").expect("clear_refs takes 4 with and without soft-dirty bits");
    let written = at - pages.as_ptr().addr();
    // SAFETY: inside the vector.
    unsafe { pages.as_mut_ptr().add(written).write_volatile(2) };
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").expect("/proc is mounted");
    pagemap.read_exact_at(&mut entry, (at / PAGE * 8) as u64).expect("the page's entry");
    let has = u64::from_ne_bytes(entry) & SOFT_DIRTY != 0;
    if !has {
        skip(
            "this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY); `cargo xtask vm 6.1` boots one that has",
        );
    }
    has
}

/// Major and minor number of a release, as `6.1.0-56-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(version("6.1.0-56-amd64"), (6, 1));
        assert_eq!(version("6.18.44-fc-v669"), (6, 18));
        assert!(version("6.18") > version("6.7.1"));
    }
}
