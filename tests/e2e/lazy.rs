//! Lazy restarts: the program goes on before its memory is there, and never sees a page that is not what it was, whatever
//! it does to its address space meanwhile.

use std::{fs, fs::OpenOptions, os::unix::fs::FileExt, thread, time::Duration};

use stasis_tests::{Lab, Running, Workload, compile, heap::HEAP};

/// Every mapping that has a page in the checkpoint is left to the pager.
const ALL: (&str, &str) = ("STASIS_LAZY_FROM", "1");

/// Checkpoints of one run.
const CHECKPOINTS: u64 = 5;

/// Takes one checkpoint of a program that runs on; returns its id. A moment at which the program has a child that was made
/// by a raw system call is refused by name, and the next one will do.
#[track_caller]
fn checkpoint(lab: &Lab) -> String {
    for _ in 0..50 {
        let outcome = lab.try_checkpoint(&[]);
        if outcome.code() == 0 {
            return outcome.stdout.trim().to_owned();
        }
    }
    // Refused all the time, and once more with all that there is to tell of it.
    lab.checkpoint(&[])
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
                super::random_memory($seed, "raw", "prefetch,wp-async,soft-dirty");
            })*
        }
    };
}

seeds! { seed_1: "1", seed_2: "2", seed_3: "3" }

#[track_caller]
fn heap(lab: &Lab) -> String {
    let running = lab.launch(["python3", "-c", HEAP]);
    running.wait_ready();
    checkpoint_and_end(lab, running)
}

#[test]
fn a_program_goes_on_before_its_memory_is_there_and_status_tells() {
    let lab = Lab::new();
    let id = heap(&lab);
    let running = restart_lazily(&lab, &id, "prefetch");
    lab.wait_joined(&running);
    let arriving = lab.memory();
    let number = |key: &str| arriving[key].as_u64().unwrap_or_else(|| panic!("{key} in {arriving}"));
    assert!(number("pages") > 16_384 && number("left") > 8_192, "{arriving}");
    // A checkpoint neither waits for what is absent nor takes it.
    let again = checkpoint(&lab);
    assert!(lab.memory()["left"].as_u64() > Some(8_192), "{}", lab.memory());
    running.expect_ok();
    lab.restart([again.as_str(), "--eager"]).expect_ok();
}

#[test]
fn a_pager_that_is_killed_takes_the_program_with_it_by_name() {
    let lab = Lab::new();
    let id = heap(&lab);
    let running = restart_lazily(&lab, &id, "prefetch");
    lab.wait_joined(&running);
    let pager = lab.memory()["pager_pid"].as_i64().expect("a pager");
    // SAFETY: kill(2) of a process of this lab.
    unsafe { libc::kill(pager as i32, libc::SIGKILL) };
    let files = running.files().clone();
    let status = running.wait_exit();
    assert!(!status.success(), "{status}");
    let said = fs::read_to_string(&files.stderr).expect("what it said");
    assert!(said.contains("its pager has ended before all memory had arrived"), "{said}");
}

#[test]
fn a_damaged_page_ends_the_program_and_is_named() {
    let lab = Lab::new();
    let id = heap(&lab);
    for pack in fs::read_dir(lab.store().join("packs")).expect("the store's packs") {
        let path = pack.expect("an entry").path();
        let file = OpenOptions::new().write(true).open(&path).expect("a pack");
        let len = file.metadata().expect("a file").len();
        // Everywhere but at the beginning, where what is read at once may lie.
        for offset in (len / 2..len.saturating_sub(len / 4)).step_by(4096) {
            file.write_all_at(b"damaged", offset).expect("a write");
        }
    }
    let running = restart_lazily(&lab, &id, "");
    let files = running.files().clone();
    let status = running.wait_exit();
    assert!(!status.success(), "{status}");
    let said = fs::read_to_string(&files.stderr).expect("what it said");
    assert!(said.contains("damaged") && said.contains("stasis verify"), "{said}");
}

const REGROWN: Workload = Workload { program: "regrown", arguments: &[] };

/// The pager learns of each step when the program goes on already.
#[test]
fn what_grows_to_where_moved_memory_was_unmapped_is_zeros() {
    let lab = Lab::new();
    let running = REGROWN.launch(&lab);
    running.wait_ready();
    let id = checkpoint_and_end(&lab, running);
    for disabled in ["prefetch", "", "prefetch,wp-async,soft-dirty"] {
        restart_lazily(&lab, &id, disabled).expect_ok();
    }
}

#[test]
fn the_growing_program_notices_natively_when_a_word_is_lost() {
    REGROWN.notices_what_is_lost();
}

/// 8 TiB reserved, as runtimes do, of which there are 64 MiB here and there. The upper half is discarded when it is told so.
const RESERVED: &str = "\
import mmap, os, random, sys, time
SIZE, PIECE = 8 << 40, 1 << 20
def wait(path):
    while not os.path.exists(path): time.sleep(0.01)
memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
pieces = {n * (SIZE // 64): random.Random(n).randbytes(PIECE) for n in range(64)}
for at, piece in pieces.items():
    memory[at:at + PIECE] = piece
print('ready', flush=True)
wait('discard')
memory.madvise(mmap.MADV_DONTNEED, SIZE // 2, SIZE // 2)
print('discarded', flush=True)
wait(os.environ['STASIS_TEST_GO'])
whole = all(memory[at:at + PIECE] == (piece if at < SIZE // 2 else bytes(PIECE)) for at, piece in pieces.items())
print('ok' if whole else 'FAIL: memory', flush=True)
sys.exit(not whole)
";

#[test]
fn what_a_program_has_reserved_costs_its_pager_nothing() {
    for all in [&[][..], &[ALL]] {
        let lab = Lab::new();
        let restart = |id: &str, disabled: &str| {
            let restart = lab.prepare_restart([id, "--lazy"]).environment("STASIS_DISABLE", disabled);
            all.iter().fold(restart, |restart, (name, value)| restart.environment(name, value)).start()
        };
        let running = lab.prepare(["python3", "-c", RESERVED]).directory(lab.work()).start();
        running.wait_ready();
        let id = checkpoint_and_end(&lab, running);
        let running = restart(&id, "prefetch");
        lab.wait_joined(&running);
        assert!(lab.memory()["left"].as_u64() > Some(8_192), "{}", lab.memory());
        fs::write(lab.work().join("discard"), "").expect("a file of the lab");
        running.wait_line("discarded");
        let again = checkpoint(&lab);
        let pager = lab.memory()["pager_pid"].as_u64().expect("a pager");
        let status = fs::read_to_string(format!("/proc/{pager}/status")).expect("it is there");
        let shared =
            status.lines().find_map(|line| line.strip_prefix("RssShmem:")).expect("a line of proc(5)");
        let kibibytes: u64 = shared.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(kibibytes < 16 << 10, "{kibibytes} KiB of the table of pages");
        running.expect_ok();
        restart(&again, "").expect_ok();
    }
}
