//! Copies what was built to where people keep programs.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::run::binary_directory;

/// Installs to `prefix/bin` and `prefix/lib/stasis`.
///
/// # Errors
/// When a directory or file cannot be written: with its path.
pub fn install(prefix: &Path) -> Result<()> {
    let (programs, library) = (prefix.join("bin"), prefix.join("lib/stasis"));
    put("stasis", &programs)?;
    for name in ["stasis-store", "stasis-restorer", "libstasis.so"] {
        put(name, &library)?;
    }
    Ok(())
}

/// A new file takes the old one's name: the library may be mapped by running programs, which go on with
/// the old one.
fn put(name: &str, directory: &Path) -> Result<()> {
    let failed =
        || format!("{} cannot be written; --prefix names another place", directory.join(name).display());
    fs::create_dir_all(directory).with_context(failed)?;
    let unfinished = directory.join(format!(".{name}.new"));
    fs::copy(binary_directory().join(name), &unfinished).with_context(failed)?;
    fs::rename(&unfinished, directory.join(name)).with_context(failed)?;
    println!("{}", directory.join(name).display());
    Ok(())
}
