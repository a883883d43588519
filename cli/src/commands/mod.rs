//! The commands that ask a coordinator or a store one thing and print the answer.

pub mod checkpoint;
pub mod diff;
pub mod du;
pub mod gc;
pub mod kill;
pub mod list;
pub mod log;
pub mod prune;
pub mod show;
pub mod status;
pub mod store;
pub mod top;
pub mod trace;
pub mod transfer;
pub mod verify;
mod written;
