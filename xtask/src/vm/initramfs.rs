//! The machine's first file system: an archive in cpio's format "newc" (Linux, driver-api/early-userspace/
//! buffer-format.rst), which takes less to write than to find a program that does.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};

use crate::vm::kernel::Kernel;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const DEVICE: u32 = 0o020_600;

/// /dev/console, for what init says before it has mounted anything.
const CONSOLE: (u32, u32) = (5, 1);

/// Where a module of the kernel's lies in it.
pub fn module(path: &Path) -> String {
    format!("/modules/{}", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Writes one with this first process, this job and the kernel's modules.
///
/// # Errors
/// When something cannot be read or written.
pub fn write(path: &Path, kernel: &Kernel, init: &Path, job: &str) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mut archive = Archive { to: BufWriter::new(File::create(path)?), number: 0 };
    for name in ["dev", "host", "kept", "modules"] {
        archive.entry(name, DIRECTORY, (0, 0), &[])?;
    }
    archive.entry("dev/console", DEVICE, CONSOLE, &[])?;
    archive.entry("init", PROGRAM, (0, 0), &read(init)?)?;
    archive.entry("job", FILE, (0, 0), job.as_bytes())?;
    for path in &kernel.modules {
        archive.entry(module(path).trim_start_matches('/'), FILE, (0, 0), &read(path)?)?;
    }
    archive.entry("TRAILER!!!", 0, (0, 0), &[])?;
    archive.to.flush()?;
    Ok(())
}

struct Archive<W> {
    to: W,
    number: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.number += 1;
        let len = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let name_len = name.len() as u32 + 1;
        write!(self.to, "070701")?;
        // inode, mode, user, group, links, time, length, the file's device, its own, length of the name, checksum
        for field in [self.number, mode, 0, 0, 1, 0, len, 0, 0, device.0, device.1, name_len, 0] {
            write!(self.to, "{field:08x}")?;
        }
        self.to.write_all(name.as_bytes())?;
        // The header has 110 bytes; name and content end at multiples of 4.
        self.zeros(1 + padding(110 + name_len))?;
        self.to.write_all(content)?;
        self.zeros(padding(len))
    }

    fn zeros(&mut self, count: u32) -> io::Result<()> {
        self.to.write_all(&[0; 4][..count as usize])
    }
}

fn padding(len: u32) -> u32 {
    len.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_contents_end_at_multiples_of_four() {
        let mut archive = Archive { to: Vec::new(), number: 0 };
        for name in ["a", "ab", "abc", "abcd"] {
            archive.entry(name, FILE, (0, 0), name.as_bytes()).unwrap();
            assert_eq!(archive.to.len() % 4, 0, "{name}");
        }
        assert!(archive.to.starts_with(b"0707010000000100008"), "{:?}", String::from_utf8_lossy(&archive.to));
    }
}
