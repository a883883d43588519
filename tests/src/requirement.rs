//! What a test needs of the machine, and what becomes of it where that is missing.

use std::{env, fs::OpenOptions, io::Write, path::PathBuf, thread};

/// Says that the running test cannot run here, and why. The test then returns.
///
/// Rust's test runners know no test that finds out by itself that it cannot run: they will call it
/// passed. Its name goes into the file named by `STASIS_SKIPPED`, where `cargo xtask test` looks, and
/// subtracts it from those that passed.
pub fn skip(reason: &str) {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(path) = env::var_os("STASIS_SKIPPED") {
        let line = format!("{name}: {reason}\n");
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// A program of the distribution, before one of the same name that the user put first in `PATH` (a
/// version manager's shim is a shell script that starts several processes).
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    ["/usr/bin".into(), "/bin".into()]
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|directory: PathBuf| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A shared library of the distribution, by its file name.
pub fn find_library(name: &str) -> Option<PathBuf> {
    ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"]
        .into_iter()
        .map(|directory| PathBuf::from(directory).join(name))
        .find(|candidate| candidate.exists())
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
