//! The program to launch: found as execvp(3) would, and checked before anything starts. The library gets
//! into it only through the dynamic linker's LD_PRELOAD, so what has none, or one that will not listen,
//! is refused by name.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs::{self, File, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use crate::{elf, failure::Failure};

/// How much of a file the kernel looks at to tell what it is (BINPRM_BUF_SIZE).
const HEAD: usize = 256;

/// How many scripts may be each other's interpreters (the kernel's limit in bprm_execve is 5).
const SCRIPTS: usize = 5;

/// The search path when PATH is not set: execvp(3), glibc since 2.24.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Finds the program `name` and checks that Stasis can be loaded into it. Returns its path.
///
/// # Errors
/// [`Failure::ProgramNotFound`], [`Failure::ProgramNotExecutable`], or [`Failure::Refused`].
pub fn check(name: &OsStr) -> Result<PathBuf, Failure> {
    let path = find(name)?;
    let mut interpreted = path.clone();
    for _ in 0..SCRIPTS {
        match inspect(&interpreted)? {
            Kind::Dynamic => return Ok(path),
            Kind::Script { interpreter } => interpreted = interpreter,
        }
    }
    Err(Failure::ProgramNotExecutable(format!(
        "{}: its interpreters are scripts of each other",
        path.display()
    )))
}

/// Searches as execvp(3) does.
fn find(name: &OsStr) -> Result<PathBuf, Failure> {
    if name.is_empty() {
        return Err(Failure::ProgramNotFound("the program's name is empty".into()));
    }
    if name.as_bytes().contains(&b'/') {
        return executable(Path::new(name)).map(|()| name.into());
    }
    let search = env::var_os("PATH").unwrap_or_else(|| OsString::from(DEFAULT_PATH));
    let mut denied = None;
    for directory in search.as_bytes().split(|&byte| byte == b':') {
        // An empty entry is the working directory.
        let directory = if directory.is_empty() { b"." } else { directory };
        let path = Path::new(OsStr::from_bytes(directory)).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(failure @ Failure::ProgramNotExecutable(_)) => denied = denied.or(Some(failure)),
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(|| {
        Failure::ProgramNotFound(format!("{}: not found in PATH", name.to_string_lossy()))
    }))
}

fn executable(path: &Path) -> Result<(), Failure> {
    let denied = |reason: &str| Failure::ProgramNotExecutable(format!("{}: {reason}", path.display()));
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(Failure::ProgramNotFound(format!("{}: not found", path.display())));
        }
        Err(error) => return Err(denied(&error.to_string())),
    };
    if !meta.is_file() {
        return Err(denied("not a regular file"));
    }
    // execve(2) goes by the effective ids.
    nix::unistd::eaccess(path, nix::unistd::AccessFlags::X_OK).map_err(|error| denied(error.desc()))
}

enum Kind {
    /// Linked dynamically, for this machine and by a linker that honours LD_PRELOAD.
    Dynamic,
    Script {
        interpreter: PathBuf,
    },
}

fn inspect(path: &Path) -> Result<Kind, Failure> {
    let unreadable =
        |error: io::Error| refused(path, format!("cannot be read to check it: {error}"), "make it readable");
    let file = File::open(path).map_err(unreadable)?;
    let mut head = [0; HEAD];
    let len = file.read_at(&mut head, 0).map_err(unreadable)?;
    let head = &head[..len];
    if let Some(line) = head.strip_prefix(b"#!") {
        let interpreter = script_interpreter(line).ok_or_else(|| {
            Failure::ProgramNotExecutable(format!("{}: its first line names no interpreter", path.display()))
        })?;
        return match executable(&interpreter) {
            Ok(()) => Ok(Kind::Script { interpreter }),
            Err(failure) => Err(Failure::ProgramNotExecutable(format!(
                "{}: its interpreter cannot be executed: {failure}",
                path.display()
            ))),
        };
    }
    // The kernel ignores set-uid bits of scripts.
    let meta = file.metadata().map_err(unreadable)?;
    privileges(path, &meta)?;
    if is_linker(path) {
        return Ok(Kind::Dynamic);
    }
    let interpreter = elf_interpreter(path, &file, head)?;
    linker(path, &interpreter)?;
    Ok(Kind::Dynamic)
}

/// The interpreter of a script, from what follows its `#!`.
fn script_interpreter(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    line.split(|byte| matches!(byte, b' ' | b'\t' | 0))
        .find(|word| !word.is_empty())
        .map(|word| OsStr::from_bytes(word).into())
}

