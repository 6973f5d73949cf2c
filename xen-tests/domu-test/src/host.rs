//! The tests on the simulated Xen, with the arguments and the output of `cargo test`.

use core::cell::RefCell;
use std::boxed::Box;
use std::format;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;
use std::string::{String, ToString};
use std::sync::mpsc;
use std::time::Duration;
use std::vec::Vec;

use domu::lifecycle::Reason;
use domu::sim::{End, Guest, Report};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::registry::{TESTS, Test};

std::thread_local! {
    /// Place and message of the last panic on this thread.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the tests that the arguments select.
pub fn main() -> ExitCode {
    // The panic of a test is part of its result: none is printed if it was expected.
    std::panic::set_hook(Box::new(|info| PANIC.with(|panic| *panic.borrow_mut() = info.to_string())));
    let arguments = Arguments::from_args();
    let trials: Vec<Trial> = TESTS
        .iter()
        .map(|test| Trial::test(test.name(), || attempt(test)).with_ignored_flag(test.is_ignored()))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a test in a simulated domain, on a thread of its own: one that hangs is left behind.
fn attempt(test: &'static Test) -> Result<(), Failed> {
    let (sender, receiver) = mpsc::channel();
    let nonce = format!("{:016x}", RandomState::new().build_hasher().finish());
    let line = format!("domu.test={} domu.test-nonce={nonce}", test.name());
    let run = move || {
        let report = Guest::new().command_line(line).run(crate::guest::main);
        // The receiver is gone if this took too long.
        let _ = sender.send((report, PANIC.take()));
    };
    std::thread::Builder::new().spawn(run).map_err(|error| Failed::from(format!("cannot start a thread: {error}")))?;
    let seconds = test.timeout();
    let (report, panic) = receiver
        .recv_timeout(Duration::from_secs(seconds))
        .map_err(|_| Failed::from(format!("timed out after {seconds} s")))?;
    verdict(test, &report, &nonce, &panic)
        .map_err(|reason| format!("{reason}\n{}{}", report.console_text(), report.debug_text()).into())
}

/// Whether the test passed.
fn verdict(test: &Test, report: &Report, nonce: &str, panic: &str) -> Result<(), String> {
    let console = report.console_text();
    let start = format!("domu-test {nonce} ");
    let end = console.lines().filter_map(|line| line.strip_prefix(&*start)).next_back();
    match (test.should_panic(), end, report.end) {
        (None, Some("passed"), End::Shutdown(Reason::Poweroff)) => Ok(()),
        (None, Some("passed"), end) => Err(format!("passed, but the domain ended with {end:?}")),
        (_, Some(end), _) if end.starts_with("failed: ") => Err(end.to_string()),
        (Some(_), Some("passed"), _) => Err("did not panic as expected".to_string()),
        (Some(expected), Some("started"), End::Shutdown(Reason::Crash)) => {
            let text: String = panic.escape_default().collect();
            if text.contains(expected) { Ok(()) } else { Err(format!("{panic}\nexpected the text \"{expected}\"")) }
        }
        (None, Some("started"), End::Shutdown(Reason::Crash)) => Err(panic.to_string()),
        (_, _, end) => Err(format!("ended before its result, with {end:?}")),
    }
}
