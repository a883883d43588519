//! Memory that neither compresses nor repeats, and ticks that tell when the program ran.

use std::{hint::black_box, path::Path, thread, time::Duration};

use super::{Page, XorShift, pages};
use crate::shared_page::SharedPage;

/// Long enough to leave the processors to the checkpointer, short beside a pause of a millisecond. What the
/// kernel adds (timer slack, 50 µs) is in every gap.
const TICK: Duration = Duration::from_micros(100);

/// Fills `mib` MiB and ticks until it is told to end.
pub fn run(mib: usize, seed: u64, page: &Path) -> anyhow::Result<()> {
    let mut random = XorShift::new(seed);
    let mut memory = pages(mib, &mut random);
    let pages = memory.len();
    let shared = SharedPage::open(page)?;
    while !shared.is_to_stop() {
        shared.tick();
        let dirty = shared.pages_to_dirty() as usize;
        if dirty > 0 {
            // Spread evenly: single pages, as programs dirty them.
            for index in 0..dirty.min(pages) {
                memory[index * pages / dirty.min(pages)].0.fill_with(|| random.step());
            }
            shared.dirtied();
        }
        let read = shared.pages_to_read();
        if read > 0 {
            black_box(read_at_random(&memory, read as usize));
            shared.was_read();
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Reads a word of so many pages, always the same ones in the same order: the next one is known when a page is there, as where
/// pointers are followed.
fn read_at_random(memory: &[Page], pages: usize) -> u64 {
    let mut random = XorShift::new(7);
    let all = memory.len() as u64;
    let mut sum = 0u64;
    for _ in 0..pages {
        let page = (random.step() % all) as usize;
        sum = sum.wrapping_add(black_box(memory[page].0[0]));
    }
    sum
}
