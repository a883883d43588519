//! Lazy restarts: the program goes on before its memory is there, and never sees a page that is not what it was, whatever
//! it does to its address space meanwhile.

use std::{thread, time::Duration};

use stasis_tests::{Lab, Running, compile};

/// Every mapping that has a page in the checkpoint is left to the pager.
const ALL: (&str, &str) = ("STASIS_LAZY_FROM", "1");

/// Checkpoints of one run.
const CHECKPOINTS: u64 = 5;

/// Takes one checkpoint of a program that runs on; returns its id. A moment at which the program has a child is
/// refused by name, and the next one will do.
#[track_caller]
fn checkpoint(lab: &Lab) -> String {
    for _ in 0..50 {
        let outcome = lab.try_checkpoint(&[]);
        if outcome.code() == 0 {
            return outcome.stdout.trim().to_owned();
        }
        outcome.expect_refusal(&["processes"]);
    }
    panic!("the program has children all the time");
}

/// The same, and ends the program.
#[track_caller]
fn checkpoint_and_end(lab: &Lab, running: Running) -> String {
    let id = checkpoint(lab);
    lab.run(["kill"]).expect_success();
    let _ = running.wait_exit();
    id
}

#[track_caller]
fn restart_lazily(lab: &Lab, id: &str, disabled: &str) -> Running {
    lab.prepare_restart([id, "--lazy"])
        .environment(ALL.0, ALL.1)
        .environment("STASIS_DISABLE", disabled)
        .start()
}

/// Random steps while memory arrives, or while nothing arrives but what is touched; what is checkpointed meanwhile, and
/// restored at once, is byte for byte what it was.
#[track_caller]
fn random_memory(seed: &str, children: &str, disabled: &str) {
    let lab = Lab::new();
    let program = compile::program("random_memory");
    let command = [program.to_str().expect("an ASCII path"), seed, children];
    let running = lab.prepare(command).start();
    running.wait_ready();
    thread::sleep(Duration::from_millis(30));
    let mut ids = vec![checkpoint_and_end(&lab, running)];
    for number in 0..CHECKPOINTS {
        let running = restart_lazily(&lab, &ids[ids.len() - 1], disabled);
        lab.wait_joined(&running);
        // Not in step with the program: at any moment of it.
        thread::sleep(Duration::from_millis(7 * number));
        ids.push(checkpoint(&lab));
        if number < CHECKPOINTS - 1 {
            ids.push(checkpoint_and_end(&lab, running));
        } else {
            // Told to go on, it verifies all of its memory.
            running.expect_ok();
        }
    }
    for id in &ids {
        lab.restart([id.as_str(), "--eager"]).expect_ok();
        restart_lazily(&lab, id, disabled).expect_ok();
    }
}

macro_rules! seeds {
    ($($name:ident: $seed:literal),* $(,)?) => {
        mod while_memory_arrives {
            $(#[test]
            fn $name() {
                super::random_memory($seed, "raw", "");
            })*
        }

        mod while_only_what_is_touched_arrives {
            $(#[test]
            fn $name() {
                super::random_memory($seed, "raw", "prefetch");
            })*
        }

        mod without_a_tracker {
            $(#[test]
            fn $name() {
                super::random_memory($seed, "", "prefetch,wp-async,soft-dirty");
            })*
        }
    };
}

seeds! { seed_1: "1", seed_2: "2", seed_3: "3" }
