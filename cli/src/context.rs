//! What every subcommand is given: the common options, resolved when they are first needed.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{
    address::{self, Address, Target},
    args::Common,
    failure::Failure,
    remote::Remote,
};

pub struct Context {
    coord: Option<OsString>,
    token_file: Option<PathBuf>,
    store: Option<PathBuf>,
    pub json: bool,
    pub quiet: bool,
}

impl Context {
    pub fn new(common: &Common) -> Self {
        Self {
            coord: common.coord.clone().filter(|coord| !coord.is_empty()),
            token_file: common.token_file.clone().filter(|file| !file.as_os_str().is_empty()),
            store: common.store.clone().filter(|store| !store.as_os_str().is_empty()),
            json: common.json,
            quiet: common.quiet,
        }
    }

    /// Where the coordinator of the computation is.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the address cannot be understood, or needs a token; otherwise why its directory is
    /// unusable.
    pub fn coordinator(&self) -> anyhow::Result<Target> {
        match address::over_tcp(self.coord.as_deref())? {
            None => Ok(Target::Here(Address::resolve(self.coord.as_deref())?)),
            Some(at) => {
                let token_file = self.token_file()?.ok_or_else(|| {
                    Failure::Usage(format!(
                        "tcp:{at} needs the token that its coordinator was given: --token-file FILE, or STASIS_TOKEN_FILE"
                    ))
                })?;
                Ok(Target::Afar(Remote { at, token_file }))
            }
        }
    }

    /// Where the coordinator of the computation listens on this host, or would.
    ///
    /// # Errors
    /// As [`Context::coordinator`]; [`Failure::Refused`] where it is reached over TCP.
    pub fn address(&self) -> anyhow::Result<Address> {
        match self.coordinator()? {
            Target::Here(address) => Ok(address),
            Target::Afar(remote) => bail!(Failure::refused(
                format!("--coord {remote}"),
                "over TCP a computation is looked at (status), checkpointed and ended (kill), and its coordinator told \
                 what to do (coordinator); everything else is about processes, which are known by pids and descriptors of \
                 their host",
                format!("run `stasis` on {}, or name a coordinator of this host", remote.host())
            )),
        }
    }

    /// The file with the token for TCP, as an absolute path.
    ///
    /// # Errors
    /// [`Failure::Usage`] when there is no working directory that it could be relative to.
    pub fn token_file(&self) -> Result<Option<PathBuf>, Failure> {
        let absolute = |file| std::path::absolute(file);
        self.token_file
            .as_ref()
            .map(absolute)
            .transpose()
            .map_err(|error| Failure::Usage(format!("--token-file cannot be made an absolute path: {error}")))
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
