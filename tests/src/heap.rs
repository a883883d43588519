//! A program that is little more than its memory, in Python.

/// A program with 64 MiB that says whether they are what they were, when it is told so.
pub const HEAP: &str = "\
import hashlib, os, sys, time
heap = os.urandom(64 << 20)
expected = hashlib.sha256(heap).hexdigest()
print('ready', flush=True)
while not os.path.exists(os.environ['STASIS_TEST_GO']):
    time.sleep(0.01)
print('ok' if hashlib.sha256(heap).hexdigest() == expected else 'FAIL', flush=True)
";
