//! Contexts of kernel AIO (io_setup(2)). A context is known by the address of its ring, a mapping that the kernel makes and lets
//! be moved (fs/aio.c, `aio_ring_mremap`): after a restart a new one is moved to where the old one was, and given the events that
//! nobody had taken. The kernel tells nobody of requests that are in flight: those are lost.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use stasis_protocol::image::Backing;
use stasis_sys::{
    file, memory,
    process::{self, read_memory},
};

use crate::snapshot::mappings::Found;

/// What /proc/PID/maps calls a ring, without ` (deleted)`.
pub const NAME: &str = "/[aio]";

/// struct aio_ring: id, number of events, head, tail, magic, two sets of features, the length of this; then the events.
const HEADER: usize = 32;
/// struct io_event (linux/aio_abi.h).
const EVENT: usize = 32;

#[derive(Serialize, Deserialize)]
pub struct Context {
    address: u64,
    len: u64,
    /// As they lie in the ring.
    events: Vec<u8>,
}

/// Whether the last checkpoint has found contexts.
static HAD: AtomicBool = AtomicBool::new(false);

/// Whether requests may have written to memory since the last checkpoint: they hold on to pages, and lift no protection. `found`: the
/// mappings that there are.
pub fn may_write(found: &[Found]) -> bool {
    let has = found.iter().any(|found| is_ring(&found));
    HAD.swap(has, Ordering::Relaxed) || has
}

fn is_ring(found: &&Found) -> bool {
    found.mapping.shared && found.mapping.backing == Backing::Anonymous
}

/// The contexts of this process, whose threads stand still.
pub fn capture(mappings: &[Found]) -> Vec<Context> {
    mappings.iter().filter(is_ring).map(|found| look(found.mapping.start, found.mapping.end)).collect()
}

fn look(address: u64, end: u64) -> Context {
    let mut context = Context { address, len: end - address, events: Vec::new() };
    let Some([_, room, head, tail]) = header(address) else { return context };
    // The program may write there.
    if room == 0 || context.len < (HEADER + room as usize * EVENT) as u64 || head >= room || tail >= room {
        return context;
    }
    let mut at = head;
    while at != tail {
        let mut event = [0; EVENT];
        if read_memory(address as usize + HEADER + at as usize * EVENT, &mut event) != Ok(EVENT) {
            break;
        }
        context.events.extend_from_slice(&event);
        at = (at + 1) % room;
    }
    context
}

/// The first words of a ring: id, number of events, head, tail.
fn header(address: u64) -> Option<[u32; 4]> {
    let mut words = [0; 16];
    (read_memory(address as usize, &mut words) == Ok(16)).then(|| {
        let mut header = [0; 4];
        for (to, from) in header.iter_mut().zip(words.as_chunks::<4>().0) {
            *to = u32::from_ne_bytes(*from);
        }
        header
    })
}

/// Makes a context again; `None` where that failed: calls by it give EINVAL.
pub fn put_back(context: &Context) -> Option<()> {
    let (address, len) = (context.address as usize, context.len as usize);
    // The kernel takes twice as many and two, and fills the last page with more (`aio_setup_ring`).
    let events = (len.checked_sub(HEADER)? / EVENT).checked_sub(2)? / 2;
    let mut made = 0usize;
    // SAFETY: io_setup(2) fills in a word.
    unsafe { process::with(libc::SYS_io_setup, [events, 0, 0, 0, 0, 0], 1, &mut made) }.ok()?;
    let [_, room, ..] = header(made as u64)?;
    // A machine of very many processors gives more than was asked for.
    // SAFETY: what is at the address was mapped to keep the place.
    let moved =
        room as usize == (len - HEADER) / EVENT && unsafe { memory::move_to(made, len, address) }.is_ok();
    if !moved {
        let _ = process::numbers(libc::SYS_io_destroy, [made, 0, 0, 0, 0]);
        return None;
    }
    let count = context.events.len() / EVENT;
    if fill(address, count).is_none() {
        let _ = process::numbers(libc::SYS_io_destroy, [address, 0, 0, 0, 0]);
        return None;
    }
    // SAFETY: the ring is mapped there, and has this many events; no other thread runs.
    unsafe {
        let to = (address + HEADER) as *mut u8;
        core::ptr::copy_nonoverlapping(context.events.as_ptr(), to, count * EVENT);
    }
    Some(())
}

/// struct iocb (linux/aio_abi.h): 64 bytes.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    _reserved: u64,
    more_flags: u32,
    result_fd: u32,
}

/// Has the kernel put so many events into a new context, of requests that end at once: it keeps where the next one goes.
fn fill(address: usize, count: usize) -> Option<()> {
    if count == 0 {
        return Some(());
    }
    let null = file::open(c"/dev/null", libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    let mut byte = [0u8; 1];
    let request = Request { fd: null as u32, buffer: byte.as_mut_ptr() as u64, len: 1, ..Request::default() };
    let list = [&raw const request as usize];
    let submit = || process::numbers(libc::SYS_io_submit, [address, 1, list.as_ptr() as usize, 0, 0]);
    let submitted = (0..count).all(|_| submit() == Ok(1));
    let _ = file::close(null);
    let [_, _, head, tail] = header(address as u64)?;
    (submitted && head == 0 && tail as usize == count).then_some(())
}
