//! Writing the plan that the restorer follows.

use std::{
    fs::File,
    io::Write,
    mem::ManuallyDrop,
    os::fd::{FromRawFd, RawFd},
};

use anyhow::Context as _;
use stasis_protocol::{
    VERSION,
    plan::{Array, Call, Fill, Header, KernelMapping, MAGIC, Mapping, Thread},
};

/// A plan in the making. Addresses in `data` are offsets until the restorer has moved it.
#[derive(Default)]
pub struct Plan {
    pub header: Header,
    pub kernel_mappings: Vec<KernelMapping>,
    pub mappings: Vec<Mapping>,
    /// Address and length of memory to be given huge pages before it is filled.
    pub huge: Vec<[u64; 2]>,
    pub fills: Vec<Fill>,
    /// Address and length of mappings that are left to the pager.
    pub lazy: Vec<[u64; 2]>,
    /// Address and length of mappings of which it is tracked from the restart on what is written, and of what of them is as the
    /// checkpoint has it.
    pub watched: Vec<[u64; 2]>,
    pub unwritten: Vec<[u64; 2]>,
    /// Where memory lies that is whole already, where it is to be, its length.
    pub staged: Vec<[u64; 3]>,
    pub calls: Vec<Call>,
    /// Those that are made in a user namespace.
    pub namespaced: Vec<Call>,
    /// Where segments are attached before they are moved to their places.
    pub scratch: std::ops::Range<u64>,
    /// What is sealed when all else of memory is as it was.
    pub seals: Vec<Call>,
    pub last_calls: Vec<Call>,
    pub thread_calls: Vec<Call>,
    /// The leader first; `calls` of each is set by [`Plan::finish`].
    pub threads: Vec<(Thread, Vec<Call>)>,
    pub data: Vec<u8>,
    /// Words in `data` that are addresses of other places in `data`.
    pub pointers: Vec<(u64, u64)>,
}

/// A call with numbers only.
pub fn call(nr: i64, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call { nr: nr as u64, args: all, ..Call::default() }
}

/// The same, and its failure is none.
pub fn attempt(nr: i64, args: &[u64]) -> Call {
    Call { may_fail: 1, ..call(nr, args) }
}

/// Makes argument `position` of a call point into the plan's data.
pub fn pointing(mut call: Call, position: usize, offset: u64) -> Call {
    call.args[position] = offset;
    call.relocate |= 1 << position;
    call
}

impl Plan {
    /// Keeps bytes for a call to point to; their offset, 8-byte aligned.
    pub fn keep(&mut self, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        offset
    }

    /// How many bytes the plan will have: an upper bound.
    pub fn len(&self) -> usize {
        let calls: usize = self.threads.iter().map(|(_, calls)| calls.len()).sum();
        let calls = calls
            + self.namespaced.len()
            + self.seals.len()
            + self.calls.len()
            + self.last_calls.len()
            + self.thread_calls.len();
        size_of::<Header>()
            + size_of_val(&*self.kernel_mappings)
            + size_of_val(&*self.mappings)
            + size_of_val(&*self.huge)
            + size_of_val(&*self.fills)
            + size_of_val(&*self.lazy)
            + size_of_val(&*self.watched)
            + size_of_val(&*self.unwritten)
            + size_of_val(&*self.staged)
            + calls * size_of::<Call>()
            + self.threads.len() * size_of::<Thread>()
            + self.data.len()
            + 4096
    }

    /// Writes the plan to a memfd.
    ///
    /// # Errors
    /// When memory for it is short.
    pub fn write(mut self, fd: RawFd) -> anyhow::Result<()> {
        let mut bytes = vec![0u8; size_of::<Header>()];
        self.header.kernel_mappings = append(&mut bytes, &self.kernel_mappings);
        self.header.mappings = append(&mut bytes, &self.mappings);
        self.header.huge = append(&mut bytes, &self.huge);
        self.header.fills = append(&mut bytes, &self.fills);
        self.header.lazy = append(&mut bytes, &self.lazy);
        self.header.watched = append(&mut bytes, &self.watched);
        self.header.unwritten = append(&mut bytes, &self.unwritten);
        self.header.staged = append(&mut bytes, &self.staged);
        self.calls.append(&mut self.seals);
        self.header.calls = append(&mut bytes, &self.calls);
        self.header.namespaced = append(&mut bytes, &self.namespaced);
        self.header.last_calls = append(&mut bytes, &self.last_calls);
        self.header.thread_calls = append(&mut bytes, &self.thread_calls);
        let threads: Vec<Thread> = self
            .threads
            .iter()
            .map(|(thread, calls)| Thread { calls: append(&mut bytes, calls), ..*thread })
            .collect();
        self.header.threads = append(&mut bytes, &threads);
        self.header.pointers = append(&mut bytes, &self.pointers);
        self.header.data = append(&mut bytes, &self.data);
        self.header.magic = MAGIC;
        self.header.version = VERSION.into();
        self.header.len = bytes.len() as u64;
        bytes[..size_of::<Header>()].copy_from_slice(as_bytes(std::slice::from_ref(&self.header)));
        // SAFETY: the number is ours; it is not closed here.
        let mut file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        file.write_all(&bytes).context("no memory for the restart plan")
    }
}

/// Appends an array, 8-byte aligned.
fn append<T: Copy>(bytes: &mut Vec<u8>, values: &[T]) -> Array {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let offset = bytes.len() as u64;
    bytes.extend_from_slice(as_bytes(values));
    Array { offset, len: values.len() as u64 }
}

/// The bytes of plan records.
fn as_bytes<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: the plan's records are `repr(C)` numbers; their padding, if any, was written with them
    // (`_pad` fields).
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