/// Refuses what gains privileges by being executed: the dynamic linker then ignores LD_PRELOAD
/// (ld.so(8), secure-execution mode), and a restart would have to give them again.
fn privileges(path: &Path, meta: &Metadata) -> Result<(), Failure> {
    const REMEDY: &str = "run it without Stasis, or a copy of it without the privilege";
    let mode = meta.permissions().mode();
    if mode & libc::S_ISUID != 0 {
        return Err(refused(path, format!("it is set-uid (to uid {})", meta.uid()), REMEDY));
    }
    // Without the group's execute bit, set-gid once meant mandatory locking (inode(7)).
    if mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0 {
        return Err(refused(path, format!("it is set-gid (to gid {})", meta.gid()), REMEDY));
    }
    if has_capabilities(path) {
        return Err(refused(path, "it has file capabilities (getcap(8))".into(), REMEDY));
    }
    Ok(())
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end in NUL; a size of 0 asks for the length and writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

/// The dynamic linker that an ELF file asks for.
fn elf_interpreter(path: &Path, file: &File, head: &[u8]) -> Result<PathBuf, Failure> {
    const EM_X86_64: u16 = 62;

    if !elf::is_elf(head) {
        return Err(refused(
            path,
            "it is neither an ELF program nor a script with #!".into(),
            "name its interpreter: stasis launch -- sh FILE",
        ));
    }
    let machine = elf::machine(head);
    if machine != (EM_X86_64, true) {
        return Err(refused(
            path,
            format!("it is not a 64-bit x86-64 program (ELF machine {})", machine.0),
            "use a build of it for x86-64",
        ));
    }
    match elf::interpreter(file) {
        Ok(Some(interpreter)) => Ok(interpreter.into()),
        Ok(None) => Err(refused(
            path,
            "it is linked statically, so that no library can be loaded into it".into(),
            "use a dynamically linked build of it",
        )),
        Err(_) => Err(refused(path, "its ELF program headers are damaged".into(), "reinstall it")),
    }
}

/// Whether it is glibc's dynamic linker, executed by its name (ld.so(8)): it loads what LD_PRELOAD names, as ever.
fn is_linker(path: &Path) -> bool {
    path.canonicalize()
        .is_ok_and(|path| path.file_name().is_some_and(|name| name.as_bytes() == b"ld-linux-x86-64.so.2"))
}

fn linker(path: &Path, interpreter: &Path) -> Result<(), Failure> {
    let name = interpreter.file_name().unwrap_or_default().as_bytes();
    if name.starts_with(b"ld-musl") {
        return Err(refused(
            path,
            format!(
                "it is linked against musl ({}), and Stasis needs the GNU C library",
                interpreter.display()
            ),
            "use a build of it for glibc",
        ));
    }
    if !interpreter.exists() {
        return Err(Failure::ProgramNotExecutable(format!(
            "{}: its dynamic linker {} is not there",
            path.display(),
            interpreter.display()
        )));
    }
    Ok(())
}

fn refused(path: &Path, reason: String, remedy: &str) -> Failure {
    Failure::refused(path.display().to_string(), reason, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_found_in_the_path() {
        let path = check(OsStr::new("ls")).unwrap();
        assert!(path.is_absolute() && path.ends_with("ls"));
    }

    #[test]
    fn a_script_is_its_interpreter() {
        assert_eq!(script_interpreter(b" /bin/sh -e\nx").as_deref(), Some(Path::new("/bin/sh")));
        assert_eq!(script_interpreter(b"/bin/sh").as_deref(), Some(Path::new("/bin/sh")));
        assert_eq!(script_interpreter(b"  \t\nx"), None);
    }

    /// An ELF file of one program header.
    fn elf(edit: impl FnOnce(&mut Vec<u8>)) -> Result<PathBuf, Failure> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = 3;
        bytes[64 + 8] = 120;
        bytes[64 + 32] = 8;
        bytes.extend(b"/bin/sh\0");
        edit(&mut bytes);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, &bytes).unwrap();
        let head = &bytes[..bytes.len().min(HEAD)];
        elf_interpreter(&path, &File::open(&path).unwrap(), head)
    }

    #[test]
    fn the_dynamic_linker_is_read_from_the_program_headers() {
        assert_eq!(elf(|_| {}).unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn what_cannot_be_preloaded_is_refused() {
        let refused = |edit: fn(&mut Vec<u8>)| elf(edit).unwrap_err().to_string();
        assert!(refused(|bytes| bytes[64] = 1).contains("statically"));
        assert!(refused(|bytes| bytes[18] = 183).contains("x86-64"));
        assert!(refused(|bytes| bytes[4] = 1).contains("x86-64"));
        assert!(refused(|bytes| bytes[0] = b'x').contains("neither"));
    }

    #[test]
    fn damaged_headers_are_refused_wherever_they_point() {
        for (at, value) in [(32, 0xff), (39, 0xff), (57, 0xff), (64 + 8, 0xff), (64 + 39, 0xff), (54, 1)] {
            assert!(elf(|bytes| bytes[at] = value).unwrap_err().to_string().contains("damaged"), "byte {at}");
        }
        for len in 4..120 {
            assert!(elf(|bytes| bytes.truncate(len)).is_err(), "{len} bytes");
        }
    }
}
