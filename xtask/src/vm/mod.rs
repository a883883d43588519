//! `cargo xtask vm`: end-to-end tests under a kernel of Debian's, in a virtual machine.
//!
//! Its root is this machine's, read-only, and the tests are those that were built here. So nothing is installed and
//! no image is made: a kernel, some of its modules and one static program (`xtask/init`) are all there is to it.
//!
//! Not here: what happens inside (`xtask/init`).

mod initramfs;
mod kernel;
mod machine;
mod programs;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    packages,
    run::{binary_directory, cargo, run, workspace},
    summary::Summary,
    vm::{
        kernel::Kernel,
        machine::{Machine, Processors},
        programs::Program,
    },
};

/// The package of the machine's first process.
pub const INIT: &str = "stasis-vm-init";

/// How the tests ended.
pub struct Report {
    pub summary: Summary,
    /// `name: reason` of each test that found out by itself that it cannot run there.
    pub skipped: Vec<String>,
    /// Whether all programs ended well.
    pub good: bool,
    /// `Linux 6.1, emulated`.
    pub place: String,
}

impl Report {
    pub fn show(&self) {
        for line in &self.skipped {
            println!("skipped: {line}");
        }
        println!("{}: {}", self.place, self.summary);
    }
}

/// What there must be for a machine.
pub struct Prepared {
    version: String,
    kernel: Kernel,
}

/// Makes sure that there are qemu and the kernel of this version.
///
/// # Errors
/// When one of them is not there and cannot be had: what is to be done.
pub fn prepare(version: &str) -> Result<Prepared> {
    packages::ensure(packages::For::Vm)?;
    let kernel = kernel::find(version, &directory(version))
        .with_context(|| format!("there is no kernel {version} to be booted"))?;
    Ok(Prepared { version: version.to_owned(), kernel })
}

impl Prepared {
    /// Runs tests: those that depend on the kernel most (few of them where processors are emulated), or what `filters`
    /// name. Everything must be built.
    ///
    /// # Errors
    /// When the machine could not be made or did not come to its end, with the end of its console.
    pub fn test(&self, filters: &[String]) -> Result<Report> {
        // The flag is for this program only; by RUSTFLAGS everything would be built anew.
        run(&mut cargo(&["rustc", "--release", "-p", INIT, "--", "-C", "target-feature=+crt-static"]))?;
        let directory = directory(&self.version);
        let (initramfs, console) = (directory.join("initramfs"), directory.join("console.log"));
        let machine = Machine {
            version: &self.version,
            kernel: &self.kernel.image,
            initramfs: &initramfs,
            console: &console,
        };
        machine.run(DEADLINE, |processors| {
            let programs = programs::choose(filters, processors == Processors::Emulated)?;
            let init = binary_directory().join(INIT);
            initramfs::write(&initramfs, &self.kernel, &init, &job(&self.kernel, &programs)?)
                .with_context(|| initramfs.display().to_string())
        })
    }
}

/// How long all of it may take: some minutes with emulated processors.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Where all of it is kept.
fn directory(version: &str) -> PathBuf {
    target_directory().join("vm").join(version)
}

fn target_directory() -> PathBuf {
    binary_directory().parent().expect("<target>/release").to_owned()
}

/// What the machine's first process is to do (`xtask/init/src/job.rs`).
fn job(kernel: &Kernel, programs: &[Program]) -> Result<String> {
    let mut job = String::new();
    let mut add = |key: &str, value: &str| {
        assert!(!value.contains('\n'), "a line break in {value}");
        job += &format!("{key} {value}\n");
    };
    for module in &kernel.modules {
        add("module", &initramfs::module(module));
    }
    for path in [workspace(), &target_directory()] {
        // What the machine has file systems of its own for.
        if ["/tmp", "/run", "/dev"].iter().any(|hidden| path.starts_with(hidden)) {
            add("keep", text(path)?);
        }
    }
    // Where tests compile programs; those that are there are not compiled again.
    let programs_compiled = target_directory().join("test-programs");
    fs::create_dir_all(&programs_compiled).with_context(|| programs_compiled.display().to_string())?;
    add("copy", text(&programs_compiled)?);
    for variable in ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run"] {
        add("environment", variable);
    }
    add("environment", &format!("STASIS_BIN_DIR={}", text(&binary_directory())?));
    add("directory", text(&workspace().join("tests"))?);
    for program in programs {
        add("program", text(&program.path)?);
        for argument in &program.arguments {
            add("argument", argument);
        }
    }
    Ok(job)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
