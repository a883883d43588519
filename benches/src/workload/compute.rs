//! A computation: registers, and a table that fits into the second-level cache.

use std::hint::black_box;

use super::XorShift;
use crate::shared_page::now;

const TABLE: usize = 1 << 15;

/// Computes `steps` steps and prints how many nanoseconds it took.
pub fn run(steps: u64) {
    let mut random = XorShift::new(1);
    let mut table = vec![0u64; TABLE];
    let begun = now();
    for _ in 0..steps {
        let number = random.step();
        let at = number as usize % TABLE;
        table[at] = table[at].rotate_left(7) ^ number;
    }
    let took = now() - begun;
    black_box(&table);
    println!("{took}");
}
