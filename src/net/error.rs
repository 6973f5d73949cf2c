//! Errors of network interfaces.

use core::fmt;

use super::protocol::Violation;
use crate::{eventchn, gnttab, memory, shared, xenbus, xenstore};

/// Error of an operation on a network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The back end broke the protocol; the interface is closed.
    Violation(Violation),
    /// The interface has ended: removed by the toolstack, or its task was dropped.
    Closed,
    /// The back end offers no copying receive path (`feature-rx-copy`).
    NoCopy,
    /// Invalid Ethernet address in xenstore (`mac`).
    InvalidMac,
    /// Invalid configuration: the field.
    InvalidConfig(&'static str),
    /// A frame of this length is too short, or longer than buffers, or what the back end takes.
    InvalidLength(usize),
    /// The back end divides no frames of this kind (`feature-gso-tcpv4`, `feature-gso-tcpv6`), or the frame is of another kind.
    NoSegmentation,
    /// No transmit buffer, or no room in the transmit ring, is free.
    Full,
    /// The link is down.
    Down,
    /// The back end still uses the pages of the connection before the last. The interface connects when it is done with them.
    PagesWithPeer,
    /// An operation on memory failed.
    Memory(memory::Error),
    /// An operation on grants failed.
    Grant(gnttab::Error),
    /// An operation on an event channel failed.
    EventChannel(eventchn::Error),
    /// An operation on the device failed.
    Device(xenbus::Error),
    /// An operation on xenstore failed.
    Xenstore(xenstore::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(violation) => {
                write!(f, "network: protocol error of the back end: {violation}; interface closed")
            }
            Self::Closed => f.write_str("network: interface closed"),
            Self::NoCopy => f.write_str("network: back end without feature-rx-copy"),
            Self::InvalidMac => f.write_str("network: invalid Ethernet address in xenstore (mac)"),
            Self::InvalidConfig(field) => write!(f, "network: invalid configuration ({field})"),
            Self::InvalidLength(len) => write!(f, "network: invalid frame length {len}"),
            Self::NoSegmentation => f.write_str("network: frame cannot be segmented by the back end"),
            Self::Full => f.write_str("network: no free transmit buffer"),
            Self::Down => f.write_str("network: link down"),
            Self::PagesWithPeer => f.write_str("network: back end still uses pages of earlier connections"),
            Self::Memory(error) => write!(f, "network: {error}"),
            Self::Grant(error) => error.fmt(f),
            Self::EventChannel(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
            Self::Xenstore(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Violation(violation) => Some(violation),
            Self::Memory(error) => Some(error),
            Self::Grant(error) => error.source(),
            Self::EventChannel(error) => error.source(),
            Self::Device(error) => error.source(),
            Self::Xenstore(error) => error.source(),
            _ => None,
        }
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// The rings of an interface are as large as they may be, and are never overfilled: their errors are the peer's.
impl From<shared::Error> for Error {
    fn from(error: shared::Error) -> Self {
        match error {
            shared::Error::Full => Self::Full,
            _ => Self::Violation(Violation::Index),
        }
    }
}

impl From<memory::Error> for Error {
    fn from(error: memory::Error) -> Self {
        Self::Memory(error)
    }
}

impl From<gnttab::Error> for Error {
    fn from(error: gnttab::Error) -> Self {
        Self::Grant(error)
    }
}

impl From<eventchn::Error> for Error {
    fn from(error: eventchn::Error) -> Self {
        Self::EventChannel(error)
    }
}

impl From<xenbus::Error> for Error {
    fn from(error: xenbus::Error) -> Self {
        Self::Device(error)
    }
}

impl From<xenstore::Error> for Error {
    fn from(error: xenstore::Error) -> Self {
        Self::Xenstore(error)
    }
}
