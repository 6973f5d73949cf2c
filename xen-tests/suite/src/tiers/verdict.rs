//! The lines by which a guest says what it found: `@ok CASE` or `@fail CASE: why`.
//!
//! A guest that dies half-way says nothing about the rest: so the cases that must pass are named by
//! the test, and one that is missing fails.

use anyhow::{Result, bail};

use super::case::ended;
use cargo_xen::lab::domain::{Outcome, Reason};

/// Judges a guest that tests itself: it must power off and must have said `@ok` for all of these
/// cases and `@fail` for none.
pub fn all_ok(outcome: &Outcome, cases: &[&str]) -> Result<()> {
    let (passed, failed) = verdicts(&outcome.text());
    if !failed.is_empty() {
        bail!("the guest says: {}", failed.join("; "));
    }
    let missing: Vec<&str> = cases.iter().copied().filter(|case| !passed.iter().any(|passed| passed == case)).collect();
    if !missing.is_empty() {
        bail!("the guest did not say @ok for {}", missing.join(", "));
    }
    ended(outcome, Reason::Poweroff)
}

/// The cases that passed, and those that failed with the reason. A line may begin with what a log
/// puts before its messages.
pub fn verdicts(console: &str) -> (Vec<String>, Vec<String>) {
    let mut passed = Vec::new();
    let mut failed = Vec::new();
    for line in console.lines() {
        if let Some((_, case)) = line.split_once("@ok ") {
            passed.push(case.trim().to_owned());
        } else if let Some((_, case)) = line.split_once("@fail ") {
            failed.push(case.trim().to_owned());
        }
    }
    (passed, failed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(console: &str, reason: Option<Reason>) -> Outcome {
        Outcome {
            domain: 1,
            console: console.as_bytes().to_vec(),
            reason,
            hypervisor: String::new(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn a_guest_that_says_ok_passes() {
        let outcome = outcome("[info] @ok a\r\n@ok b.c\n", Some(Reason::Poweroff));
        all_ok(&outcome, &["a", "b.c"]).unwrap();
    }

    #[test]
    fn a_guest_that_says_fail_fails() {
        let outcome = outcome("@ok a\n@fail b: too small\n", Some(Reason::Poweroff));
        let error = all_ok(&outcome, &["a"]).unwrap_err().to_string();
        assert!(error.contains("b: too small"), "{error}");
    }

    #[test]
    fn a_guest_that_says_nothing_fails() {
        for console in ["", "hello\n", "@ok other\n", "@okay a\n", "@ok a.b\n"] {
            assert!(all_ok(&outcome(console, Some(Reason::Poweroff)), &["a"]).is_err(), "{console}");
        }
    }

    #[test]
    fn the_end_must_be_the_expected_one() {
        assert!(all_ok(&outcome("@ok a\n", Some(Reason::Crash)), &["a"]).is_err());
        assert!(all_ok(&outcome("@ok a\n", None), &["a"]).is_err());
    }
}
