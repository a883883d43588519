//! A computation: registers, a table that fits into the second-level cache, and perhaps memory that it changes bit by bit.

use std::hint::black_box;

use super::{XorShift, pages};
use crate::shared_page::now;

const TABLE: usize = 1 << 15;

/// Computes `steps` steps and prints how many nanoseconds it took. Beside that it has `mib` MiB of incompressible memory, of which
/// it fills one page anew, anywhere, every `every` steps.
pub fn run(steps: u64, mib: usize, every: u64) {
    let mut random = XorShift::new(1);
    let mut table = vec![0u64; TABLE];
    let mut memory = pages(mib, &mut random);
    let pages = memory.len() as u64;
    let mut until_next = if pages == 0 { u64::MAX } else { every };
    let begun = now();
    for _ in 0..steps {
        let number = random.step();
        let at = number as usize % TABLE;
        table[at] = table[at].rotate_left(7) ^ number;
        until_next -= 1;
        if until_next == 0 {
            until_next = every;
            memory[(number % pages) as usize].0.fill_with(|| random.step());
        }
    }
    let took = now() - begun;
    black_box((&table, &memory));
    println!("{took}");
}
