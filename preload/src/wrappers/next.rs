//! Finding the function that a wrapper stands in front of.
//!
//! dlsym(3) allocates when it fails and takes the loader's lock; this reads the loader's list of objects
//! (link.h, `_r_debug`) and their hash tables instead. In the constructor only: objects are not unloaded
//! then.

use core::ffi::{CStr, c_char};

#[repr(C)]
struct LinkMap {
    base: usize,
    name: *const c_char,
    dynamic: *const [usize; 2],
    next: *const LinkMap,
}

#[repr(C)]
struct RDebug {
    version: i32,
    map: *const LinkMap,
}

unsafe extern "C" {
    static _r_debug: RDebug;
}

core::arch::global_asm!(".hidden _DYNAMIC");

/// The address of this library's dynamic section: which of the objects it is.
fn own_dynamic() -> usize {
    let address;
    // SAFETY: computes an address.
    unsafe {
        core::arch::asm!("lea {}, [rip + _DYNAMIC]", out(reg) address, options(nomem, nostack, pure));
    }
    address
}

/// A function that is defined behind this library.
pub struct Next {
    pub address: usize,
    pub len: usize,
    /// Whether it is libc's own, not another library's that stands in front of it, too.
    pub is_libc: bool,
}

/// The next definition of `name` in the order of search.
///
/// # Safety
/// Only while no object is unloaded: in the constructor.
pub unsafe fn find(name: &CStr) -> Option<Next> {
    // SAFETY: the caller's promise.
    unsafe { find_where(name, |_| true) }
}

/// libc's own definition of `name`.
///
/// # Safety
/// As for [`find`].
pub unsafe fn find_in_libc(name: &CStr) -> Option<Next> {
    // SAFETY: the caller's promise.
    unsafe { find_where(name, |next| next.is_libc) }
}

/// The next definition of `name` that is asked for.
///
/// # Safety
/// As for [`find`].
unsafe fn find_where(name: &CStr, is_wanted: impl Fn(&Next) -> bool) -> Option<Next> {
    // SAFETY: the loader's list, complete when constructors run.
    let mut map = unsafe { _r_debug.map.as_ref() };
    let mut behind = false;
    while let Some(object) = map {
        if behind {
            // SAFETY: an object that is loaded.
            if let Some((address, len)) = unsafe { look_up(object, name) } {
                // SAFETY: a string for as long as the object is loaded.
                let path = unsafe { CStr::from_ptr(object.name) }.to_bytes();
                let next = Next { address, len, is_libc: path.ends_with(b"/libc.so.6") };
                if is_wanted(&next) {
                    return Some(next);
                }
            }
        }
        behind |= object.dynamic as usize == own_dynamic();
        // SAFETY: as above.
        map = unsafe { object.next.as_ref() };
    }
    None
}

/// glibc's `dl_new_hash`, of the GNU hash table.
fn hash(name: &CStr) -> u32 {
    name.to_bytes().iter().fold(5381, |hash: u32, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)))
}

/// The default version of a function in one object: its address and length.
///
/// # Safety
/// The object is loaded.
unsafe fn look_up(object: &LinkMap, name: &CStr) -> Option<(usize, usize)> {
    const DT_STRTAB: usize = 5;
    const DT_SYMTAB: usize = 6;
    const DT_GNU_HASH: usize = 0x6fff_fef5;
    const DT_VERSYM: usize = 0x6fff_fff0;
    let (mut strings, mut symbols, mut table, mut versions) = (0, 0, 0, 0);
    let mut entry = object.dynamic;
    loop {
        // SAFETY: the dynamic section ends with DT_NULL.
        let [tag, value] = unsafe { *entry };
        // The loader has made these addresses, but for the vDSO's.
        let address = if value < object.base { value + object.base } else { value };
        match tag {
            0 => break,
            DT_STRTAB => strings = address,
            DT_SYMTAB => symbols = address,
            DT_GNU_HASH => table = address,
            DT_VERSYM => versions = address,
            _ => {}
        }
        entry = entry.wrapping_add(1);
    }
    if strings == 0 || symbols == 0 || table == 0 {
        return None;
    }
    let hash = hash(name);
    let table = table as *const u32;
    // SAFETY: the layout of DT_GNU_HASH: four words, the bloom filter of 64-bit words, buckets, chains.
    unsafe {
        let (buckets, first, bloom) = (*table, *table.add(1), *table.add(2));
        let bucket = table.add(4 + bloom as usize * 2);
        let chain = bucket.add(buckets as usize);
        let mut index = if buckets == 0 { 0 } else { *bucket.add((hash % buckets) as usize) };
        if index < first || index == 0 {
            return None;
        }
        loop {
            let word = *chain.add((index - first) as usize);
            let symbol = &*(symbols as *const libc::Elf64_Sym).add(index as usize);
            // VERSYM_HIDDEN: an old version.
            let hidden = versions != 0 && *(versions as *const u16).add(index as usize) & 0x8000 != 0;
            let is_function = symbol.st_info & 0xf == 2 && symbol.st_shndx != 0;
            if word | 1 == hash | 1
                && !hidden
                && is_function
                && CStr::from_ptr((strings + symbol.st_name as usize) as *const c_char) == name
            {
                return Some((object.base + symbol.st_value as usize, symbol.st_size as usize));
            }
            if word & 1 != 0 {
                return None;
            }
            index += 1;
        }
    }
}
