//! The command line: what `stasis --help` says.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser as _},
};

use crate::address;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, for the reason printed
  2  the command line cannot be understood
  3  no coordinator listens at the address
  4  refused by name; what ran goes on running
  5  the store cannot be opened or read, or is corrupt
`launch` and `restart` end as the program does. Where the program cannot be started:
  126  it is there and cannot be executed
  127  it is not there";

/// Checkpoints and restarts a running program, without changing it.
#[derive(Debug, Parser)]
#[command(name = "stasis", version, after_help = EXIT_CODES, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Common {
    /// The computation's coordinator: unix:PATH, HOST:PORT or tcp:HOST:PORT.
    ///
    /// HOST:PORT names a computation of this user on this host and nothing listens on the network:
    /// it stands for the unix socket $XDG_RUNTIME_DIR/stasis/coord-HOST:PORT.sock (without
    /// XDG_RUNTIME_DIR: /tmp/stasis-UID/). The default is localhost:7779. tcp:HOST:PORT is a coordinator that was told to listen
    /// there (stasis coordinator --listen), for `status`, `checkpoint`, `kill` and `coordinator`; it needs --token-file.
    #[arg(
        long,
        global = true,
        env = "STASIS_COORD",
        value_name = "ADDRESS",
        hide_env_values = true,
        help_heading = "Common options"
    )]
    pub coord: Option<OsString>,
    /// The token that proves a coordinator and who reaches it over TCP to each other
    ///
    /// A file of 16 bytes and more that belongs to the user and that nobody else may use (mode 0600). It is never sent.
    #[arg(
        long,
        global = true,
        env = "STASIS_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true,
        help_heading = "Common options"
    )]
    pub token_file: Option<PathBuf>,
    /// Where checkpoints are kept [default: $XDG_DATA_HOME/stasis]
    #[arg(
        long,
        global = true,
        env = "STASIS_STORE",
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        value_name = "DIR",
        hide_env_values = true,
        help_heading = "Common options"
    )]
    pub store: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true, help_heading = "Common options")]
    pub json: bool,
    /// Print only what was asked for
    #[arg(long, short, global = true, help_heading = "Common options")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a program so that it can be checkpointed
    Launch(LaunchArgs),
    /// Take a checkpoint; prints its id once it is durable
    Checkpoint(CheckpointArgs),
    /// Go on from a checkpoint
    Restart(RestartArgs),
    /// What the computation is doing
    Status,
    /// The checkpoints of the store, oldest first
    List,
    /// The checkpoints that lead to one, newest first
    Log(LogArgs),
    /// What is in a checkpoint
    Show(ShowArgs),
    /// Which mappings changed between two checkpoints, and by how much
    Diff(DiffArgs),
    /// How much room checkpoints take, and what deleting one would give back
    Du(DuArgs),
    /// Read every page against its hash, and say what is damaged
    Verify(VerifyArgs),
    /// Delete checkpoints: those named, or all that a rule does not keep
    Prune(PruneArgs),
    /// Give back the room of what no checkpoint needs, and compress the rest where that pays
    Gc(GcArgs),
    /// Write checkpoints to standard output, for `stasis import`
    Export(ExportArgs),
    /// Read checkpoints from standard input: all of them, or none
    Import,
    /// End every process of the computation (SIGKILL)
    ///
    /// Where the tracer runs, also those that the library is not in.
    Kill,
    /// Start the coordinator of a computation, in the background
    Coordinator(CoordinatorArgs),
    /// Start the store server of a store, unless one runs (`stasis store --foreground`: and stay)
    Store(StoreArgs),
    /// What computations do, as the kernel sees it: needs the tracer
    Trace(TraceArgs),
    /// The computations of this machine, live: needs the tracer
    ///
    /// Without it only those are found whose coordinators are at --coord or at HOST:PORT, and of them only the processes with
    /// the library; where there is none of them, that is refused.
    Top(TopArgs),
    /// Say what of this machine Stasis can use, and what is missing
    Doctor,
}

impl Command {
    /// Whether another program takes the place of `stasis`, and with it its signal actions.
    pub fn becomes_a_program(&self) -> bool {
        match self {
            Self::Launch(_) | Self::Restart(_) => true,
            Self::Store(args) => args.foreground,
            _ => false,
        }
    }
}

