//! The error of the whole crate, into which those of its modules fold.

use core::fmt;

use crate::{console, eventchn, gnttab, lifecycle, memory, random, shared, xenbus, xenstore};

/// Any error of this crate.
///
/// Displayed it is the error of its module: one line that names the object. `{:#}` prints its causes too, as in
/// `event channel: port 5: refused by Xen: EINVAL`. The result of main is printed that way. [`source`](core::error::Error::source)
/// is the cause of the module's error.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// An operation on the console failed.
    Console(console::Error),
    /// An operation on memory failed.
    Memory(memory::Error),
    /// A page or a control register lacks its memory protection.
    SelfCheck(memory::Violation),
    /// An operation on an event channel failed.
    EventChannel(eventchn::Error),
    /// An operation on grants failed.
    Grant(gnttab::Error),
    /// An operation on a ring failed.
    Shared(shared::Error),
    /// An operation on xenstore failed.
    Xenstore(xenstore::Error),
    /// An operation on a device failed.
    Device(xenbus::Error),
    /// An operation on a disk failed.
    #[cfg(feature = "block")]
    Block(crate::block::Error),
    /// The domain was not suspended.
    Suspend(lifecycle::SuspendError),
    /// An operation on a watchdog failed.
    Watchdog(lifecycle::WatchdogError),
    /// Random numbers are not available.
    Random(random::Error),
    /// An operation on a network interface failed.
    #[cfg(feature = "net")]
    Network(crate::net::Error),
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
            #[cfg(feature = "block")]
            Self::Block(error) => error.fmt(f),
            Self::Suspend(error) => error.fmt(f),
            Self::Watchdog(error) => error.fmt(f),
            Self::Random(error) => error.fmt(f),
            #[cfg(feature = "net")]
            Self::Network(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Console(error) => error.source(),
            Self::Memory(error) => error.source(),
            Self::SelfCheck(violation) => violation.source(),
            Self::EventChannel(error) => error.source(),
            Self::Grant(error) => error.source(),
            Self::Shared(error) => error.source(),
            Self::Xenstore(error) => error.source(),
            Self::Device(error) => error.source(),
            #[cfg(feature = "block")]
            Self::Block(error) => error.source(),
            Self::Suspend(error) => error.source(),
            Self::Watchdog(error) => error.source(),
            Self::Random(error) => error.source(),
            #[cfg(feature = "net")]
            Self::Network(error) => error.source(),
        }
    }
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

#[cfg(feature = "net")]
impl From<crate::net::Error> for Error {
    fn from(error: crate::net::Error) -> Self {
        Self::Network(error)
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

#[cfg(feature = "block")]
impl From<crate::block::DriverError> for Error {
    fn from(error: crate::block::DriverError) -> Self {
        use crate::block::DriverError;
        match error {
            DriverError::Disk(error) => Self::Block(error),
            DriverError::Device(error) => Self::Device(error),
            DriverError::Grant(error) => Self::Grant(error),
            DriverError::Port(error) => Self::EventChannel(error),
            DriverError::Xenstore(error) => Self::Xenstore(error),
        }
    }
}

#[cfg(feature = "block")]
impl From<crate::block::Error> for Error {
    fn from(error: crate::block::Error) -> Self {
        Self::Block(error)
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

#[cfg(test)]
mod tests {
    use core::error::Error as _;
    use std::format;

    use super::*;
    use crate::abi::errno::Errno;
    use crate::xenstore::{ErrorKind, Operation};

    #[test]
    fn alternate_text_is_the_chain_of_causes() {
        let port = eventchn::Error::from(eventchn::ErrorKind::Refused(Errno::EPERM));
        let error = Error::from(ErrorKind::Port(port).at(Operation::Read, "name"));
        let text = "xenstore: cannot read name: cannot use the event channel port of xenstore";
        assert_eq!(format!("{error}"), text);
        assert_eq!(format!("{error:#}"), format!("{text}: event channel: refused by Xen: EPERM"));
        let cause = error.source().unwrap();
        assert_eq!(cause.downcast_ref(), Some(&port));
        assert_eq!(cause.source().unwrap().downcast_ref(), Some(&Errno::EPERM));
    }

    #[test]
    fn error_without_a_cause_has_no_source() {
        for error in [
            Error::from(console::Error::Stalled),
            Error::from(memory::Error::OutOfMemory),
            Error::from(shared::Error::Full),
            Error::from(lifecycle::SuspendError::Busy),
            Error::from(lifecycle::WatchdogError::TooMany),
            Error::from(random::Error::Unsupported),
        ] {
            assert!(error.source().is_none(), "{error}");
            assert_eq!(format!("{error:#}"), format!("{error}"));
        }
    }
}
