//! Reading the plan: bounds are checked, content is trusted (who wrote it runs with the same rights).

use stasis_protocol::{
    VERSION,
    plan::{Array, Call, Fill, Header, KernelMapping, MAGIC, Mapping, Thread},
};
use stasis_sys::{
    Errno,
    file::{self, Fd},
    memory, raw,
};

use crate::{hash::Hash, relocate, report, turns::Turns};

/// A mapped plan.
#[derive(Clone, Copy)]
pub struct Plan {
    base: *const u8,
}

impl Plan {
    /// Maps the plan from the descriptor whose number is the NUL-terminated decimal `argument`.
    pub fn map(argument: *const u8) -> Option<Self> {
        let mut fd = 0i32;
        let mut at = argument;
        loop {
            // SAFETY: a NUL-terminated string.
            match unsafe { at.read() } {
                0 => break,
                digit @ b'0'..=b'9' => fd = fd.checked_mul(10)?.checked_add(i32::from(digit - b'0'))?,
                _ => return None,
            }
            // SAFETY: not the NUL.
            at = unsafe { at.add(1) };
        }
        let len = file::fstat(fd).ok()?.st_size as usize;
        if len < size_of::<Header>() {
            return None;
        }
        // SAFETY: a new mapping where the kernel finds room.
        let base = unsafe { memory::map(0, len, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) }.ok()?;
        let plan = Self { base: base as *const u8 };
        let header = plan.header();
        let known = header.magic == MAGIC && header.version == u64::from(VERSION) && header.len == len as u64;
        known.then_some(plan)
    }

    /// The plan at another address.
    pub fn at(base: usize) -> Self {
        Self { base: base as *const u8 }
    }

    pub fn base(&self) -> usize {
        self.base as usize
    }

    pub fn header(&self) -> &Header {
        // SAFETY: at least as long as a header, page-aligned.
        unsafe { &*self.base.cast() }
    }

    fn array<T>(&self, array: Array) -> &[T] {
        let bytes = array.len.checked_mul(size_of::<T>() as u64);
        let end = bytes.and_then(|bytes| array.offset.checked_add(bytes));
        if end.is_none_or(|end| end > self.header().len)
            || !array.offset.is_multiple_of(align_of::<T>() as u64)
        {
            report::fail(stasis_protocol::plan::step::PLAN, 0, libc::EINVAL, array.offset);
        }
        // SAFETY: inside the plan, aligned, and of types that any bits are valid for.
        unsafe {
            core::slice::from_raw_parts(self.base.add(array.offset as usize).cast(), array.len as usize)
        }
    }

    pub fn kernel_mappings(&self) -> &[KernelMapping] {
        self.array(self.header().kernel_mappings)
    }

    pub fn mappings(&self) -> &[Mapping] {
        self.array(self.header().mappings)
    }

    pub fn huge(&self) -> &[[u64; 2]] {
        self.array(self.header().huge)
    }

    pub fn lazy(&self) -> &[[u64; 2]] {
        self.array(self.header().lazy)
    }

    pub fn watched(&self) -> &[[u64; 2]] {
        self.array(self.header().watched)
    }

    pub fn unwritten(&self) -> &[[u64; 2]] {
        self.array(self.header().unwritten)
    }

    pub fn staged(&self) -> &[[u64; 3]] {
        self.array(self.header().staged)
    }

    pub fn fills(&self) -> &[Fill] {
        self.array(self.header().fills)
    }

    /// Those that are mapped in the area: once this is there.
    pub fn hashes(&self) -> &[Hash] {
        let start = relocate::area(self).hashes;
        // SAFETY: mapped from a file that is sealed at this length or a greater one.
        unsafe { core::slice::from_raw_parts(start as *const Hash, self.header().hashes as usize) }
    }

    pub fn calls(&self) -> &[Call] {
        self.array(self.header().calls)
    }

    pub fn last_calls(&self) -> &[Call] {
        self.array(self.header().last_calls)
    }

    pub fn thread_calls(&self) -> &[Call] {
        self.array(self.header().thread_calls)
    }

    pub fn namespaced(&self) -> &[Call] {
        self.array(self.header().namespaced)
    }

    /// Where ids are had, if not of the kernel.
    pub fn turns(&self) -> Option<Turns> {
        let header = self.header();
        (header.tracer_fd >= 0)
            .then_some(Turns { socket: header.tracer_fd as Fd, file: header.turns_fd as Fd })
    }

    pub fn threads(&self) -> &[Thread] {
        self.array(self.header().threads)
    }

    pub fn calls_of(&self, thread: &Thread) -> &[Call] {
        self.array(thread.calls)
    }

    /// The address of what lies at an offset of the plan's data.
    pub fn data(&self, offset: u64) -> u64 {
        let data = self.header().data;
        if offset > data.len {
            report::fail(stasis_protocol::plan::step::PLAN, 0, libc::EINVAL, offset);
        }
        self.base as u64 + data.offset + offset
    }

    /// Writes the addresses that the data holds of itself.
    pub fn resolve_pointers(&self) {
        for &[at, to] in self.array::<[u64; 2]>(self.header().pointers) {
            // SAFETY: inside the plan's data (checked), which is a copy of our own.
            unsafe { (self.data(at) as *mut u64).write_unaligned(self.data(to)) };
        }
    }

    /// Makes system calls, in order; a failure that is not allowed ends the process.
    pub fn make_calls(&self, calls: &[Call], step: u64) {
        for (index, call) in calls.iter().enumerate() {
            let mut args = [0usize; 6];
            for (position, arg) in args.iter_mut().enumerate() {
                let value = call.args[position];
                *arg = if call.relocate & 1 << position != 0 { self.data(value) } else { value } as usize;
            }
            // SAFETY: the plan's author vouches for the call.
            let result = unsafe { raw(call.nr as i64, args) };
            if call.may_fail == 0 && (-4095..0).contains(&result) {
                let Errno(errno) = Errno(-result as i32);
                report::fail(step, index, errno, call.nr);
            }
            if call.onto != 0 && result >= 0 && result as u32 != call.onto - 1 {
                // SAFETY: numbers of the program's table, which nobody uses yet.
                unsafe {
                    raw(libc::SYS_dup2, [result as usize, call.onto as usize - 1, 0, 0, 0, 0]);
                    raw(libc::SYS_close, [result as usize, 0, 0, 0, 0, 0]);
                }
            }
        }
    }
}
