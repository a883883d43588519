//! Where the other parts of Stasis are: beside the running executable as they are built, under
//! ../lib/stasis as they are installed, or where an environment variable says.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// A part that `stasis` needs at run time.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its file name.
    pub file: &'static str,
    /// The environment variable that names it.
    variable: &'static str,
}

/// The preload library.
pub const LIBRARY: Part = Part { file: "libstasis.so", variable: "STASIS_LIB" };
/// The code that replaces a fresh process by a saved one.
pub const RESTORER: Part = Part { file: "stasis-restorer", variable: "STASIS_RESTORER" };
/// The store server.
pub const STORE_SERVER: Part = Part { file: "stasis-store", variable: "STASIS_STORE_SERVER" };

/// The absolute path of a part.
///
/// # Errors
/// Names where it was looked for when it is in none of these places.
pub fn find(part: Part) -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os(part.variable).filter(|value| !value.is_empty()) {
        let path = std::path::absolute(&named)?;
        if !path.is_file() {
            bail!("{}: {} names no file", path.display(), part.variable);
        }
        return Ok(path);
    }
    // The link is followed: `stasis` may be reached by a symbolic link in another directory.
    let executable = env::current_exe().context("cannot tell where `stasis` itself is (/proc/self/exe)")?;
    let directory = executable.parent().unwrap_or(Path::new("/"));
    let installed = directory.parent().unwrap_or(directory).join("lib/stasis");
    for place in [directory, &installed] {
        let path = place.join(part.file);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "{} is neither in {} nor in {}, where `cargo xtask build` and `cargo xtask install` put it, nor named by {}",
        part.file,
        directory.display(),
        installed.display(),
        part.variable
    )
}
