//! Another name (a hard link) of a file whose own, by which it was opened or mapped, was deleted.

use alloc::{format, string::String, vec::Vec};
use core::ffi::CStr;

use crate::procfs;

/// What the kernel shows behind the path of what was deleted.
pub const DELETED: &str = " (deleted)";

/// A name of the file in the directory where it had the one that `shown` tells: programs write to one name, link the file to
/// another beside it and delete the first.
pub fn other(shown: &str, inode: u64, device: Option<u64>) -> Option<String> {
    let path = shown.strip_suffix(DELETED)?;
    let directory = &path[..=path.rfind('/')?];
    let mut names: Vec<String> = Vec::new();
    let directory_name = procfs::c_path(directory.as_bytes());
    let _ = procfs::entries(CStr::from_bytes_until_nul(&directory_name).ok()?, |of, name| {
        if of == inode
            && let Ok(name) = core::str::from_utf8(name)
        {
            names.push(format!("{directory}{name}"));
        }
    });
    names.into_iter().find(|name| {
        procfs::stat(name.as_bytes())
            .is_ok_and(|stat| stat.st_ino == inode && device.is_none_or(|device| device == stat.st_dev))
    })
}