#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// Give it a coordinator of its own, at the first free address from --coord on, which is printed
    ///
    /// The next ones are: port 7780 and so on; of a path, PATH.2 and so on.
    #[arg(long)]
    pub new: bool,
    /// Run it in the background; print the computation's id and the pid once it has joined
    ///
    /// It reads from /dev/null. What it writes to standard output goes where that of `launch` goes, unless that is a pipe:
    /// who reads the id from there does not wait for the program, and its output is discarded.
    #[arg(long)]
    pub detach: bool,
    /// Take a checkpoint every so many seconds (fractions allowed; 0: none)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub interval: Option<Duration>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// End the processes once the checkpoint is durable
    #[arg(long)]
    pub kill: bool,
    /// What to do about sockets connected to something outside of the computation
    ///
    /// Connections that are open are not touched by the checkpoint; what it cannot hold is their
    /// other ends.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub external_sockets: ExternalSockets,
    /// A name for the checkpoint; it moves from an older checkpoint to this one
    #[arg(long)]
    pub label: Option<String>,
    /// What to do about processes of the computation that the library is not in: needs the tracer [default: refuse]
    #[arg(long, value_name = "POLICY", value_enum)]
    pub on_escape: Option<OnEscape>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnEscape {
    /// Take no checkpoint
    Refuse,
    /// Take it without them and say so; with --kill they are ended, too
    Warn,
    /// The same, and say nothing
    Ignore,
    /// As `warn`, but they run on after --kill
    LeaveRunning,
}

/// What is done about sockets whose other ends are outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExternalSockets {
    /// Refuse the checkpoint, and name them
    #[default]
    Refuse,
    /// Take it; a restarted program finds them reset (ECONNRESET), and with --kill their peers do
    Close,
    /// Take it of a program that runs on, connections and all (not with --kill)
    Keep,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    /// The checkpoint: an id, the beginning of one, a label, latest, each with an optional ~N
    #[arg(value_name = "REF", default_value = "latest")]
    pub reference: String,
    /// Go on at once and load memory as it is touched: the default for programs with 32 MiB and more
    #[arg(long, conflicts_with = "eager")]
    pub lazy: bool,
    /// Load all memory first
    #[arg(long)]
    pub eager: bool,
    /// Restart it so many times at once, each a computation of its own
    ///
    /// Their memory is loaded once, and shared until they write to it (with --lazy each has a pager of its own, and they
    /// share what the kernel has cached of the store). Each has its pids, in a pid namespace where they are taken, and its
    /// coordinator: at the address of --coord, or the next ones (port 7780, or PATH.2, and so on) that are free; they are
    /// printed. All have what the program had open: output to one terminal is mixed, and a file that each goes on
    /// writing at the same place is overwritten. It ends when all have ended, with the status of the first that failed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub clones: Option<u32>,
    /// Give it a coordinator of its own, at the first free address from --coord on, which is printed
    ///
    /// The next ones are: port 7780 and so on; of a path, PATH.2 and so on.
    #[arg(long, conflicts_with = "clones")]
    pub new: bool,
    /// Run it in the background; print the computation's id and the pids once it runs
    ///
    /// What it writes to standard output is discarded where that of `restart` is a pipe, as with `launch --detach`.
    #[arg(long)]
    pub detach: bool,
    /// Take a checkpoint every so many seconds (fractions allowed; 0: none)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub interval: Option<Duration>,
    /// What to do about an open file that is not there any more
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = MissingFile::Refuse)]
    pub on_missing_file: MissingFile,
    /// What to do about an open file that is not what it was
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = ChangedFile::Refuse)]
    pub on_changed_file: ChangedFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MissingFile {
    /// Do not restart
    Refuse,
    /// Restart without the descriptor
    Skip,
    /// Put /dev/null in its place
    Null,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ChangedFile {
    /// Do not restart
    Refuse,
    /// Open it as it is
    Accept,
}

#[derive(Debug, Args)]
pub struct LogArgs {
    /// Where to begin: an id, the beginning of one, a label, latest, each with an optional ~N
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An id, the beginning of one, a label, latest, each with an optional ~N
    #[arg(value_name = "REF", default_value = "latest")]
    pub reference: String,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An id, the beginning of one, a label, latest, each with an optional ~N [default: all]
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// An id, the beginning of one, a label, latest, each with an optional ~N
    #[arg(value_name = "A")]
    pub from: String,
    /// The same
    #[arg(value_name = "B", default_value = "latest")]
    pub to: String,
}

#[derive(Debug, Args)]
pub struct DuArgs {
    /// An id, the beginning of one, a label, latest, each with an optional ~N [default: all]
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
}

#[derive(Debug, Args)]
pub struct GcArgs {
    /// Compress only what is moved because the rest of its pack is garbage
    #[arg(long)]
    pub no_compression: bool,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Ids, beginnings of one, labels, latest, each with an optional ~N
    #[arg(value_name = "REF", required = true)]
    pub references: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The checkpoints to delete, labelled or not: ids, beginnings of one, labels, latest, each with an optional ~N
    #[arg(value_name = "REF", conflicts_with_all = ["keep_last", "keep_hourly", "keep_daily", "labels", "computation"])]
    pub references: Vec<String>,
    /// Keep the last N of each computation
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub keep_last: Option<usize>,
    /// Keep the last of each of the last N hours (of UTC) in which a computation has any
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub keep_hourly: Option<usize>,
    /// Keep the last of each of the last N days (of UTC) in which a computation has any
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub keep_daily: Option<usize>,
    /// Delete checkpoints with a label, too, where nothing else keeps them
    #[arg(long)]
    pub labels: bool,
    /// Look at this computation only
    #[arg(long, value_name = "ID")]
    pub computation: Option<String>,
    /// Delete nothing; print what would be
    #[arg(long)]
    pub dry_run: bool,
    /// Leave it to `stasis gc` to give the room back
    #[arg(long)]
    pub no_gc: bool,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// All computations that this user may see, not the one at --coord
    #[arg(long)]
    pub all: bool,
    /// End after so many events
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Print the computation's sockets, and where their other ends are, instead of events
    #[arg(long)]
    pub connections: bool,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print once, as happens where the output is no terminal
    #[arg(long)]
    pub once: bool,
    /// How often to look
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds, default_value = "2")]
    pub every: Duration,
}

