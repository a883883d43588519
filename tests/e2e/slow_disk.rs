//! Restarts from a disk that is slow: what waits for it, and what those see who wait.

use std::time::Duration;

use stasis_tests::{
    Lab,
    heap::HEAP,
    pseudoterminal::Pseudoterminal,
    slow_disk::{SlowDisk, evict},
};

/// So that all of it takes four seconds.
const BYTES_A_SECOND: u64 = 16 << 20;

/// A checkpoint of it, and a disk that reads it slowly.
#[track_caller]
fn checkpoint(lab: &Lab) -> Option<SlowDisk> {
    let running = lab.launch(["python3", "-c", HEAP]);
    running.wait_ready();
    lab.checkpoint_kill(running);
    evict(&lab.store().join("packs"));
    SlowDisk::below(lab.store(), BYTES_A_SECOND)
}

#[test]
fn who_waits_for_all_memory_at_a_terminal_is_told_how_far_it_is() {
    let lab = Lab::new();
    let Some(_slow) = checkpoint(&lab) else { return };
    let mut terminal = Pseudoterminal::new(24, 80);
    let running = lab.prepare_restart(["latest", "--eager"]).on_terminal(&terminal).start();
    terminal.expect(" MiB of ", Duration::from_secs(30));
    running.expect_ok();
}

#[test]
fn a_lazy_restart_does_not_wait_for_it() {
    let lab = Lab::new();
    let Some(_slow) = checkpoint(&lab) else { return };
    let running = lab.restart(["latest", "--lazy"]);
    lab.wait_joined(&running);
    let memory = lab.memory();
    // Most of it is on the disk still.
    assert!(memory["left"].as_u64() > Some(8_192), "{memory}");
    running.expect_ok();
}
