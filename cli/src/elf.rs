//! What an executable says of itself (elf(5)).

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
};

const MAGIC: &[u8] = b"\x7fELF";
const CLASS: usize = 4;
const ELFCLASS64: u8 = 2;
const MACHINE: usize = 18;
const PHOFF: usize = 32;
const PHENTSIZE: usize = 54;
const PHNUM: usize = 56;
const HEADER: usize = 64;
const PT_INTERP: u32 = 3;
/// struct Elf64_Phdr: p_type at 0, p_offset at 8, p_filesz at 32.
const PHDR: usize = 56;

/// Whether a file that begins so is an ELF file.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// For which machine (EM_...) the file is that begins so, and whether it is of 64 bits.
pub fn machine(head: &[u8]) -> (u16, bool) {
    (number(head, MACHINE).map_or(0, u16::from_le_bytes), head.get(CLASS) == Some(&ELFCLASS64))
}

/// The dynamic linker that an executable asks for (PT_INTERP); `None` when it asks for none.
///
/// # Errors
/// It cannot be read, or is no ELF file of 64 bits that the kernel would execute.
pub fn interpreter(file: &File) -> io::Result<Option<OsString>> {
    let malformed = || io::Error::other("it is no 64-bit ELF file, or damaged");
    let mut head = [0; HEADER];
    file.read_exact_at(&mut head, 0)?;
    if !is_elf(&head) || !machine(&head).1 {
        return Err(malformed());
    }
    let offset = number(&head, PHOFF).map(u64::from_le_bytes).ok_or_else(malformed)?;
    let count = number(&head, PHNUM).map(u16::from_le_bytes).ok_or_else(malformed)?;
    // The kernel refuses any other size too (load_elf_phdrs).
    if number(&head, PHENTSIZE).map(u16::from_le_bytes) != Some(PHDR as u16) {
        return Err(malformed());
    }
    let mut headers = vec![0; usize::from(count) * PHDR];
    file.read_exact_at(&mut headers, offset)?;
    let is_it = |header: &&[u8]| number(header, 0).map(u32::from_le_bytes) == Some(PT_INTERP);
    let Some(header) = headers.chunks_exact(PHDR).find(is_it) else { return Ok(None) };
    let (start, len) = (number(header, 8), number(header, 32));
    let (start, len) =
        start.zip(len).map(|(a, b)| (u64::from_le_bytes(a), u64::from_le_bytes(b))).ok_or_else(malformed)?;
    if len > libc::PATH_MAX as u64 {
        return Err(malformed());
    }
    let mut name = vec![0; len as usize];
    file.read_exact_at(&mut name, start)?;
    // Up to the first NUL, as the kernel reads it.
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(Some(OsStr::from_bytes(name).into()))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_names_its_linker_and_what_is_no_program_nothing() {
        let own = interpreter(&File::open("/bin/sh").unwrap()).unwrap();
        assert!(own.unwrap().to_string_lossy().contains("ld-linux"));
        assert!(interpreter(&File::open("/etc/passwd").unwrap()).is_err());
    }
}
