//! The Debian packages that the project needs, and what needs each.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::run::run;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    Build,
    Test,
    /// The programs that the tracer loads into the kernel.
    Tracer,
    /// Another kernel in a virtual machine.
    Vm,
}

struct Package {
    name: &'static str,
    needed: For,
    /// What needs it, for people.
    why: &'static str,
    /// The program that tells whether it is there, where there is no dpkg to ask.
    program: Option<&'static str>,
}

const fn program(name: &'static str, needed: For, why: &'static str, program: &'static str) -> Package {
    Package { name, needed, why, program: Some(program) }
}

const fn library(name: &'static str, needed: For, why: &'static str) -> Package {
    Package { name, needed, why, program: None }
}

const PACKAGES: &[Package] = &[
    program("build-essential", For::Build, "RocksDB's C++, linking, and the tests' C programs", "g++"),
    library("libclang-dev", For::Build, "RocksDB's bindings (bindgen)"),
    program("python3", For::Build, "the demonstration; tests with a real program", "python3"),
    program("perl", For::Test, "tests with a real program", "perl"),
    program("nodejs", For::Test, "tests with a real program", "node"),
    program(
        "openjdk-17-jdk-headless",
        For::Test,
        "tests with a real program, started from its source",
        "javac",
    ),
    program("sqlite3", For::Test, "tests with a real program", "sqlite3"),
    program("xz-utils", For::Test, "tests with a real program", "xz"),
    program("gzip", For::Test, "tests with a real program", "gzip"),
    program("bc", For::Test, "tests with a real program", "bc"),
    program("redis-server", For::Test, "tests with a real program", "redis-server"),
    program("postgresql", For::Test, "tests with a real program", "psql"),
    program("openmpi-bin", For::Test, "tests with a real program", "mpirun"),
    program("libopenmpi-dev", For::Test, "tests with a real program: its compiler", "mpicc"),
    program("tmux", For::Test, "tests with a real program", "tmux"),
    program("vim", For::Test, "tests with a real program", "vim"),
    program("bsdutils", For::Test, "script: a program with a terminal of its own", "script"),
    program("nginx-light", For::Test, "tests with a real program", "nginx"),
    program("util-linux", For::Test, "setpriv: a program of another user", "setpriv"),
    program("libcap2-bin", For::Test, "setcap: a program with file capabilities", "setcap"),
    program("valgrind", For::Test, "a program that is interpreted", "valgrind"),
    program("busybox-static", For::Test, "the tracer: a program without a library", "busybox"),
    program("bpftool", For::Test, "the tracer: what the kernel says is loaded", "bpftool"),
    program("rustc-web", For::Tracer, "programs for the kernel: a compiler with the target", "rustc"),
    program("cargo-web", For::Tracer, "programs for the kernel: the cargo of that compiler", "cargo"),
    library("rust-web-src", For::Tracer, "programs for the kernel: the sources of `core`"),
    library("llvm-22-dev", For::Tracer, "bpf-linker, which links them"),
    program("qemu-system-x86", For::Vm, "tests under another kernel", "qemu-system-x86_64"),
    library("libjemalloc2", For::Test, "jemalloc under a program"),
    library("libtcmalloc-minimal4", For::Test, "tcmalloc under a program"),
    library("libmimalloc2.0", For::Test, "mimalloc under a program"),
];

/// Makes sure that all packages are there: as root by installing what is missing.
///
/// # Errors
/// When something is missing and this user cannot install it: with the command that does, or, where there is
/// no dpkg, with the programs that are missing.
pub fn ensure(purpose: For) -> Result<()> {
    let needed = PACKAGES.iter().filter(|package| match purpose {
        For::Tracer => package.needed == For::Tracer,
        _ => package.needed == For::Build || package.needed == purpose,
    });
    if find("dpkg-query").is_none() || find("apt-get").is_none() {
        return look_for_programs(needed);
    }
    let missing: Vec<&Package> = needed.filter(|package| !installed(package.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        println!("missing: {} ({})", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        let install = format!("sudo apt-get install -y --no-install-recommends {}", names.join(" "));
        bail!("to be typed first: sudo apt-get update && {install}");
    }
    run(&mut apt_get(&["update", "-q"]))?;
    let _quiet = NoServices::begin()?;
    run(apt_get(&["install", "-q", "-y", "--no-install-recommends"]).args(&names))
}

/// While it lives no package that is installed starts its service (invoke-rc.d(8)): tests start servers of their own.
struct NoServices {
    /// The policy was made for this; whatever was there before says what it says.
    own: bool,
}

impl NoServices {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn begin() -> Result<Self> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o755).open(Self::POLICY);
        let mut policy = match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Self { own: false }),
            made => made.context(Self::POLICY)?,
        };
        let own = Self { own: true };
        policy.write_all(b"#!/bin/sh\nexit 101\n").context(Self::POLICY)?;
        Ok(own)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.own {
            let _ = fs::remove_file(Self::POLICY);
        }
    }
}

/// For a machine that is not Debian: names what is missing, as far as it can be seen.
fn look_for_programs(needed: impl Iterator<Item = &'static Package>) -> Result<()> {
    let mut missing = Vec::new();
    let mut unseen = Vec::new();
    for package in needed {
        match package.program {
            Some(program) if find(program).is_none() => missing.push(format!("{program} ({})", package.why)),
            Some(_) => {}
            None => unseen.push(package.name),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "this is not Debian, so nothing is installed; missing: {}; also needed, by their names in Debian: {}",
        missing.join(", "),
        unseen.join(", ")
    );
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Somebody else may be installing: a machine that has just been started often is.
    command
        .args(["-o", "DPkg::Lock::Timeout=600"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    command
}

/// The package of the kernel of this version (`6.1`) that Debian has now.
///
/// # Errors
/// When this is no Debian, or one with another kernel.
pub fn newest_kernel(version: &str) -> Result<String> {
    const META: &str = "linux-image-amd64";
    if find("apt-cache").is_none() || find("dpkg-deb").is_none() {
        bail!("this is not Debian: no kernel {version} can be downloaded with apt-get");
    }
    let look = || -> Result<Option<String>> {
        let output = Command::new("apt-cache").args(["depends", META]).env("LC_ALL", "C").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().find_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned)))
    };
    let mut found = look()?;
    // SAFETY: geteuid takes nothing and cannot fail.
    if found.is_none() && unsafe { libc::geteuid() } == 0 {
        run(&mut apt_get(&["update", "-q"]))?;
        found = look()?;
    }
    match found {
        Some(package) if package.starts_with(&format!("linux-image-{version}.")) => Ok(package),
        Some(package) => bail!("this Debian's {META} is {package}, not Linux {version}"),
        None => bail!("apt knows no {META}; to be typed first: sudo apt-get update"),
    }
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// A program in the path.
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}
