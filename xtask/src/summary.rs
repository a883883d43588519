//! What test runners say at their end, added up.

use std::fmt;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Summary {
    /// Adds what a line of a runner's output says, if it is a summary, and tells whether it was.
    ///
    /// cargo-nextest: `Summary [  1.2s] 9 tests run: 8 passed (1 slow), 1 timed out, 2 skipped`; cargo test, once
    /// for each binary: `test result: ok. 8 passed; 1 failed; 2 ignored; 0 measured; ...`.
    pub fn add_line(&mut self, line: &str) -> bool {
        // Indented, it is what cargo-nextest shows of a test that has failed.
        let counts = if let Some(rest) = line.strip_prefix("test result: ") {
            rest.split_once(". ").map(|(_, counts)| counts)
        } else if line.trim_start().starts_with("Summary [") {
            line.split_once(" run: ").map(|(_, counts)| counts)
        } else {
            None
        };
        let Some(counts) = counts else { return false };
        for count in without_parentheses(counts).split([',', ';']) {
            let Some((number, outcome)) = count.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match outcome.trim() {
                "passed" => self.passed += number,
                "failed" | "timed out" | "exec failed" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                // Measurements, tests of other names, how long it took.
                _ => {}
            }
        }
        true
    }

    /// Adds another run's.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Takes tests that found out by themselves that they cannot run here from those that passed.
    pub fn skip_passed(&mut self, count: u64) {
        self.passed = self.passed.saturating_sub(count);
        self.skipped += count;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0u32;
    text.chars()
        .filter(|character| match character {
            '(' => {
                depth += 1;
                false
            }
            ')' => {
                depth = depth.saturating_sub(1);
                false
            }
            _ => depth == 0,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> (Summary, usize) {
        let mut summary = Summary::default();
        let found = lines.iter().filter(|line| summary.add_line(line)).count();
        (summary, found)
    }

    #[test]
    fn what_nextest_shows_of_a_failed_test_is_not_counted_again() {
        let shown = "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out";
        let line = "     Summary [  12.3s] 2 tests run: 1 passed, 1 failed, 0 skipped";
        assert_eq!(read(&[shown, line]), (Summary { passed: 1, failed: 1, skipped: 0 }, 1));
    }

    #[test]
    fn nextest_counts_what_timed_out_as_failed() {
        let line = "     Summary [  12.3s] 9 tests run: 7 passed (1 slow, 2 leaky), 1 failed, 1 timed out, 2 skipped";
        assert_eq!(read(&[line]), (Summary { passed: 7, failed: 2, skipped: 2 }, 1));
    }

    #[test]
    fn a_nextest_run_that_was_cut_short_is_read_too() {
        let line = "  Summary [   0.1s] 2/5 tests run: 1 passed, 1 failed, 0 skipped";
        assert_eq!(read(&[line]), (Summary { passed: 1, failed: 1, skipped: 0 }, 1));
    }

    #[test]
    fn the_binaries_of_cargo_test_are_added_up() {
        let lines = [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        ];
        assert_eq!(read(&lines), (Summary { passed: 4, failed: 2, skipped: 1 }, 2));
    }

    #[test]
    fn what_tests_print_is_no_summary() {
        assert_eq!(read(&["8 passed, 1 failed", "Summary of it", ""]), (Summary::default(), 0));
    }
}
