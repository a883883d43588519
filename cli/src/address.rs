//! Where a coordinator listens: a unix socket, named by its path or by `HOST:PORT`; or on another host, `tcp:HOST:PORT`.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{failure::Failure, remote::Remote};

const DEFAULT: &str = "localhost:7779";

/// The longest path that fits sockaddr_un (unix(7): 108 bytes with its NUL).
const LONGEST_PATH: usize = 107;

/// Where a command finds its coordinator.
pub enum Target {
    Here(Address),
    Afar(Remote),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(address) => address.fmt(f),
            Self::Afar(remote) => remote.fmt(f),
        }
    }
}

/// `HOST:PORT` of `tcp:HOST:PORT`; `None`: it is another kind of address.
///
/// # Errors
/// [`Failure::Usage`] when it is neither a host nor a port.
pub fn over_tcp(text: Option<&OsStr>) -> Result<Option<String>, Failure> {
    let Some(rest) = text.and_then(|text| text.as_bytes().strip_prefix(b"tcp:")) else { return Ok(None) };
    match host_and_port(OsStr::from_bytes(rest)) {
        Some((host, port)) if port != 0 => Ok(Some(format!("{host}:{port}"))),
        _ => Err(unintelligible(text.unwrap_or_default())),
    }
}

/// `--listen`'s argument.
///
/// # Errors
/// Why nothing can listen there.
pub fn listening(text: &str) -> Result<String, String> {
    match host_and_port(OsStr::new(text)) {
        Some((host, port)) => Ok(format!("{host}:{port}")),
        None => {
            Err("expected HOST:PORT (0.0.0.0:PORT and [::]:PORT: every address of this host; port 0: any)"
                .into())
        }
    }
}

/// A coordinator's address: an absolute socket path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    path: PathBuf,
}

impl Address {
    /// Understands `unix:PATH`, an absolute path, or `HOST:PORT`; `None` is the default.
    ///
    /// # Errors
    /// [`Failure::Usage`] when it is none of these, is another host, or is too long for a socket.
    pub fn resolve(text: Option<&OsStr>) -> anyhow::Result<Self> {
        let text = text.unwrap_or(OsStr::new(DEFAULT));
        let path = if let Some(path) = text.as_bytes().strip_prefix(b"unix:") {
            if path.is_empty() {
                bail!(Failure::Usage("--coord unix: has no path".into()));
            }
            std::path::absolute(OsStr::from_bytes(path)).context("the coordinator's address")?
        } else if text.as_bytes().starts_with(b"/") {
            PathBuf::from(text)
        } else {
            let name = local_name(text)?;
            runtime_directory()?.join(format!("coord-{name}.sock"))
        };
        let len = path.as_os_str().len();
        if len > LONGEST_PATH {
            bail!(Failure::Usage(format!(
                "the coordinator's socket {} has {len} bytes and a unix socket's path at most {LONGEST_PATH}: \
                 name a shorter one with --coord unix:PATH",
                path.display()
            )));
        }
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// This address (0), or the one so many behind it: of `HOST:PORT` the port, of a path a number at its end counts.
    /// `None`: there is none.
    fn numbered(&self, number: u32) -> Option<Self> {
        if number == 0 {
            return Some(self.clone());
        }
        let name = self.path.file_name()?.to_str();
        let port = name.and_then(|name| name.strip_prefix("coord-localhost:")?.strip_suffix(".sock"));
        let path = match port.and_then(|port| port.parse::<u16>().ok()) {
            Some(port) => {
                let port = port.checked_add(u16::try_from(number).ok()?)?;
                self.path.with_file_name(format!("coord-localhost:{port}.sock"))
            }
            None => self.beside(&format!(".{}", number + 1)),
        };
        (path.as_os_str().len() <= LONGEST_PATH).then_some(Self { path })
    }

    /// This address and those behind it, as far as they are tried.
    pub fn and_the_next(&self) -> impl Iterator<Item = Self> + use<'_> {
        const TRIED: u32 = 4096;
        (0..TRIED).map_while(|number| self.numbered(number))
    }

    /// The path with `suffix` added to the file name: what belongs to the coordinator beside its socket.
    pub fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(suffix);
        path.into()
    }
}

/// The sockets of this user's coordinators beside the default one's; one may be left over from a coordinator that was
/// killed.
pub fn all() -> Vec<Address> {
    let Ok(entries) = runtime_directory().and_then(|directory| Ok(fs::read_dir(directory)?)) else {
        return Vec::new();
    };
    let is_socket = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_bytes();
        name.starts_with(b"coord-") && name.ends_with(b".sock")
    };
    entries.flatten().map(|entry| entry.path()).filter(is_socket).map(|path| Address { path }).collect()
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unix:{}", self.path.display())
    }
}

