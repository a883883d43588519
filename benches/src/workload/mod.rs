//! The programs that are measured: this binary, run as `stasis-benches workload …`, so that there is
//! nothing to compile or find.
//!
//! Not here: who runs them, and how often.

mod calls;
mod compute;
mod family;
mod memory;

pub use calls::Call;

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Workload {
    /// Hold incompressible memory, and tick
    Memory {
        #[arg(long)]
        mib: usize,
        /// What the memory is filled from; another seed has no page in common
        #[arg(long)]
        seed: u64,
        /// The file of the shared page
        #[arg(long)]
        page: PathBuf,
    },
    /// Make one call again and again; prints nanoseconds per call
    Call {
        #[arg(value_enum)]
        call: Call,
        /// How long, in milliseconds
        #[arg(long)]
        millis: u64,
    },
    /// Be a process and its children, which tick
    Family {
        #[arg(long)]
        count: usize,
        /// Compute all the time, and do not sleep between two ticks
        #[arg(long)]
        computes: bool,
        /// The file of the shared page
        #[arg(long)]
        page: PathBuf,
    },
    /// Compute a fixed number of steps; prints how many nanoseconds that took
    Compute {
        #[arg(long)]
        steps: u64,
        /// Beside incompressible memory
        #[arg(long, default_value_t = 0)]
        mib: usize,
        /// Of which one page is filled anew every so many steps
        #[arg(long, default_value_t = 1)]
        every: u64,
    },
}

/// # Errors
/// What the workload needs and has not got.
pub fn run(workload: &Workload) -> anyhow::Result<()> {
    match workload {
        Workload::Memory { mib, seed, page } => memory::run(*mib, *seed, page),
        Workload::Call { call, millis } => calls::run(*call, *millis),
        Workload::Family { count, computes, page } => family::run(*count, *computes, page),
        Workload::Compute { steps, mib, every } => {
            compute::run(*steps, *mib, *every);
            Ok(())
        }
    }
}

/// A page of memory, where pages begin: what is filled in it dirties one page, not two.
#[repr(align(4096))]
struct Page([u64; 4096 / size_of::<u64>()]);

/// So much incompressible memory.
fn pages(mib: usize, random: &mut XorShift) -> Vec<Page> {
    let mut pages = Vec::with_capacity(mib << 8);
    pages.extend((0..mib << 8).map(|_| Page(std::array::from_fn(|_| random.step()))));
    pages
}

/// Marsaglia's xorshift64: fast, and its output does not compress.
pub struct XorShift(u64);

impl XorShift {
    pub fn new(seed: u64) -> Self {
        // Zero is a fixed point. Seeds that are near each other must not give streams that are.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn step(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
