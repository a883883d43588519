//! Descriptors, made again at their numbers.

use std::{
    collections::BTreeMap,
    os::fd::{OwnedFd, RawFd},
};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, ProcessImage},
    plan::Call,
};

use super::{plan::call, refusal};
use crate::args::{ChangedFile, MissingFile};

pub struct Policy {
    pub missing: MissingFile,
    pub changed: ChangedFile,
}

pub struct Installed {
    pub late: Vec<Call>,
    pub data: Vec<u8>,
}

pub fn check(_: &ProcessImage, _: &Policy) -> Vec<Refusal> {
    Vec::new()
}

pub fn create_objects(_: &ProcessImage) -> Result<BTreeMap<u32, OwnedFd>, Refusal> {
    Ok(BTreeMap::new())
}

pub fn seal_objects(_: &ProcessImage, _: &BTreeMap<u32, OwnedFd>) -> Result<(), Refusal> {
    Ok(())
}

pub fn install(
    image: &ProcessImage,
    _: &BTreeMap<u32, OwnedFd>,
    reserved: &[RawFd],
    _: &Policy,
) -> Result<Installed, Refusal> {
    let mut late = Vec::new();
    for descriptor in &image.descriptors {
        let description = &image.descriptions[descriptor.description as usize];
        let path = match &description.kind {
            DescriptionKind::Regular { file, .. } | DescriptionKind::Directory { file } => file.path.clone(),
            DescriptionKind::CharacterDevice { path, .. } => path.clone(),
            DescriptionKind::Inherited { .. } => continue,
            other => return Err(refusal(format!("{other:?}"), "not yet", "wait")),
        };
        let path = std::ffi::CString::new(path).unwrap_or_default();
        // SAFETY: open(2), lseek(2), dup2(2) and close(2) on numbers of the image.
        unsafe {
            let fd = libc::open(path.as_ptr(), description.flags as i32 & !libc::O_CREAT);
            if fd < 0 {
                return Err(refusal(format!("{path:?}"), std::io::Error::last_os_error().to_string(), "put it back"));
            }
            libc::lseek(fd, description.offset as i64, libc::SEEK_SET);
            if fd != descriptor.fd {
                libc::dup2(fd, descriptor.fd);
                libc::close(fd);
            }
        }
        if descriptor.close_on_exec {
            late.push(call(libc::SYS_fcntl, &[descriptor.fd as u64, libc::F_SETFD as u64, 1]));
        }
    }
    let _ = reserved;
    Ok(Installed { late, data: Vec::new() })
}
