//! The verdicts of all tests: one line each as they finish, the failures again at the end.

use std::time::Duration;

use anyhow::Error;

use cargo_xen::say;

/// Counts, and what failed.
#[derive(Default)]
pub struct Report {
    passed: usize,
    skipped: usize,
    failures: Vec<(String, String)>,
    /// Tests that are counted in a line of their own kind, as those of `cargo test`.
    more_failed: usize,
}

impl Report {
    /// A test has passed.
    pub fn passed(&mut self, name: &str, took: Duration) {
        self.passed += 1;
        println!("test {name} ... ok ({:.1} s)", took.as_secs_f64());
    }

    /// A test has failed; `evidence` is what to look at.
    pub fn failed(&mut self, name: &str, took: Duration, error: &Error, evidence: &str) {
        println!("test {name} ... FAILED ({:.1} s): {error:#}", took.as_secs_f64());
        let mut text = format!("{error:#}");
        if !evidence.is_empty() {
            text.push('\n');
            text.push_str(evidence.trim_end());
        }
        self.failures.push((name.to_owned(), text));
    }

    /// A test could not run here.
    pub fn skipped(&mut self, name: &str, why: &str) {
        self.skipped += 1;
        println!("test {name} ... skipped: {why}");
    }

    /// Adds the counts of a test program that reports for itself.
    pub fn add(&mut self, passed: usize, failed: usize, skipped: usize) {
        self.passed += passed;
        self.more_failed += failed;
        self.skipped += skipped;
    }

    /// Adds another one's verdicts.
    pub fn join(&mut self, other: Report) {
        let Report { passed, skipped, failures, more_failed } = other;
        self.add(passed, more_failed, skipped);
        self.failures.extend(failures);
    }

    /// How many have failed.
    pub fn failures(&self) -> usize {
        self.failures.len() + self.more_failed
    }

    /// The last line.
    pub fn summary(&self) -> String {
        let mut line = format!("{} passed, {} failed", self.passed, self.failures());
        if self.skipped > 0 {
            line.push_str(&format!(", {} skipped", self.skipped));
        }
        line
    }

    /// Prints the failures again and the summary; gives the exit code.
    pub fn finish(&self, took: Duration) -> u8 {
        if !self.failures.is_empty() {
            println!("\nfailures:");
        }
        for (name, text) in &self.failures {
            println!("\n---- {name}\n{text}");
        }
        say!("all of it took {} s", took.as_secs());
        // Nothing that ran is not a success: a misspelt filter must not look like one.
        let nothing = self.passed + self.failures() + self.skipped == 0;
        if nothing {
            println!("\nno test has such a name");
        } else {
            println!();
        }
        println!("{}", self.summary());
        u8::from(self.failures() > 0 || nothing)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_failure_is_counted_and_makes_the_exit_code() {
        let mut report = Report::default();
        report.passed("a", Duration::ZERO);
        assert_eq!(report.summary(), "1 passed, 0 failed");
        assert_eq!(report.finish(Duration::ZERO), 0);
        report.failed("b", Duration::ZERO, &anyhow!("no"), "console: nothing\n");
        assert_eq!(report.summary(), "1 passed, 1 failed");
        assert_eq!(report.finish(Duration::ZERO), 1);
        assert_eq!(report.failures[0].1, "no\nconsole: nothing");
    }

    #[test]
    fn counts_of_others_are_added() {
        let mut report = Report::default();
        report.add(10, 2, 1);
        assert_eq!(report.summary(), "10 passed, 2 failed, 1 skipped");
        assert_eq!(report.finish(Duration::ZERO), 1);
    }

    #[test]
    fn verdicts_of_two_are_joined() {
        let (mut report, mut other) = (Report::default(), Report::default());
        report.failed("a", Duration::ZERO, &anyhow!("no"), "");
        other.failed("b", Duration::ZERO, &anyhow!("no"), "");
        other.add(10, 2, 1);
        report.join(other);
        assert_eq!(report.summary(), "10 passed, 4 failed, 1 skipped");
    }

    #[test]
    fn nothing_run_is_no_success() {
        assert_eq!(Report::default().finish(Duration::ZERO), 1);
    }
}
