//! The error of the whole crate, into which those of its modules fold.

use core::fmt;

use crate::{console, eventchn, gnttab, lifecycle, memory, random, shared, xenbus, xenstore};

/// Any error of this crate.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Output did not reach the console.
    Console(console::Error),
    /// An operation on memory failed.
    Memory(memory::Error),
    /// Memory is not protected as it should be.
    SelfCheck(memory::Violation),
    /// An operation on an event channel failed.
    EventChannel(eventchn::Error),
    /// An operation on grants failed.
    Grant(gnttab::Error),
    /// A ring that is shared with a peer failed.
    Shared(shared::Error),
    /// An operation on xenstore failed.
    Xenstore(xenstore::Error),
    /// A device's handshake with its other end failed.
    Device(xenbus::Error),
    /// The domain was not suspended.
    Suspend(lifecycle::SuspendError),
    /// An operation on a watchdog failed.
    Watchdog(lifecycle::WatchdogError),
    /// There are no random numbers.
    Random(random::Error),
}

/// A result with this crate's error.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Console(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::SelfCheck(violation) => violation.fmt(f),
            Self::EventChannel(error) => error.fmt(f),
            Self::Grant(error) => error.fmt(f),
            Self::Shared(error) => error.fmt(f),
            Self::Xenstore(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
            Self::Suspend(error) => error.fmt(f),
            Self::Watchdog(error) => error.fmt(f),
            Self::Random(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {}

/// Writes the causes of an error behind its own text, if the alternate form is asked for, as by `{error:#}`: `a: b: c`.
pub(crate) fn write_causes(f: &mut fmt::Formatter<'_>, error: &dyn core::error::Error) -> fmt::Result {
    if !f.alternate() {
        return Ok(());
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}

impl From<console::Error> for Error {
    fn from(error: console::Error) -> Self {
        Self::Console(error)
    }
}

impl From<memory::Error> for Error {
    fn from(error: memory::Error) -> Self {
        Self::Memory(error)
    }
}

impl From<memory::Violation> for Error {
    fn from(violation: memory::Violation) -> Self {
        Self::SelfCheck(violation)
    }
}

impl From<random::Error> for Error {
    fn from(error: random::Error) -> Self {
        Self::Random(error)
    }
}

impl From<shared::Error> for Error {
    fn from(error: shared::Error) -> Self {
        Self::Shared(error)
    }
}

impl From<xenstore::Error> for Error {
    fn from(error: xenstore::Error) -> Self {
        Self::Xenstore(error)
    }
}

impl From<xenbus::Error> for Error {
    fn from(error: xenbus::Error) -> Self {
        Self::Device(error)
    }
}

impl From<lifecycle::SuspendError> for Error {
    fn from(error: lifecycle::SuspendError) -> Self {
        Self::Suspend(error)
    }
}

impl From<lifecycle::WatchdogError> for Error {
    fn from(error: lifecycle::WatchdogError) -> Self {
        Self::Watchdog(error)
    }
}

impl From<eventchn::Error> for Error {
    fn from(error: eventchn::Error) -> Self {
        Self::EventChannel(error)
    }
}

impl From<gnttab::Error> for Error {
    fn from(error: gnttab::Error) -> Self {
        Self::Grant(error)
    }
}
