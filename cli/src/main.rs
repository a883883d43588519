//! `stasis`: the one command that people type.
//!
//! Each subcommand is a module with a `run` function; `coordinator` also holds the server that
//! `launch` and `restart` start by themselves. What the subcommands share: where a coordinator
//! listens ([`address`]), how it is spoken to ([`client`]; from another host: [`remote`]), where the other parts of Stasis are
//! ([`locate`]), how results and failures are printed ([`output`], [`failure`]).
//!
//! There is no Rust `main`: the standard library's start-up would ignore SIGPIPE and open /dev/null
//! on closed descriptors 0 to 2, and `launch` must hand on to the program exactly what it was given.
//!
//! Not here: the inside of a checkpointed process (`preload/`), pages (`store/`).

#![cfg_attr(not(test), no_main)]

mod address;
mod arch;
mod args;
mod client;
mod commands;
mod context;
mod coordinator;
mod doctor;
mod elf;
mod failure;
mod image;
mod launch;
mod locate;
mod output;
mod process;
mod program;
mod remote;
mod report;
mod restart;
mod store;
mod tracer;

use clap::Parser;

use args::{Cli, Command};
use context::Context;
use failure::ExitCode;

/// The C library's entry; see the head of this file.
#[cfg(not(test))]
// SAFETY: the program has no other `main`; the C runtime calls this one once, with this signature.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    // glibc passes argv to the constructors, from which std::env::args takes it.
    std::process::exit(start())
}

#[cfg_attr(test, allow(dead_code))]
fn start() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return error.exit_code();
        }
    };
    let context = Context::new(&cli.common);
    if !cli.command.becomes_a_program() {
        ignore_sigpipe();
        occupy_closed_descriptors();
    }
    match run(&context, &cli.command) {
        Ok(code) => code.into(),
        Err(error) => failure::report(&error, context.json).into(),
    }
}

fn run(context: &Context, command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Launch(args) => launch::run(context, args),
        Command::Checkpoint(args) => commands::checkpoint::run(context, args),
        Command::Restart(args) => restart::run(context, args),
        Command::Status => commands::status::run(context),
        Command::List => commands::list::run(context),
        Command::Log(args) => commands::log::run(context, args),
        Command::Show(args) => commands::show::run(context, args),
        Command::Verify(args) => commands::verify::run(context, args),
        Command::Prune(args) => commands::prune::run(context, args),
        Command::Du(args) => commands::du::run(context, args),
        Command::Diff(args) => commands::diff::run(context, args),
        Command::Export(args) => commands::transfer::export(context, args),
        Command::Import => commands::transfer::import(context),
        Command::Gc(args) => commands::gc::run(context, args),
        Command::Kill => commands::kill::run(context),
        Command::Coordinator(args) => coordinator::run(context, args),
        Command::Store(args) => commands::store::run(context, args),
        Command::Trace(args) => commands::trace::run(context, args),
        Command::Top(args) => commands::top::run(context, args),
        Command::Doctor => doctor::run(context),
    }
}

/// A peer that goes away is an error of the call that spoke to it, not a signal.
fn ignore_sigpipe() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Keeps what is opened next from being taken for standard input, output or error where those are closed: bytes for standard
/// output would go to the store's server. Reading and writing fail as they would.
fn occupy_closed_descriptors() {
    for (fd, mode) in [(0, libc::O_WRONLY), (1, libc::O_RDONLY), (2, libc::O_RDONLY)] {
        // SAFETY: open(2) gives the lowest number that is free, and those below are open by now.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) < 0 {
                libc::open(c"/dev/null".as_ptr(), mode);
            }
        }
    }
}
