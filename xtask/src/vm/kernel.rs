//! A kernel of Debian's: downloaded as a package and unpacked, not installed. Installing would make it this machine's next
//! kernel (and an initramfs, and a boot menu), where all that is needed are one file and some modules.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{packages, run::run};

/// What the machine has, and what Debian's kernel would load by itself: it finds no modprobe(8) there.
const MODULES: &[&str] =
    &["virtio_pci", "9pnet_virtio", "9p", "unix_diag", "tcp_diag", "udp_diag", "netlink_diag"];

pub struct Kernel {
    pub image: PathBuf,
    /// Each after those that it needs.
    pub modules: Vec<PathBuf>,
}

/// The kernel of this version that is kept in `directory`; it is fetched when there is none yet.
///
/// # Errors
/// When this machine's package lists have none of that version, or it cannot be downloaded.
pub fn find(version: &str, directory: &Path) -> Result<Kernel> {
    let kept = directory.join("kernel");
    if let Ok(kernel) = open(&kept) {
        return Ok(kernel);
    }
    let package = packages::newest_kernel(version)?;
    let unpacked = directory.join("unpacked");
    let unfinished = directory.join("unfinished");
    for path in [&unpacked, &unfinished, &kept] {
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| path.display().to_string())?;
        }
    }
    for path in [&unpacked, &unfinished] {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    }
    run(Command::new("apt-get").args(["download", "-q", &package]).current_dir(&unpacked))?;
    let archive = files(&unpacked)?.pop().with_context(|| format!("apt-get has not downloaded {package}"))?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked))?;
    let all = files(&unpacked)?;
    let image = all.iter().find(|path| name(path).starts_with("vmlinuz-"));
    let image = image.with_context(|| format!("{package} has no boot/vmlinuz-*"))?;
    fs::copy(image, unfinished.join("vmlinuz"))?;
    for module in in_order(&all)? {
        fs::copy(&module, unfinished.join(name(&module)))?;
    }
    // Complete under this name, or not there.
    fs::rename(&unfinished, &kept).with_context(|| kept.display().to_string())?;
    fs::remove_dir_all(&unpacked).with_context(|| unpacked.display().to_string())?;
    open(&kept)
}

fn open(kept: &Path) -> Result<Kernel> {
    let image = kept.join("vmlinuz");
    ensure!(image.exists(), "no {}", image.display());
    Ok(Kernel { image, modules: in_order(&files(kept)?)? })
}

/// Those of the files that are [`MODULES`] and what they need, which comes first.
fn in_order(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let modules: HashMap<String, &PathBuf> = files
        .iter()
        // Names of modules have underscores where those of files may have dashes.
        .filter_map(|path| Some((name(path).strip_suffix(".ko")?.replace('-', "_"), path)))
        .collect();
    let mut ordered = Vec::new();
    for module in MODULES {
        add(module, &modules, &mut ordered)?;
    }
    Ok(ordered)
}

fn add(module: &str, modules: &HashMap<String, &PathBuf>, ordered: &mut Vec<PathBuf>) -> Result<()> {
    let Some(path) = modules.get(module) else { bail!("the kernel's package has no module {module}.ko") };
    let content = fs::read(path).with_context(|| path.display().to_string())?;
    for needed in needs(&content) {
        add(&needed, modules, ordered)?;
    }
    if !ordered.contains(path) {
        ordered.push((*path).clone());
    }
    Ok(())
}

/// The modules that a module says it needs: in its section .modinfo, as `depends=one,other`. depmod(8) would read it there
/// too.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// All files below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=9pnet,virtio-ring\0name=9pnet_virtio\0";
        assert_eq!(needs(module), ["9pnet", "virtio_ring"]);
        assert!(needs(b"\0depends=\0name=virtio\0").is_empty());
    }
}
