//! Moving the restorer out of the way of the layout to come.

use stasis_protocol::plan::step;
use stasis_sys::memory;

use crate::{arch, hash::Hash, plan::Plan, report};

/// Elf64_Dyn.
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: u64,
}

/// Elf64_Rela.
#[repr(C)]
struct Relocation {
    offset: u64,
    info: u64,
    addend: i64,
}

const DT_NULL: i64 = 0;
const DT_RELA: i64 = 7;
const DT_RELASZ: i64 = 8;
const R_X86_64_RELATIVE: u64 = 8;

/// Where the program lies.
fn image() -> (usize, usize) {
    let (start, end) = arch::program();
    (start, end - start)
}

/// Writes every address that the program holds of itself: a copy at `to` then means `base`.
///
/// # Safety
/// `to` is a copy of the program (or itself), writable where its data is.
unsafe fn relocate(to: usize, base: usize) {
    let (start, _) = image();
    let (mut table, mut bytes) = (0, 0);
    let mut entry = arch::dynamic_section() as *const Dynamic;
    // SAFETY: the linker ends the dynamic section with DT_NULL and describes one relocation table; all
    // relocations of a static-pie without undefined symbols are relative.
    unsafe {
        while (*entry).tag != DT_NULL {
            match (*entry).tag {
                DT_RELA => table = start + (*entry).value as usize,
                DT_RELASZ => bytes = (*entry).value as usize,
                _ => {}
            }
            entry = entry.add(1);
        }
        let table = table as *const Relocation;
        for index in 0..bytes / size_of::<Relocation>() {
            let relocation = &*table.add(index);
            if relocation.info == R_X86_64_RELATIVE {
                let address = (base as i64).wrapping_add(relocation.addend) as u64;
                ((to + relocation.offset as usize) as *mut u64).write_unaligned(address);
            }
        }
    }
}

/// Makes the program usable where the kernel loaded it.
///
/// # Safety
/// To be called first of all.
pub unsafe fn apply_in_place() {
    let (start, _) = image();
    // SAFETY: linked with norelro: what is relocated is writable.
    unsafe { relocate(start, start) };
}

/// Each part of the area begins on a page.
const PAGE: usize = stasis_protocol::PAGE_SIZE;

/// Stack of the leader and of each thread that fills memory, in bytes: with a compressed block and what it holds.
pub const STACK: usize = 256 << 10;

/// Stack of a thread on its way into restored memory: it makes a few system calls.
pub const THREAD_STACK: usize = PAGE;

/// The parts of the area: this program, the plan, the hashes, room to park the kernel's mappings, stacks.
pub struct Area {
    pub start: usize,
    pub len: usize,
    pub plan: usize,
    pub hashes: usize,
    /// Their bytes.
    pub hashes_len: usize,
    pub parking: usize,
    pub stacks: usize,
}

/// Room for the kernel's mappings on their way, in bytes.
pub const PARKING: usize = 256 << 10;

pub fn area(plan: &Plan) -> Area {
    let header = plan.header();
    let (_, image_len) = image();
    let start = header.area as usize;
    let plan_at = start + image_len.next_multiple_of(PAGE);
    let hashes = plan_at + (header.len as usize).next_multiple_of(PAGE);
    let hashes_len = header.hashes as usize * size_of::<Hash>();
    let parking = hashes + hashes_len.next_multiple_of(PAGE);
    let (len, stacks) = (header.area_len as usize, parking + PARKING);
    Area { start, len, plan: plan_at, hashes, hashes_len, parking, stacks }
}

/// Copies the program and the plan into the area and goes on there, in [`crate::second`].
pub fn go_on_in_area(plan: &Plan) -> ! {
    let area = area(plan);
    let threads = plan.threads().len() + 1;
    let needed = area.stacks + STACK * (1 + plan.header().fillers as usize) + THREAD_STACK * threads;
    if needed > area.start + area.len {
        report::fail(step::AREA, 0, libc::ENOSPC, needed as u64);
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
    let mapped = unsafe { memory::map(area.start, area.len, protection, flags, -1, 0) };
    if report::expect(mapped, step::AREA, 0, area.start as u64) != area.start {
        report::fail(step::AREA, 0, libc::EEXIST, area.start as u64);
    }
    if area.hashes_len > 0 {
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_FIXED, plan.header().hashes_fd as i32);
        // SAFETY: this part of the area is not used yet.
        let mapped = unsafe { memory::map(area.hashes, area.hashes_len, libc::PROT_READ, flags, fd, 0) };
        report::expect(mapped, step::AREA, 1, area.hashes as u64);
    }
    let (image_start, image_len) = image();
    let second = crate::second as *const () as usize - image_start + area.start;
    // SAFETY: the area is ours and large enough; the copy is relocated before it runs.
    unsafe {
        core::ptr::copy_nonoverlapping(image_start as *const u8, area.start as *mut u8, image_len);
        relocate(area.start, area.start);
        core::ptr::copy_nonoverlapping(
            plan.base() as *const u8,
            area.plan as *mut u8,
            plan.header().len as usize,
        );
        let stack = area.stacks + STACK;
        // The plan's handle is passed through the stack's far end.
        let handle = (stack - size_of::<Plan>()) as *mut Plan;
        handle.write(Plan::at(area.plan));
        arch::call_on((handle as usize) & !15, second, handle as usize)
    }
}
