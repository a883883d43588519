//! Copies what was built to where people keep programs.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    ebpf::OBJECT,
    run::{binary_directory, workspace},
};

/// Installs to `prefix/bin` and `prefix/lib/stasis`; the tracer's units to `prefix/lib/systemd/system`.
///
/// # Errors
/// When a directory or file cannot be written: with its path.
pub fn install(prefix: &Path) -> Result<()> {
    let (programs, library) = (prefix.join("bin"), prefix.join("lib/stasis"));
    put("stasis", &programs)?;
    for name in ["stasis-store", "stasis-tracer", "stasis-restorer", "libstasis.so"] {
        put(name, &library)?;
    }
    if binary_directory().join(OBJECT).exists() {
        put(OBJECT, &library)?;
        units(prefix, &library)?;
    }
    Ok(())
}

/// The tracer's units for systemd, which name its path. Nothing is enabled.
fn units(prefix: &Path, library: &Path) -> Result<()> {
    let directory = prefix.join("lib/systemd/system");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    for name in ["stasis-tracer.service", "stasis-tracer.socket"] {
        let unit = workspace().join("ebpf").join(name);
        let text = fs::read_to_string(&unit).with_context(|| unit.display().to_string())?;
        let path = directory.join(name);
        let text = text.replace("@LIBRARY@", &library.display().to_string());
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("{}", path.display());
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
