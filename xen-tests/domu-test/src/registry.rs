//! The tests of the binary, as the attribute registers them.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt::Display;
use core::pin::Pin;

use domu::Domain;
use linkme::distributed_slice;

/// The tests.
#[distributed_slice]
pub static TESTS: [Test];

/// A running test: `Err` has the reason for its failure.
pub type Running = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// A test.
#[derive(Debug)]
pub struct Test {
    record: &'static [u8],
    pub(crate) start: fn(Domain) -> Running,
}

impl Test {
    /// A test with its line in `.domu_tests`.
    #[must_use]
    pub const fn new(record: &'static [u8], start: fn(Domain) -> Running) -> Self {
        Self { record, start }
    }

    /// A field of the line.
    fn field(&self, number: usize) -> &'static str {
        let line = core::str::from_utf8(self.record).unwrap_or_default();
        line.trim_end().split('\t').nth(number).unwrap_or_default()
    }

    /// The path without the name of the crate.
    pub(crate) fn name(&self) -> &'static str {
        let path = self.field(0);
        path.split_once("::").map_or(path, |(_, name)| name)
    }
}

#[cfg(not(target_os = "none"))]
impl Test {
    /// Seconds that the test may run.
    pub(crate) fn timeout(&self) -> u64 {
        self.field(1).parse().unwrap_or(60)
    }

    /// Whether the test runs only if asked for.
    pub(crate) fn is_ignored(&self) -> bool {
        self.field(2).starts_with('+')
    }

    /// The escaped text that the message of the panic contains, if the test is to panic.
    pub(crate) fn should_panic(&self) -> Option<&'static str> {
        self.field(3).strip_prefix('+')
    }
}

/// The result of a test: nothing, or a `Result` whose error can be displayed.
pub trait Outcome {
    /// The reason for a failure.
    ///
    /// # Errors
    ///
    /// The test failed.
    fn into_result(self) -> Result<(), String>;
}

impl Outcome for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: Display> Outcome for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

/// Runs a test function.
pub fn run<O: Outcome>(test: impl Future<Output = O> + 'static) -> Running {
    Box::pin(async { test.await.into_result() })
}
