//! The coordinator's log: lines on standard error, which is a file beside its socket when it runs in
//! the background.

use std::{
    fmt,
    io::{self, Write},
};

use crate::output;

/// Writes one line.
pub fn line(message: fmt::Arguments<'_>) {
    // A coordinator whose log cannot be written (disk full) does its work all the same.
    let _ = writeln!(io::stderr(), "{} {message}", output::timestamp(output::now_us()));
}
