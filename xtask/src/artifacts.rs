//! What is built: `stasis`, `stasis-store`, `stasis-tracer` and its programs, `stasis-benches`, `libstasis.so` and
//! `stasis-restorer`.

use anyhow::{Result, ensure};

use crate::{
    ebpf,
    run::{binary_directory, cargo, run},
};

/// The packages of what runs inside the user's process: no_std, and so never in one cargo invocation with the
/// others, whose features for shared dependencies (`std`) would reach them.
pub const INSIDE: [&str; 4] = ["-p", "stasis-preload", "-p", "stasis-restorer"];

/// What there must be afterwards.
pub const BINARIES: [&str; 5] =
    ["stasis", "stasis-store", "stasis-tracer", "stasis-restorer", "libstasis.so"];

/// Builds everything.
///
/// # Errors
/// When cargo fails, or does not make what it should.
pub fn build() -> Result<()> {
    run(&mut cargo(&["build", "--release"]))?;
    run(cargo(&["build", "--release"]).args(INSIDE))?;
    // Built with the others, `stasis` gets the store's client with their feature `server` and is linked with
    // RocksDB: the loader then takes 2 ms more, of the 3 ms that `stasis launch` may take.
    run(&mut cargo(&["build", "--release", "-p", "stasis-cli"]))?;
    for name in BINARIES {
        let path = binary_directory().join(name);
        ensure!(path.exists(), "the build has not made {}", path.display());
    }
    // The tracer is for who wants it, and needs a compiler of its own: where that cannot be had, all else works.
    if let Err(error) = ebpf::build() {
        println!("built without the tracer's programs: {error:#}");
    }
    Ok(())
}