/// Checks `HOST:PORT`; returns the name that stands for it, `localhost:PORT`.
fn local_name(text: &OsStr) -> Result<String, Failure> {
    let (host, port) = host_and_port(text).ok_or_else(|| unintelligible(text))?;
    let own = nix::unistd::gethostname().ok();
    let here = ["localhost", "127.0.0.1", "[::1]", "::1"].contains(&host)
        || own.as_deref().and_then(OsStr::to_str) == Some(host);
    if !here {
        return Err(Failure::Usage(format!(
            "{host}:{port} is on another host: run `stasis` on {host}, or name it tcp:{host}:{port} where its \
             coordinator listens there (`stasis coordinator --listen`)"
        )));
    }
    Ok(format!("localhost:{port}"))
}

fn host_and_port(text: &OsStr) -> Option<(&str, u16)> {
    let (host, port) = text.to_str()?.rsplit_once(':')?;
    Some((host, port.parse().ok()?)).filter(|_| !host.is_empty())
}

fn unintelligible(text: &OsStr) -> Failure {
    Failure::Usage(format!(
        "{} is not an address: expected unix:PATH, HOST:PORT or tcp:HOST:PORT",
        text.to_string_lossy()
    ))
}

/// The user's own directory for sockets, made if need be: $XDG_RUNTIME_DIR/stasis, else
/// /tmp/stasis-UID. Whoever could write there could pose as a coordinator.
fn runtime_directory() -> anyhow::Result<PathBuf> {
    let uid = nix::unistd::geteuid().as_raw();
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|directory| {
        // su(1) and sudo(8) may leave another user's in the environment.
        directory.is_absolute()
            && fs::metadata(directory).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid)
    });
    let directory = match runtime {
        Some(runtime) => runtime.join("stasis"),
        None => PathBuf::from(format!("/tmp/stasis-{uid}")),
    };
    match fs::DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make {}", directory.display()));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(&directory)
        .with_context(|| format!("cannot look at {}", directory.display()))?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
        bail!(Failure::refused(
            directory.display().to_string(),
            format!(
                "not a directory that only uid {uid} may enter (mode {:o}, uid {})",
                meta.mode(),
                meta.uid()
            ),
            "remove it, or name a socket with --coord unix:PATH"
        ));
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PathBuf {
        Address::resolve(Some(OsStr::new(text))).unwrap().path
    }

    #[test]
    fn a_path_is_taken_as_it_is() {
        assert_eq!(path("unix:/a/b.sock"), Path::new("/a/b.sock"));
        assert_eq!(path("/a/b.sock"), Path::new("/a/b.sock"));
    }

    #[test]
    fn what_is_numbered_is_beside_the_first() {
        let numbered = |text: &str, number| {
            let first = Address::resolve(Some(OsStr::new(text))).unwrap();
            first.numbered(number).map(|address| address.path)
        };
        assert_eq!(numbered("/a/b", 0), Some("/a/b".into()));
        assert_eq!(numbered("/a/b", 1), Some("/a/b.2".into()));
        assert_eq!(numbered("localhost:7779", 3), Some(path("localhost:7782")));
        assert_eq!(numbered("localhost:65535", 1), None);
    }

    #[test]
    fn every_name_of_this_host_is_the_same_computation() {
        assert_eq!(local_name(OsStr::new("127.0.0.1:7779")).unwrap(), "localhost:7779");
        assert_eq!(local_name(OsStr::new("localhost:7779")).unwrap(), "localhost:7779");
    }

    #[test]
    fn what_is_no_address_of_this_host_is_a_usage_error() {
        for text in
            ["", "localhost", "localhost:", "localhost:70000", "elsewhere.invalid:1", "../x:1", "unix:"]
        {
            let error = Address::resolve(Some(OsStr::new(text))).unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(Failure::Usage(_))), "{text}: {error}");
        }
    }

    #[test]
    fn tcp_is_a_host_and_a_port() {
        let over = |text: &str| over_tcp(Some(OsStr::new(text)));
        assert_eq!(over("tcp:there:7779").unwrap().as_deref(), Some("there:7779"));
        assert_eq!(over("tcp:[::1]:7779").unwrap().as_deref(), Some("[::1]:7779"));
        assert_eq!(over("there:7779").unwrap(), None);
        assert_eq!(over_tcp(None).unwrap(), None);
        for text in ["tcp:", "tcp:there", "tcp::7779", "tcp:there:0", "tcp:there:x"] {
            assert!(matches!(over(text), Err(Failure::Usage(_))), "{text}");
        }
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_a_usage_error() {
        assert_eq!(path(&format!("unix:/{}", "x".repeat(106))).as_os_str().len(), 107);
        let error = Address::resolve(Some(OsStr::new(&format!("unix:/{}", "x".repeat(107))))).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Failure::Usage(_))));
    }
}
