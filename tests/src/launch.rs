//! How a program is started: launched, restarted, or natively for comparison.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    lab::{Lab, binary},
    outcome::describe,
    pseudoterminal::Pseudoterminal,
    running::{Files, Running},
};

pub(crate) enum Kind {
    Native,
    Launch,
    Restart,
}

/// A program about to be started.
pub struct Launch {
    lab: Lab,
    kind: Kind,
    options: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    stdio: [Option<Stdio>; 3],
    files: Option<Files>,
    terminal: bool,
}

impl Launch {
    pub(crate) fn new<S: AsRef<OsStr>>(
        lab: &Lab,
        kind: Kind,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            lab: lab.clone(),
            kind,
            options: Vec::new(),
            arguments: arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect(),
            environment: Vec::new(),
            directory: None,
            stdio: [None, None, None],
            files: None,
            terminal: false,
        }
    }

    /// Options of `stasis launch`, before `--`.
    pub fn options<S: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = S>) -> Self {
        self.options.extend(options.into_iter().map(|option| option.as_ref().to_owned()));
        self
    }

    pub fn environment(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The working directory; the lab's when not given.
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Standard input; /dev/null when not given.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdio[0] = Some(stdin.into());
        self
    }

    /// Standard output; a file when not given.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdio[1] = Some(stdout.into());
        self
    }

    /// Standard error; a file when not given.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stdio[2] = Some(stderr.into());
        self
    }

    /// Makes the program the leader of a session in front of a terminal, which its standard descriptors are.
    pub fn on_terminal(mut self, terminal: &Pseudoterminal) -> Self {
        self.stdio = [(); 3].map(|()| Some(terminal.stdio()));
        self.terminal = true;
        self
    }

    /// Which program a restart continues, when it is not the one launched last: its files are waited
    /// on, and its `STASIS_TEST_GO` is the one that [`Running::go`] makes.
    pub fn continuing(mut self, files: &Files) -> Self {
        self.files = Some(files.clone());
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(self) -> Running {
        let place = self.lab.place();
        let number = place.next_number();
        let file = |extension: &str| place.path().join(format!("{number}.{extension}"));
        let own = Files { stdout: file("stdout"), stderr: file("stderr"), go: file("go") };

        let mut command = match self.kind {
            Kind::Native => self.lab.command(&self.arguments[0]),
            Kind::Launch | Kind::Restart => self.lab.stasis(),
        };
        match self.kind {
            Kind::Native => command.args(&self.arguments[1..]),
            Kind::Launch => command.arg("launch").args(&self.options).arg("--").args(&self.arguments),
            Kind::Restart => command.arg("restart").args(&self.options).args(&self.arguments),
        };
        command
            .env("STASIS_TEST_GO", &own.go)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let [stdin, stdout, stderr] = self.stdio;
        command.stdin(stdin.unwrap_or_else(Stdio::null));
        command.stdout(stdout.unwrap_or_else(|| create(&own.stdout)));
        command.stderr(stderr.unwrap_or_else(|| create(&own.stderr)));
        if self.terminal {
            take_terminal(&mut command);
        }
        let described = describe(&command);
        let child = command.spawn().unwrap_or_else(|error| panic!("{described}: {error}"));
        let continued = match self.kind {
            Kind::Restart => self.files.or_else(|| place.last_launched()),
            Kind::Native | Kind::Launch => None,
        };
        let files = continued.unwrap_or(own);
        if matches!(self.kind, Kind::Launch) {
            place.set_last_launched(files.clone());
        }
        Running::new(self.lab.clone(), child, described, files)
    }

    /// The library that `stasis launch` preloads, for tests that place it themselves.
    #[track_caller]
    pub fn library() -> PathBuf {
        binary("libstasis.so")
    }
}

fn create(path: &Path) -> Stdio {
    File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

fn take_terminal(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let take = || {
        nix::unistd::setsid()?;
        // SAFETY: TIOCSCTTY takes an integer; descriptor 0 is open in the child.
        match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it only makes system calls, and allocates nothing.
    unsafe { command.pre_exec(take) };
}
