//! The end-to-end harness: a [`Lab`] with a store and a coordinator of its own, programs that are
//! launched, checkpointed, killed and restarted in it, and waits that end by an event or fail by name.
//!
//! A test's program is set up, prints the line `ready`, waits until the file named by
//! `STASIS_TEST_GO` exists, verifies its state, prints `ok` and exits 0; or prints `FAIL: what` and
//! exits 1. So the usual test is:
//!
//! ```no_run
//! # use stasis_tests::{Lab, compile};
//! let lab = Lab::new();
//! let running = lab.launch([compile::program("simulation")]);
//! running.wait_ready();
//! lab.checkpoint_kill(running);
//! lab.restart(["latest"]).expect_ok();
//! ```
//!
//! A failed expectation panics with the command, what was waited for and every log of the lab. A test
//! that cannot run here calls [`skip`] and returns; `cargo xtask test` counts and names it.
//!
//! Not here: the tests (`tests/e2e`) and the programs that they run (`tests/programs`).

pub mod compile;
pub mod heap;
pub mod image;
pub mod kernel;
pub mod lab;
pub mod launch;
pub mod mount;
pub mod nobody;
pub mod outcome;
pub mod process;
pub mod pseudoterminal;
pub mod requirement;
pub mod running;
pub mod script;
pub mod slow_disk;
pub mod tracer;
pub mod watch;
pub mod workload;

pub use lab::Lab;
pub use launch::Launch;
pub use nobody::Nobody;
pub use outcome::Outcome;
pub use requirement::{find_library, find_program, skip};
pub use running::Running;
pub use tracer::Tracer;
pub use workload::Workload;

use std::time::Duration;

/// How long a step may take (a checkpoint, a restart, a program's next line) before the test fails. Far
/// above what any of them needs: it is there to end tests that hang, on machines that are busy.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// How many times as long things take here as on a machine of today: where processors are emulated, `cargo xtask vm` says
/// so. For programs that must not end before they were checkpointed.
pub fn slowness() -> u32 {
    std::env::var("STASIS_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
