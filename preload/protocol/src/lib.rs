//! What the parts of Stasis say to each other: the messages between a process, its coordinator and
//! the store server, the record of a process that a checkpoint keeps, and the plan that the
//! restorer follows. Every side is built against this one crate.
//!
//! [`VERSION`] is bumped on any change to a message, a record or the plan and is checked when a
//! connection is made and when an image is read: two sides of different versions refuse each other
//! by name instead of misreading each other.
//!
//! Not here: sockets, files, policy. Encoding is postcard's; this crate only frames it.

#![no_std]

extern crate alloc;

pub mod births;
pub mod coordinator;
pub mod image;
pub mod pager;
pub mod plan;
pub mod store;
pub mod tracer;
pub mod wire;

/// The version of all that is defined in this crate.
pub const VERSION: u32 = 24;

/// The page size of x86-64, in bytes: the unit of dumping, of hashing and of restoring.
pub const PAGE_SIZE: usize = 4096;
