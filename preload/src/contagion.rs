//! Programs that this one executes join the computation, whatever environment they are given: what `stasis launch` put
//! there is added where it is missing.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_char},
    ptr,
};

use stasis_sys::memory;

use crate::confined;

/// The variables that a program needs to join.
const NAMES: [&[u8]; 5] = [PRELOAD, b"STASIS_COORD=", b"STASIS_STORE=", b"STASIS_DISABLE=", confined::NAME];

/// Where [`confined::entry`] is among them: not given, but the program's own doing.
const CONFINED: usize = 4;
const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// The longest entry, in bytes: a socket's path has 108, any other PATH_MAX.
const LONGEST: usize = 4096 + 16;

/// As this program was given them: `name=value`, ending with a zero byte; empty where it was not. Of LD_PRELOAD, only the
/// first library: `stasis launch` puts ours in front.
struct Given(UnsafeCell<[[u8; LONGEST]; NAMES.len()]>);

// SAFETY: written by the constructor, read-only afterwards.
unsafe impl Sync for Given {}

static GIVEN: Given = Given(UnsafeCell::new([[0; LONGEST]; NAMES.len()]));

/// The entry of a variable; empty where there is none.
fn given(index: usize) -> &'static [u8] {
    if index == CONFINED {
        return confined::entry();
    }
    // SAFETY: see `Given`.
    let entry = unsafe { &(*GIVEN.0.get())[index] };
    &entry[..entry.iter().position(|&byte| byte == 0).unwrap_or(0)]
}

/// The entries of an environment (execve(2)): a list of strings that ends with a null pointer; null for none.
fn entries(environment: *const *const c_char) -> impl Iterator<Item = *const c_char> {
    (0..).map_while(move |index| {
        if environment.is_null() {
            return None;
        }
        // SAFETY: not behind the last.
        let entry = unsafe { environment.add(index).read() };
        (!entry.is_null()).then_some(entry)
    })
}

fn bytes<'a>(entry: *const c_char) -> &'a [u8] {
    // SAFETY: a string of an environment.
    unsafe { CStr::from_ptr(entry) }.to_bytes()
}

/// Remembers what this program was given.
///
/// # Safety
/// In the constructor only, with its own environment.
pub unsafe fn remember(environment: *const *const c_char) {
    for entry in entries(environment).map(bytes) {
        let Some(index) = NAMES.iter().position(|name| entry.starts_with(name)) else { continue };
        let len = match index {
            CONFINED => {
                confined::inherit(entry);
                continue;
            }
            0 => entry.iter().position(|&byte| matches!(byte, b':' | b' ')).unwrap_or(entry.len()),
            _ => entry.len(),
        };
        if len < LONGEST {
            // SAFETY: the caller's promise.
            let kept = unsafe { &mut (*GIVEN.0.get())[index] };
            kept[..len].copy_from_slice(&entry[..len]);
            kept[len] = 0;
        }
    }
}

/// Room for the environment that the program sees, in words: the list, and the user's LD_PRELOAD behind it.
struct Shown(UnsafeCell<[usize; Shown::WORDS]>);

// SAFETY: written by the constructor, before the program runs; the program's own from then on.
unsafe impl Sync for Shown {}

impl Shown {
    const WORDS: usize = 640;
}

static SHOWN: Shown = Shown(UnsafeCell::new([0; Shown::WORDS]));

/// So many words, for as long as the process lives.
///
/// # Safety
/// Once, in the constructor.
unsafe fn room_to_show(count: usize) -> Option<&'static mut [usize]> {
    if count <= Shown::WORDS {
        // SAFETY: the caller's promise.
        return Some(&mut unsafe { &mut *SHOWN.0.get() }[..count]);
    }
    let address = memory::map_anonymous(count * size_of::<usize>(), 0).ok()?;
    // SAFETY: fresh memory, as much as was asked for.
    Some(unsafe { core::slice::from_raw_parts_mut(address as *mut usize, count) })
}

unsafe extern "C" {
    #[link_name = "environ"]
    static mut ENVIRON: *const *const c_char;
}

