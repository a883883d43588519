//! Compiles the C programs of `tests/programs` when a test asks for one, and keeps them by the hash of
//! what they were made from.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{lab, outcome::describe, requirement::find_program};

/// The compiled `tests/programs/NAME.c`.
///
/// # Panics
/// With the compiler's messages when it does not compile.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    program_with(name, &[])
}

/// The same, with further flags for the compiler (`-static`, `-ljemalloc`).
#[track_caller]
pub fn program_with(name: &str, flags: &[&str]) -> PathBuf {
    build(name, "", flags)
}

/// `tests/programs/NAME.c` as a shared library.
#[track_caller]
pub fn shared_library(name: &str) -> PathBuf {
    build(name, ".so", &["-shared", "-fPIC"])
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

#[track_caller]
fn build(name: &str, suffix: &str, flags: &[&str]) -> PathBuf {
    let source = sources().join(format!("{name}.c"));
    let text = fs::read_to_string(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    // `// link: -lrt -laio`: what a program needs beside libc is said in the program.
    let link = text.lines().filter_map(|line| line.strip_prefix("// link:")).flat_map(str::split_whitespace);

    // `// compiler: mpicc`: another than gcc.
    let compiler = text.lines().find_map(|line| line.strip_prefix("// compiler:")).map_or("gcc", str::trim);
    let compiler = find_program(compiler)
        .unwrap_or_else(|| panic!("{compiler} is installed (`cargo xtask test` installs it)"));
    let mut command = Command::new(compiler);
    command.args(["-std=gnu11", "-O2", "-g", "-Wall", "-pthread", "-I"]).arg(sources()).arg(&source);
    command.args(flags).args(link);

    let mut hasher = DefaultHasher::new();
    describe(&command).hash(&mut hasher);
    text.hash(&mut hasher);
    for header in headers() {
        fs::read(&header).expect("a header of tests/programs").hash(&mut hasher);
    }
    let directory = lab::target_directory().join("test-programs");
    fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let built = directory.join(format!("{name}-{:016x}{suffix}", hasher.finish()));
    if built.exists() {
        return built;
    }
    // Made under another name and linked: tests that ask for the same program at once each see a whole one.
    let unfinished =
        tempfile::Builder::new().prefix(name).tempdir_in(&directory).expect("a directory to build in");
    let output = unfinished.path().join(name);
    let result = command.arg("-o").arg(&output).output().expect("gcc runs");
    assert!(result.status.success(), "{}:\n{}", describe(&command), String::from_utf8_lossy(&result.stderr));
    // Never replaced: a program that another test runs must stay the file that it is.
    match fs::hard_link(&output, &built) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            panic!("{}: {error}", built.display())
        }
        _ => built,
    }
}

fn headers() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(sources())
        .expect("tests/programs can be read")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "h"))
        .collect();
    found.sort();
    found
}
