//! The scripts in tests/programs/scripts: work in twenty steps, each told of by a line.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the script of this name is.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/scripts").join(name)
}

/// Lets those that work in `directory` come to their end. Until then they wait in front of it: on a busy machine one would
/// else be at its end before the checkpoint in the middle of its work has been taken.
#[track_caller]
pub fn let_finish(directory: &Path) {
    fs::write(directory.join("finish"), "").expect("a file in the directory of a script");
}
