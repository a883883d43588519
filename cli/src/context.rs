//! What every subcommand is given: the common options, resolved when they are first needed.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{address::Address, args::Common, failure::Failure};

pub struct Context {
    coord: Option<OsString>,
    store: Option<PathBuf>,
    pub json: bool,
    pub quiet: bool,
}

impl Context {
    pub fn new(common: &Common) -> Self {
        Self {
            coord: common.coord.clone().filter(|coord| !coord.is_empty()),
            store: common.store.clone().filter(|store| !store.as_os_str().is_empty()),
            json: common.json,
            quiet: common.quiet,
        }
    }

    /// Where the coordinator of the computation listens, or would.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the address cannot be understood; otherwise why its directory is unusable.
    pub fn address(&self) -> anyhow::Result<Address> {
        Address::resolve(self.coord.as_deref())
    }

    /// The store's directory as an absolute path; it need not exist.
    ///
    /// # Errors
    /// [`Failure::Usage`] when none is named and there is no home directory to have one in.
    pub fn store(&self) -> anyhow::Result<PathBuf> {
        let directory = match &self.store {
            Some(directory) => directory.clone(),
            None => default_store()?,
        };
        std::path::absolute(&directory).with_context(|| format!("the store {}", directory.display()))
    }

    /// Whether the store was named by `--store` or STASIS_STORE.
    pub fn store_is_named(&self) -> bool {
        self.store.is_some()
    }
}

/// $XDG_DATA_HOME/stasis, else ~/.local/share/stasis (XDG base directory specification: a relative
/// value is to be ignored).
fn default_store() -> Result<PathBuf, Failure> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(Path::new(".local/share"))))
        .map(|data| data.join("stasis"))
        .ok_or_else(|| {
            Failure::Usage("neither XDG_DATA_HOME nor HOME is set: name the store with --store DIR".into())
        })
}
