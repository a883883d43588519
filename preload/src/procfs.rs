//! Reading /proc without libc.

use alloc::vec::Vec;
use core::{
    ffi::CStr,
    fmt::{self, Write},
};

use stasis_sys::{Errno, Result, file};

use crate::credentials;

/// A path of at most 127 bytes, made without allocating.
pub struct Path {
    bytes: [u8; 128],
    len: usize,
}

impl Path {
    pub fn new(parts: fmt::Arguments<'_>) -> Self {
        let mut path = Self { bytes: [0; 128], len: 0 };
        // What does not fit is cut off: then the file is not found, and that is an error by name.
        let _ = path.write_fmt(parts);
        path
    }

    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

impl Write for Path {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let end = self.len + part.len();
        if end >= self.bytes.len() {
            return Err(fmt::Error);
        }
        self.bytes[self.len..end].copy_from_slice(part.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// A path of any length, for a call to the kernel.
pub fn c_path(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len() + 1);
    bytes.extend_from_slice(path);
    bytes.push(0);
    bytes
}

/// stat(2) of a path of any length.
pub fn stat(path: &[u8]) -> Result<libc::stat> {
    file::stat(CStr::from_bytes_until_nul(&c_path(path)).unwrap_or(c""))
}

/// A [`Path`] by format.
macro_rules! path {
    ($($part:tt)*) => { $crate::procfs::Path::new(core::format_args!($($part)*)) };
}

/// Opens a file of /proc to read.
pub fn open(path: &CStr) -> Result<file::Fd> {
    credentials::open_own(|| file::open(path, libc::O_RDONLY | libc::O_CLOEXEC, 0))
}

/// All of a file.
pub fn read(path: &CStr) -> Result<Vec<u8>> {
    read_and_close(open(path)?)
}

/// The status of a thread of this process; empty where it has ended.
pub fn thread_status(tid: i32) -> Vec<u8> {
    read(path!("/proc/self/task/{tid}/status").as_c_str()).unwrap_or_default()
}

fn read_and_close(fd: file::Fd) -> Result<Vec<u8>> {
    let content = read_fd(fd);
    let _ = file::close(fd);
    content
}

/// What is left to read of a file.
pub fn read_fd(fd: i32) -> Result<Vec<u8>> {
    let mut content = Vec::with_capacity(4096);
    loop {
        let len = content.len();
        if content.capacity() - len < 4096 {
            content.reserve(content.capacity().max(4096));
        }
        content.resize(content.capacity(), 0);
        match file::read(fd, &mut content[len..]) {
            Ok(0) => {
                content.truncate(len);
                return Ok(content);
            }
            Ok(n) => content.truncate(len + n),
            Err(Errno(libc::EINTR)) => content.truncate(len),
            Err(error) => return Err(error),
        }
    }
}

/// The target of a link.
pub fn link(path: &CStr) -> Result<Vec<u8>> {
    let mut target = alloc::vec![0; 4096];
    let len = file::readlink(path, &mut target)?;
    target.truncate(len);
    Ok(target)
}

/// A directory of /proc. Paths that begin in it are found in half the time.
pub struct Directory(file::Fd);

impl Directory {
    pub fn open(path: &CStr) -> Result<Self> {
        file::open(path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0).map(Self)
    }

    /// All of a file.
    pub fn read(&self, name: &CStr) -> Result<Vec<u8>> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        read_and_close(credentials::open_own(|| file::open_at(self.0, name, flags, 0))?)
    }

    /// The target of a link, which is put into `target`; how many bytes it has.
    pub fn link(&self, name: &CStr, target: &mut [u8]) -> Result<usize> {
        file::readlink_at(self.0, name, target)
    }

    /// stat(2): of what a link leads to.
    pub fn stat(&self, name: &CStr) -> Result<libc::stat> {
        file::stat_at(self.0, name)
    }

    /// The numbers that entries are named by; once.
    pub fn numbers(&self, mut each: impl FnMut(i32)) -> Result<()> {
        self.entries(|_, name| {
            if let Some(number) = decimal(name) {
                each(number as i32);
            }
        })
    }

    /// The inodes and names of entries; once.
    pub fn entries(&self, mut each: impl FnMut(u64, &[u8])) -> Result<()> {
        let mut buffer = [0u8; 4096];
        loop {
            let len = match file::getdents(self.0, &mut buffer)? {
                0 => return Ok(()),
                len => len,
            };
            let mut entries = &buffer[..len];
            // struct linux_dirent64: u64 ino, i64 off, u16 reclen, u8 type, name.
            while entries.len() > 19 {
                let entry_len = usize::from(u16::from_ne_bytes([entries[16], entries[17]]));
                let (entry, rest) = entries.split_at(entry_len.clamp(19, entries.len()));
                let inode = entry[..8].iter().rev().fold(0, |inode, &byte| inode << 8 | u64::from(byte));
                each(inode, entry[19..].split(|&byte| byte == 0).next().unwrap_or_default());
                entries = rest;
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = file::close(self.0);
    }
}

/// The numbers that a directory's entries are named by (/proc/self/task, /proc/self/fd).
pub fn numbered_entries(path: &CStr, each: impl FnMut(i32)) -> Result<()> {
    Directory::open(path)?.numbers(each)
}

/// The inodes and names of a directory's entries.
pub fn entries(path: &CStr, each: impl FnMut(u64, &[u8])) -> Result<()> {
    Directory::open(path)?.entries(each)
}

/// A decimal number that makes up all of `text`.
pub fn decimal(text: &[u8]) -> Option<u64> {
    number(text, 10)
}

/// A hexadecimal number, with or without 0x, that makes up all of `text`.
pub fn hex(text: &[u8]) -> Option<u64> {
    number(text.strip_prefix(b"0x").unwrap_or(text), 16)
}

/// An octal number that makes up all of `text`.
pub fn octal(text: &[u8]) -> Option<u64> {
    number(text, 8)
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    core::str::from_utf8(text)
        .ok()
        .filter(|text| !text.starts_with('+'))
        .and_then(|text| u64::from_str_radix(text, radix).ok())
}

/// A signed decimal number that makes up all of `text`.
pub fn signed(text: &[u8]) -> Option<i64> {
    core::str::from_utf8(text).ok().and_then(|text| text.parse().ok())
}

pub fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.split(|&byte| byte == b'\n').filter(|line| !line.is_empty())
}

/// The words of a line, by spaces and tabs.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b' ' || byte == b'\t').filter(|word| !word.is_empty())
}

/// The rest of the line that starts with `key` (as `Uid:` in /proc/self/status).
pub fn field<'a>(content: &'a [u8], key: &str) -> Option<&'a [u8]> {
    lines(content).find_map(|line| line.strip_prefix(key.as_bytes())).map(<[u8]>::trim_ascii)
}