/// Has the program see LD_PRELOAD as its user has set it, without our library in front; what it executes is given that again
/// ([`Room::complete`]). A list of its own, not the one that the kernel has made: programs that execute others without libc (Go's)
/// pass that one on.
///
/// # Safety
/// In the constructor only, after [`remember`].
pub unsafe fn show_theirs() {
    let Some(ours) = given(0).get(PRELOAD.len()..) else { return };
    // SAFETY: the program's own environment.
    let environment = unsafe { ENVIRON };
    let Some(with_ours) = entries(environment).find(|&entry| loads(bytes(entry), ours)) else { return };
    // In front, where `stasis launch` and `complete` put it.
    let Some(theirs) = bytes(with_ours)[PRELOAD.len()..].strip_prefix(ours) else { return };
    let theirs = theirs.get(1..).unwrap_or_default();
    let len = PRELOAD.len() + theirs.len() + 1;
    let count = entries(environment).count() + 1;
    // SAFETY: the caller's promise.
    let Some(words) = (unsafe { room_to_show(count + len.div_ceil(size_of::<usize>())) }) else { return };
    let (list, preload) = words.split_at_mut(count);
    // SAFETY: as many bytes as there are.
    let preload =
        unsafe { core::slice::from_raw_parts_mut(preload.as_mut_ptr().cast::<u8>(), size_of_val(preload)) };
    preload[..PRELOAD.len()].copy_from_slice(PRELOAD);
    preload[PRELOAD.len()..len - 1].copy_from_slice(theirs);
    preload[len - 1] = 0;
    let shown = entries(environment).filter_map(|entry| match bytes(entry) {
        _ if entry == with_ours => (!theirs.is_empty()).then_some(preload.as_ptr().cast()),
        told if told.starts_with(confined::NAME) => None,
        _ => Some(entry),
    });
    let shown = shown.chain([ptr::null()]);
    for (slot, entry) in list.iter_mut().zip(shown) {
        *slot = entry as usize;
    }
    // SAFETY: the program does not run yet.
    unsafe { ENVIRON = list.as_ptr().cast() };
}

/// Where an environment is put together: on the stack of who executes a program, since a child of vfork(2) has no
/// other memory of its own.
pub struct Room {
    entries: [*const c_char; Room::ENTRIES],
    preload: [u8; Room::PRELOAD],
    /// Memory for an environment that is larger, and its length.
    mapped: (usize, usize),
}

impl Room {
    const ENTRIES: usize = 512;
    const PRELOAD: usize = 1024;

    pub fn new() -> Self {
        Self { entries: [ptr::null(); Self::ENTRIES], preload: [0; Self::PRELOAD], mapped: (0, 0) }
    }

    /// An environment with what programs need to join; the given one where it has all that.
    pub fn complete(&mut self, environment: *const *const c_char) -> *const *const c_char {
        if given(0).is_empty() || given(1).is_empty() {
            return environment;
        }
        let ours = &given(0)[PRELOAD.len()..];
        let mut missing = [false; NAMES.len()];
        for (index, missing) in missing.iter_mut().enumerate() {
            *missing = !given(index).is_empty()
                && !entries(environment).map(bytes).any(|entry| match index {
                    0 => loads(entry, ours),
                    _ => entry.starts_with(NAMES[index]),
                });
        }
        if missing == [false; NAMES.len()] {
            return environment;
        }
        // The first entry of a name is the one that counts (getenv(3), ld.so(8)).
        let theirs = entries(environment).map(bytes).find(|entry| entry.starts_with(PRELOAD));
        let theirs = theirs.map_or(&[][..], |entry| &entry[PRELOAD.len()..]);
        let count = entries(environment).count() + NAMES.len() + 1;
        let len = given(0).len() + 1 + theirs.len() + 1;
        let (list, preload) = match self.find(count, len) {
            Some(found) => found,
            // It goes without us, and is found missing by the next checkpoint.
            None => return environment,
        };
        let mut next = 0;
        let mut push = |entry: *const c_char| {
            list[next] = entry;
            next += 1;
        };
        for entry in entries(environment) {
            if !missing[0] || !bytes(entry).starts_with(PRELOAD) {
                push(entry);
            }
        }
        for index in (1..NAMES.len()).filter(|&index| missing[index]) {
            push(given(index).as_ptr().cast());
        }
        if missing[0] {
            let parts = [given(0), if theirs.is_empty() { b"" } else { b":" }, theirs, b"\0"];
            let mut at = 0;
            for part in parts {
                preload[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            push(preload.as_ptr().cast());
        }
        push(ptr::null());
        list.as_ptr()
    }

    /// Room for so many entries and bytes.
    fn find(&mut self, count: usize, len: usize) -> Option<(&mut [*const c_char], &mut [u8])> {
        if count <= Self::ENTRIES && len <= Self::PRELOAD {
            return Some((&mut self.entries, &mut self.preload));
        }
        let list = count * size_of::<*const c_char>();
        let address = memory::map_anonymous(list + len, 0).ok()?;
        self.mapped = (address, list + len);
        // SAFETY: fresh memory, as much as was asked for.
        unsafe {
            Some((
                core::slice::from_raw_parts_mut(address as *mut *const c_char, count),
                core::slice::from_raw_parts_mut((address + list) as *mut u8, len),
            ))
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let (address, len) = self.mapped;
        if len != 0 {
            // SAFETY: mapped by `find`, and the environment is not used any more.
            let _ = unsafe { memory::unmap(address, len) };
        }
    }
}

/// Whether an entry is an LD_PRELOAD that names a library.
fn loads(entry: &[u8], library: &[u8]) -> bool {
    entry
        .strip_prefix(PRELOAD)
        .is_some_and(|value| value.split(|&byte| matches!(byte, b':' | b' ')).any(|loaded| loaded == library))
}
