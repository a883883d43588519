//! The Debian packages that the project needs, and what needs each.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::run::run;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    Build,
    Test,
}

struct Package {
    name: &'static str,
    needed: For,
    /// What needs it, for people.
    why: &'static str,
    /// Where Debian does not rule: a program or a file (`/...`) that tells whether it is there.
    sign: &'static str,
}

const fn package(name: &'static str, needed: For, why: &'static str, sign: &'static str) -> Package {
    Package { name, needed, why, sign }
}

const PACKAGES: &[Package] = &[
    package("build-essential", For::Build, "RocksDB's C++, linking, and the tests' C programs", "g++"),
    package("libclang-dev", For::Build, "RocksDB's bindings (bindgen)", "/usr/lib/llvm-14/lib/libclang.so"),
    package("python3", For::Build, "the demonstration; tests with a real program", "python3"),
    package("perl-base", For::Test, "tests with a real program", "perl"),
    package("nodejs", For::Test, "tests with a real program", "node"),
    package(
        "openjdk-17-jdk-headless",
        For::Test,
        "tests with a real program, started from its source",
        "javac",
    ),
    package("sqlite3", For::Test, "tests with a real program", "sqlite3"),
    package("xz-utils", For::Test, "tests with a real program", "xz"),
    package("gzip", For::Test, "tests with a real program", "gzip"),
    package("bc", For::Test, "tests with a real program", "bc"),
    package(
        "libjemalloc-dev",
        For::Test,
        "a program linked with jemalloc",
        "/usr/include/jemalloc/jemalloc.h",
    ),
    package(
        "libtcmalloc-minimal4",
        For::Test,
        "tcmalloc under a program",
        "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    ),
    package(
        "libmimalloc2.0",
        For::Test,
        "mimalloc under a program",
        "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0",
    ),
    package("util-linux", For::Test, "setpriv: a program of another user", "setpriv"),
    package("libcap2-bin", For::Test, "setcap: a program with file capabilities", "setcap"),
];

/// Makes sure that all packages are there: as root by installing what is missing.
///
/// # Errors
/// When something is missing and this user cannot install it: with the command that does, or, where there is
/// no dpkg, with what is missing.
pub fn ensure(purpose: For) -> Result<()> {
    let needed = PACKAGES.iter().filter(|package| package.needed == For::Build || purpose == For::Test);
    let debian = find("dpkg-query").is_some() && find("apt-get").is_some();
    let missing: Vec<&Package> = needed
        .filter(|package| if debian { !installed(package.name) } else { !there(package.sign) })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        println!("missing: {} ({})", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !debian {
        let signs: Vec<&str> = missing.iter().map(|package| package.sign).collect();
        bail!(
            "this is no Debian, where {} would be installed; what is missing here: {}",
            names.join(" "),
            signs.join(" ")
        );
    }
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!(
            "to be typed first: sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
            names.join(" ")
        );
    }
    run(&mut apt_get(&["update", "-q"]))?;
    run(apt_get(&["install", "-q", "-y", "--no-install-recommends"]).args(&names))
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn there(sign: &str) -> bool {
    if sign.starts_with('/') { Path::new(sign).exists() } else { find(sign).is_some() }
}

fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}
