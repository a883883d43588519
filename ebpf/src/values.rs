//! The shared types as aya takes them for keys and values of maps, and as records are read.

use aya::Pod;
use stasis_events::{Label, LabelKey, Offsets, Request, Task, User};

macro_rules! plain {
    ($($name:ident: $type:ty,)*) => { $(
        #[repr(transparent)]
        #[derive(Clone, Copy)]
        pub struct $name(pub $type);

        // SAFETY: `stasis_events` promises repr(C), no padding, and that all bits are a value.
        unsafe impl Pod for $name {}
    )* };
}

plain! {
    OffsetsValue: Offsets,
    TaskValue: Task,
    UserValue: User,
    RequestValue: Request,
    LabelKeyValue: LabelKey,
    LabelValue: Label,
}

/// A record at the beginning of `bytes`; `None` when they are too few.
pub fn record<T: Record>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, `Record` says that any are a value, and nothing is asked of their alignment.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// # Safety
/// Any bytes must be a value of the type.
pub unsafe trait Record: Copy {}

// SAFETY: see `stasis_events`.
unsafe impl Record for Task {}
// SAFETY: the same.
unsafe impl Record for stasis_events::TaskEvent {}
// SAFETY: the same.
unsafe impl Record for stasis_events::TcpEvent {}
// SAFETY: the same.
unsafe impl Record for stasis_events::Socket {}

/// A name in the kernel, up to its 0.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
