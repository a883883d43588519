//! The address space: away with the old, in with the saved.

use stasis_protocol::plan::step;
use stasis_sys::{file, memory};

use crate::{
    arch,
    plan::Plan,
    relocate::{self, PARKING},
    report,
};

/// Where a kernel mapping of this fresh process lies.
#[derive(Clone, Copy, Default)]
struct Place {
    start: usize,
    len: usize,
}

/// vvar, vvar_vclock, vdso; some kernels have fewer.
const KERNEL_MAPPINGS: usize = 8;

/// Unmaps all that is outside the area and not staged, maps what the plan says and moves what is staged to its place.
pub fn replace(plan: &Plan) {
    let area = relocate::area(plan);
    let wanted = plan.kernel_mappings();
    if wanted.len() > KERNEL_MAPPINGS {
        report::fail(step::KERNEL_MAPPING, wanted.len(), libc::E2BIG, 0);
    }
    // They may lie where something else is to come, or where another of them is to come: by way of the
    // parking place.
    let mut places = [Place::default(); KERNEL_MAPPINGS];
    let mut parked = area.parking;
    for (index, mapping) in wanted.iter().enumerate() {
        let place = find(&mapping.name);
        if place.len as u64 != mapping.len || parked + place.len > area.parking + PARKING {
            report::fail(step::KERNEL_MAPPING, index, libc::EINVAL, mapping.start);
        }
        // SAFETY: nobody uses the vDSO here, and the parking place is ours.
        let moved = unsafe { memory::move_to(place.start, place.len, parked) };
        report::expect(moved, step::KERNEL_MAPPING, index, mapping.start);
        places[index] = Place { start: parked, len: place.len };
        parked += place.len;
    }
    // The area is kept in its turn.
    let (mut at, mut is_behind) = (0, false);
    for &[start, _, len] in plan.staged() {
        if !is_behind && area.start < start as usize {
            unmap(at, area.start);
            (at, is_behind) = (area.start + area.len, true);
        }
        unmap(at, start as usize);
        at = (start + len) as usize;
    }
    if !is_behind {
        unmap(at, area.start);
        at = area.start + area.len;
    }
    unmap(at, arch::ADDRESS_END);
    for (index, (mapping, place)) in wanted.iter().zip(places).enumerate() {
        // SAFETY: nothing is mapped outside the area.
        let moved = unsafe { memory::move_to(place.start, place.len, mapping.start as usize) };
        report::expect(moved, step::KERNEL_MAPPING, index, mapping.start);
    }
    for (index, mapping) in plan.mappings().iter().enumerate() {
        let flags = mapping.flags as i32 | libc::MAP_FIXED_NOREPLACE;
        let (start, len) = (mapping.start as usize, mapping.len as usize);
        let map = |flags| {
            // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
            unsafe { memory::map(start, len, mapping.protection as i32, flags, mapping.fd, mapping.offset) }
        };
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapped = map(flags).or_else(|error| match error.0 {
            // It was there, on a machine that promised more memory then, or to somebody else.
            libc::ENOMEM if flags & private == private => map(flags | libc::MAP_NORESERVE),
            _ => Err(error),
        });
        if report::expect(mapped, step::MAP, index, mapping.start) != start {
            report::fail(step::MAP, index, libc::EEXIST, mapping.start);
        }
    }
    for (index, &[from, to, len]) in plan.staged().iter().enumerate() {
        // SAFETY: the plan maps nothing there: it is the place of this memory.
        let moved = unsafe { memory::move_to(from as usize, len as usize, to as usize) };
        report::expect(moved, step::MAP, index, to);
    }
}

/// Unmaps from `start` up to `end`, where all is of the fresh process.
fn unmap(start: usize, end: usize) {
    if start < end {
        // SAFETY: all code and data in use are in the area.
        report::expect(unsafe { memory::unmap(start, end - start) }, step::UNMAP, 0, start as u64);
    }
}

/// Looks for a mapping by its name in /proc/self/maps.
fn find(name: &[u8; 16]) -> Place {
    let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let name = &name[..len];
    let mut content = [0u8; 8192];
    let Ok(fd) = file::open(c"/proc/self/maps", libc::O_RDONLY | libc::O_CLOEXEC, 0) else {
        return Place::default();
    };
    let (mut used, mut found) = (0, Place::default());
    // The kernel gives whole lines; what it gives at a time may end with any of them.
    while let Ok(read @ 1..) = file::read(fd, &mut content[used..]) {
        used += read;
        let whole = content[..used].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = content[..whole].split(|&byte| byte == b'\n');
        if let Some(line) = lines.find(|line| line.ends_with(name)) {
            found = place(line);
            break;
        }
        content.copy_within(whole..used, 0);
        used -= whole;
    }
    let _ = file::close(fd);
    found
}

/// The bounds at the beginning of a line.
fn place(line: &[u8]) -> Place {
    let mut bounds = [0usize; 2];
    let mut which = 0;
    for &byte in line {
        match byte {
            b'-' => which = 1,
            b' ' => break,
            _ => bounds[which] = bounds[which] << 4 | (byte as char).to_digit(16).unwrap_or(0) as usize,
        }
    }
    Place { start: bounds[0], len: bounds[1].wrapping_sub(bounds[0]) }
}
