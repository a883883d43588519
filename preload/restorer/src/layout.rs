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

/// Unmaps all that is outside the area and maps what the plan says.
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
    let end = area.start + area.len;
    // SAFETY: all code and data in use are in the area.
    unsafe {
        report::expect(memory::unmap(0, area.start), step::UNMAP, 0, 0);
        report::expect(memory::unmap(end, arch::ADDRESS_END - end), step::UNMAP, 1, end as u64);
    }
    for (index, (mapping, place)) in wanted.iter().zip(places).enumerate() {
        // SAFETY: nothing is mapped outside the area.
        let moved = unsafe { memory::move_to(place.start, place.len, mapping.start as usize) };
        report::expect(moved, step::KERNEL_MAPPING, index, mapping.start);
    }
    for (index, mapping) in plan.mappings().iter().enumerate() {
        let flags = mapping.flags as i32 | libc::MAP_FIXED_NOREPLACE;
        let (start, len) = (mapping.start as usize, mapping.len as usize);
        // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
        let mapped =
            unsafe { memory::map(start, len, mapping.protection as i32, flags, mapping.fd, mapping.offset) };
        if report::expect(mapped, step::MAP, index, mapping.start) != start {
            report::fail(step::MAP, index, libc::EEXIST, mapping.start);
        }
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
    let mut used = 0;
    while used < content.len() {
        match file::read(fd, &mut content[used..]) {
            Ok(0) | Err(_) => break,
            Ok(read) => used += read,
        }
    }
    let _ = file::close(fd);
    let mut lines = content[..used].split(|&byte| byte == b'\n');
    let Some(line) = lines.find(|line| line.ends_with(name)) else { return Place::default() };
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