#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    pub foreground: bool,
    /// End the coordinator that listens; the processes run on
    #[arg(long, conflicts_with_all = ["foreground", "interval", "listen"])]
    pub stop: bool,
    /// Listen at TCP, too, for those who know the token in --token-file, which is made where it is not there
    ///
    /// 0.0.0.0:PORT and [::]:PORT stand for every address of this host, port 0 for one that is free, which is printed. What is
    /// said there can be read by who sees the network, and not changed, repeated or made up. A coordinator that runs already is
    /// told to listen there, instead of where it was told to before, and does so as long as it runs.
    #[arg(long, value_name = "HOST:PORT", value_parser = address::listening)]
    pub listen: Option<String>,
    /// Take a checkpoint every so many seconds (fractions allowed; 0: none)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub interval: Option<Duration>,
    /// End after so long without a process and a client
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds, default_value = "10")]
    pub idle_seconds: Duration,
    /// How long a process may take for a step of a checkpoint that moves no data
    #[arg(
        long,
        env = "STASIS_DEADLINE_SECONDS",
        value_name = "SECONDS",
        value_parser = deadline,
        default_value = "10",
        allow_negative_numbers = true
    )]
    pub deadline_seconds: Duration,
    /// Where to report that it listens (by the command that starts it)
    #[arg(long, hide = true, value_name = "FD")]
    pub ready_fd: Option<i32>,
}

#[derive(Debug, Args)]
pub struct StoreArgs {
    /// End the store's server, once no checkpoint is being taken
    #[arg(long)]
    pub stop: bool,
    /// Stay in the foreground
    #[arg(long, conflicts_with = "stop")]
    pub foreground: bool,
    /// Options of stasis-store
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    pub options: Vec<OsString>,
}

/// Longer ones are beyond what clocks count from now on.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// What STASIS_DEADLINE_SECONDS may be; empty, it is as if it were not set.
///
/// # Errors
/// Why it is no time.
pub fn deadline(text: &str) -> Result<Duration, String> {
    if text.is_empty() { Ok(Duration::from_secs(10)) } else { seconds(text) }
}

/// Parses seconds with a fraction.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration > LONGEST {
        return Err("more than a year".into());
    }
    if seconds != 0.0 && duration < Duration::from_millis(1) {
        return Err("less than a millisecond".into());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn seconds_take_fractions_and_refuse_what_is_no_time() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for text in ["", "x", "-1", "inf", "NaN", "0.0001", "1e300", "1e19"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_behind_the_program_are_the_programs() {
        let cli = Cli::parse_from(["stasis", "launch", "--detach", "prog", "--json", "-q", "--", "x"]);
        let Command::Launch(args) = cli.command else { panic!("not launch") };
        assert!(args.detach);
        assert_eq!(args.program, ["prog", "--json", "-q", "--", "x"]);
        assert!(!cli.common.json && !cli.common.quiet);
    }
}
