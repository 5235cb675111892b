//! How many tests ran, read from what cargo test and unittest say.

use std::fmt;
use std::ops::AddAssign;

/// How many tests ran, and how they ended. A skipped one counts as neither.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// Adds what a line says, if it is one that closes a run:
    ///
    /// ```text
    /// test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out
    /// Ran 10 tests in 0.2s
    /// FAILED (failures=1, errors=2, skipped=1, expected failures=1, unexpected successes=1)
    /// OK (skipped=1)
    /// ```
    ///
    /// unittest's last line takes back from what its "Ran" line counted as passed.
    pub(crate) fn read(&mut self, line: &str) {
        if line.starts_with("test result:") {
            self.passed += number_before(line, " passed");
            self.failed += number_before(line, " failed");
        } else if let Some(rest) = line.strip_prefix("Ran ") {
            let tests = rest
                .split(' ')
                .nth(1)
                .is_some_and(|w| w.starts_with("test"));
            if tests {
                self.passed += number_before(line, " test");
            }
        } else if line.starts_with("FAILED (") || line.starts_with("OK (") {
            let skipped = number_after(line, "skipped=");
            let failed = number_after(line, "(failures=")
                + number_after(line, "errors=")
                + number_after(line, "unexpected successes=");
            self.failed += failed;
            self.passed = self.passed.saturating_sub(failed + skipped);
        }
    }
}

/// The line that closes a log.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

fn number_before(line: &str, mark: &str) -> u64 {
    let before = line.split_once(mark).map_or("", |(before, _)| before);
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn number_after(line: &str, mark: &str) -> u64 {
    let after = line.split_once(mark).map_or("", |(_, after)| after);
    let digits = after.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Tally;

    fn tally(lines: &[&str]) -> (u64, u64) {
        let mut tally = Tally::default();
        for line in lines {
            tally.read(line);
        }
        (tally.passed, tally.failed)
    }

    #[test]
    fn cargo() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out";
        assert_eq!(tally(&[line, line]), (24, 6));
    }

    #[test]
    fn unittest() {
        assert_eq!(tally(&["Ran 10 tests in 0.2s", "OK"]), (10, 0));
        assert_eq!(tally(&["Ran 1 test in 0.2s", "OK (skipped=1)"]), (0, 0));
        let bad = "FAILED (failures=1, errors=2, skipped=3, unexpected successes=1)";
        assert_eq!(tally(&["Ran 10 tests in 0.2s", bad]), (3, 4));
        let expected = "OK (skipped=1, expected failures=2)";
        assert_eq!(tally(&["Ran 10 tests in 0.2s", expected]), (9, 0));
    }

    #[test]
    fn other_lines_do_not_count() {
        assert_eq!(
            tally(&["Ran out of memory", "OK then", "test x ... ok"]),
            (0, 0)
        );
    }
}
