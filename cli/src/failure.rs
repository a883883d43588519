//! How a command fails: the reasons that have an exit code of their own, and how a failure is told.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use stasis_protocol::coordinator::Refusal;

use crate::{output, report};

/// What the process exits with (documented in `stasis --help`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u8);

impl ExitCode {
    pub const SUCCESS: Self = Self(0);
    pub const FAILURE: Self = Self(1);
    pub const USAGE: Self = Self(2);
    pub const NO_COORDINATOR: Self = Self(3);
    pub const REFUSED: Self = Self(4);
    pub const STORE: Self = Self(5);
    pub const NOT_EXECUTABLE: Self = Self(126);
    pub const NOT_FOUND: Self = Self(127);

    /// The code's name in JSON.
    fn name(self) -> &'static str {
        match self {
            Self::SUCCESS => "success",
            Self::USAGE => "usage",
            Self::NO_COORDINATOR => "no-coordinator",
            Self::REFUSED => "refused",
            Self::STORE => "store",
            Self::NOT_EXECUTABLE => "not-executable",
            Self::NOT_FOUND => "not-found",
            _ => "failure",
        }
    }
}

impl From<ExitCode> for i32 {
    fn from(code: ExitCode) -> Self {
        code.0.into()
    }
}

/// The failures that have an exit code of their own; any other error is [`ExitCode::FAILURE`].
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("no coordinator listens at {address}; {remedy}")]
    NoCoordinator { address: String, remedy: &'static str },
    /// At least one refusal.
    #[error("{}", join(.0))]
    Refused(Vec<Refusal>),
    #[error("the store {}: {message}", .directory.display())]
    Store { directory: PathBuf, message: String },
    /// Who read our standard output went away (`stasis log | head`): no message is due.
    #[error("standard output is closed")]
    OutputGone,
    #[error("{0}")]
    ProgramNotFound(String),
    #[error("{0}")]
    ProgramNotExecutable(String),
}

impl Failure {
    pub fn refused(what: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused(vec![Refusal { what: what.into(), reason: reason.into(), remedy: remedy.into() }])
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::USAGE,
            Self::NoCoordinator { .. } => ExitCode::NO_COORDINATOR,
            Self::Refused(refusals) if refusals.iter().all(Refusal::is_for_want_of_a_store) => {
                ExitCode::STORE
            }
            Self::Refused(_) => ExitCode::REFUSED,
            Self::Store { .. } => ExitCode::STORE,
            Self::OutputGone => ExitCode::FAILURE,
            Self::ProgramNotFound(_) => ExitCode::NOT_FOUND,
            Self::ProgramNotExecutable(_) => ExitCode::NOT_EXECUTABLE,
        }
    }
}

fn join(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Prints a failure on standard error, and as JSON on standard output where that was asked for.
/// Returns what to exit with.
pub fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let failure = error.downcast_ref::<Failure>();
    let code = failure.map_or(ExitCode::FAILURE, Failure::exit_code);
    let message = format!("{error:#}");
    if let Some(Failure::OutputGone) = failure {
        return code;
    }
    let mut stderr = io::stderr().lock();
    for line in message.lines() {
        // There is nobody left to tell when standard error is gone.
        let _ = writeln!(stderr, "stasis: {line}");
    }
    if json {
        let refusals = match failure {
            Some(Failure::Refused(refusals)) => refusals.iter().map(report::Refusal::from).collect(),
            _ => Vec::new(),
        };
        let report = report::Failure {
            error: report::FailureBody { kind: code.name(), exit_code: code.0, message, refusals },
        };
        let _ = output::json(&report);
    }
    code
}
