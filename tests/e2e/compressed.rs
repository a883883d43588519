//! Restarts from compressed pages.

use std::{fs, fs::OpenOptions, os::unix::fs::FileExt};

use stasis_tests::{Lab, Running};

/// A program with some 40 MiB on its heap and 4 MiB that it shares, of which most compresses. Told so, it says whether they are
/// what they were.
const HEAP: &str = "\
import hashlib, mmap, os, sys, time
def lines(first, count):
    return ''.join('user:%d name=%x visits=%d\\n' % (at, at * 7919, at % 97) for at in range(first, first + count))
heap = [lines(at, 30) for at in range(0, 1500000, 60)]
noise = os.urandom(4 << 20)
shared = mmap.mmap(-1, 4 << 20)
shared.write(lines(0, 200000).encode()[:4 << 20])
def state():
    digest = hashlib.sha256(noise)
    for part in heap:
        digest.update(part.encode())
    digest.update(shared[:])
    return digest.hexdigest()
expected = state()
print('ready', flush=True)
while not os.path.exists(os.environ['STASIS_TEST_GO']):
    time.sleep(0.01)
whole = state() == expected
print('ok' if whole else 'FAIL', flush=True)
sys.exit(not whole)
";

/// A checkpoint of it, compressed; the program has ended.
#[track_caller]
fn compressed(lab: &Lab) -> String {
    let running = lab.launch(["python3", "-c", HEAP]);
    running.wait_ready();
    let id = lab.checkpoint_kill(running);
    let collected = lab.json(["gc"]);
    assert_eq!(collected["packs_compressed"], 1, "{collected}");
    let (from, to) = (&collected["compressed_from_bytes"], &collected["compressed_to_bytes"]);
    assert!(
        from.as_u64() > Some(30 << 20) && to.as_u64() < from.as_u64().map(|from| from / 2),
        "{collected}"
    );
    let usage = lab.json(["du"]);
    assert!(usage["compressed_to_bytes"].as_u64() < usage["compressed_from_bytes"].as_u64(), "{usage}");
    id
}

#[track_caller]
fn restart(lab: &Lab, arguments: &[&str]) -> Running {
    lab.prepare_restart(arguments).environment("STASIS_LAZY_FROM", "1").start()
}

#[test]
fn programs_restart_from_compressed_pages_eagerly_lazily_and_as_clones() {
    let lab = Lab::new();
    let id = compressed(&lab);
    restart(&lab, &[&id, "--eager"]).expect_ok();
    restart(&lab, &[&id, "--lazy"]).expect_ok();
    lab.prepare_restart([&id, "--lazy"])
        .environment("STASIS_LAZY_FROM", "1")
        .environment("STASIS_DISABLE", "prefetch")
        .start()
        .expect_ok();
    restart(&lab, &[&id, "--clones", "2"]).expect_ok();
    // What is taken from a restarted one refers to what is compressed.
    let running = restart(&lab, &[&id, "--lazy"]);
    lab.wait_joined(&running);
    let next = lab.checkpoint_kill(running);
    lab.run(["verify"]).expect_success();
    restart(&lab, &[&next, "--eager"]).expect_ok();
}

#[test]
fn a_damaged_block_ends_a_restart_by_name() {
    let lab = Lab::new();
    let id = compressed(&lab);
    for pack in fs::read_dir(lab.store().join("packs")).expect("the store's packs") {
        let file = OpenOptions::new().write(true).open(pack.expect("an entry").path()).expect("a pack");
        let len = file.metadata().expect("a file").len();
        // Everywhere but at the beginning and in the footer.
        for offset in (len / 4..len - len / 4).step_by(4096) {
            file.write_all_at(b"damaged", offset).expect("a write");
        }
    }
    let eager = lab.run(["restart", &id, "--eager"]);
    assert!(eager.code() == 5 && eager.stderr.contains("damaged"), "{eager}");
    let lazy = restart(&lab, &[&id, "--lazy"]);
    let files = lazy.files().clone();
    assert!(!lazy.wait_exit().success());
    let said = fs::read_to_string(&files.stderr).expect("what it said");
    assert!(said.contains("damaged") && said.contains("stasis verify"), "{said}");
    let verified = lab.run(["verify"]);
    assert!(verified.code() != 0 && verified.stdout.contains("compressed block"), "{}", verified.stdout);
}
