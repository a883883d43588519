//! Builds the tracer's programs for the kernel: another target, and a compiler that can build `core` for it.
//!
//! Where rustup has a nightly with its sources, and there is a bpf-linker, these are taken. Else Debian's compiler for
//! the web and LLVM, with a bpf-linker that is built once (some three minutes) and kept under the user's cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    packages,
    run::{binary_directory, run, workspace},
};

/// What the service loads, beside the other binaries.
pub const OBJECT: &str = "stasis-tracer.bpf.o";

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// What compiles and links.
struct Toolchain {
    cargo: Command,
    linker: PathBuf,
}

/// Builds the object and puts it beside the binaries.
///
/// # Errors
/// When the toolchain is missing and cannot be installed, or the build fails.
pub fn build() -> Result<()> {
    let directory = workspace().join("ebpf/programs");
    let target = binary_directory().with_file_name("bpf");
    let Toolchain { mut cargo, linker } = toolchain()?;
    cargo
        .args(["build", "-Z", "build-std=core", "--target", TARGET, "--release"])
        .current_dir(&directory)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags());
    run(&mut cargo)?;
    let built = target.join(TARGET).join("release/stasis-programs");
    let object = binary_directory().join(OBJECT);
    // The service may be reading the old one.
    let unfinished = binary_directory().join(format!(".{OBJECT}.new"));
    fs::create_dir_all(binary_directory())?;
    fs::copy(&built, &unfinished).with_context(|| built.display().to_string())?;
    fs::rename(&unfinished, &object).with_context(|| object.display().to_string())
}

/// BTF is what tells the kernel the programs' names and lines.
fn flags() -> String {
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    [architecture.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\u{1f}")
}

fn toolchain() -> Result<Toolchain> {
    if let Some(toolchain) = nightly() {
        return Ok(toolchain);
    }
    packages::ensure(packages::For::Tracer).context(
        "the tracer's programs need rustup's nightly with rust-src and bpf-linker, or Debian's packages",
    )?;
    let linker = linker()?;
    let mut cargo = without_rustup("/usr/bin/cargo");
    // Named, or cargo takes rustup's; a release compiler has the means to build `core`, but must be told to use them.
    cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
    Ok(Toolchain { cargo, linker })
}

/// rustup's nightly, if it has its sources, and a bpf-linker in the path.
fn nightly() -> Option<Toolchain> {
    let linker = packages::find("bpf-linker")?;
    let output = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir().then(|| {
        let mut cargo = without_rustup("rustup");
        cargo.args(["run", "nightly", "cargo"]);
        Toolchain { cargo, linker }
    })
}

/// A command without what the cargo that runs this has set for itself.
fn without_rustup(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in
        ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO"]
    {
        command.env_remove(name);
    }
    command
}

/// The bpf-linker of this LLVM, built when it is first needed.
fn linker() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep bpf-linker")?;
    let root = cache.join(format!("stasis/bpf-linker-{LINKER}"));
    let linker = root.join("bin/bpf-linker");
    if works(&linker) {
        return Ok(linker);
    }
    let build = root.join("build");
    let mut install = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    install
        .args(["install", "bpf-linker", "--version", LINKER, "--locked", "--force"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(&root)
        .current_dir(&cache)
        .env_remove("RUSTFLAGS")
        .env("CARGO_TARGET_DIR", &build)
        .env("LLVM_PREFIX", LLVM);
    fs::create_dir_all(&build).with_context(|| build.display().to_string())?;
    run(&mut install)?;
    let _ = fs::remove_dir_all(&build);
    ensure!(works(&linker), "{} was built and does not run", linker.display());
    Ok(linker)
}

fn works(linker: &Path) -> bool {
    let version = Command::new(linker).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}
