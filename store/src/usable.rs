//! Whether a directory can be a store, as far as a few system calls tell without opening or changing it: for whoever is about
//! to rely on one that is opened only later.
//!
//! Not here: what the server finds when it opens it.

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use nix::{
    fcntl::AtFlags,
    unistd::{AccessFlags, faccessat},
};

use crate::location::LOCK;

/// Written last when a store is made.
pub(crate) const FORMAT_FILE: &str = "FORMAT";
pub(crate) const KEY_FILE: &str = "key";
pub(crate) const PACKS: &str = "packs";
pub(crate) const INDEX: &str = "index";

/// How many checkpoints there are, by the index.
pub(crate) const COUNT_FILE: &str = "COUNT";

/// The server's log, in the store's directory.
pub const LOG: &str = "server.log";

/// What was in it before it became too long.
pub const OLD_LOG: &str = "server.log.old";

/// Why there can be no store in a directory, and what can be done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {remedy}")]
pub struct Unusable {
    pub problem: String,
    pub remedy: &'static str,
}

const ANOTHER: &str = "name another directory (--store DIR)";

/// Looks whether there is a store in `directory`, or can be one.
///
/// # Errors
/// It is no directory; holds something else; cannot be written; is not there and cannot be made.
pub fn check(directory: &Path) -> Result<(), Unusable> {
    let unusable = |problem: String, remedy| Err(Unusable { problem, remedy });
    match fs::metadata(directory) {
        Ok(found) if !found.is_dir() => return unusable("is not a directory".into(), ANOTHER),
        Ok(_) => {}
        Err(error) if is_missing(&error) => return check_parents(directory),
        Err(error) => return unusable(format!("cannot be looked at: {error}"), ANOTHER),
    }
    if let Err(error) = may(directory, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK) {
        return unusable(
            format!("cannot be written: {error}"),
            "let it be, or name another one (--store DIR)",
        );
    }
    match foreign(directory) {
        Ok(None) => Ok(()),
        Ok(Some(found)) => unusable(
            format!("is not a store: it holds {found:?} but no FORMAT file"),
            "give an empty directory",
        ),
        Err(error) => unusable(format!("cannot be read: {error}"), ANOTHER),
    }
}

/// Whether a directory that is not there can be made.
fn check_parents(directory: &Path) -> Result<(), Unusable> {
    for parent in directory.ancestors() {
        let problem = match fs::metadata(parent) {
            Ok(found) if !found.is_dir() => format!("{} is not a directory", parent.display()),
            Ok(_) => match may(parent, AccessFlags::W_OK | AccessFlags::X_OK) {
                Ok(()) => return Ok(()),
                Err(error) => format!("{}: {error}", parent.display()),
            },
            Err(error) if is_missing(&error) && fs::symlink_metadata(parent).is_ok() => {
                format!("{} is a symbolic link to nothing", parent.display())
            }
            Err(error) if is_missing(&error) => continue,
            Err(error) => format!("{}: {error}", parent.display()),
        };
        return Err(Unusable {
            problem: format!("does not exist and cannot be made ({problem})"),
            remedy: ANOTHER,
        });
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn may(directory: &Path, access: AccessFlags) -> io::Result<()> {
    Ok(faccessat(nix::fcntl::AT_FDCWD, directory, access, AtFlags::AT_EACCESS)?)
}

/// What a directory without a FORMAT file holds that no store would.
///
/// # Errors
/// It cannot be read.
pub(crate) fn foreign(directory: &Path) -> io::Result<Option<String>> {
    if directory.join(FORMAT_FILE).try_exists()? {
        return Ok(None);
    }
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let known = [LOCK, LOG, OLD_LOG, KEY_FILE, PACKS, INDEX, COUNT_FILE, "lost+found"]
            .iter()
            .any(|known| name == *known);
        if !known && !name.to_string_lossy().ends_with(".new") {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(directory: &Path) -> String {
        check(directory).unwrap_err().to_string()
    }

    #[test]
    fn what_is_free_or_was_begun_can_be_a_store() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(check(place.path()), Ok(()));
        assert_eq!(check(&place.path().join("not/there/yet")), Ok(()));
        fs::write(place.path().join(KEY_FILE), "").unwrap();
        assert_eq!(check(place.path()), Ok(()));
        fs::write(place.path().join("file"), "").unwrap();
        fs::write(place.path().join(FORMAT_FILE), "").unwrap();
        assert_eq!(check(place.path()), Ok(()));
    }

    #[test]
    fn what_is_something_else_cannot() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(problem(place.path()).contains("holds \"file\""));
        assert!(problem(&file).starts_with("is not a directory"));
        assert!(problem(&file.join("store")).contains("file is not a directory"));
        let link = place.path().join("link");
        std::os::unix::fs::symlink("/nowhere/at-all", &link).unwrap();
        assert!(problem(&link).contains("link to nothing"));
    }
}
