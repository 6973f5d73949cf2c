//! Errors of operations on event channels.

use core::fmt;

use crate::abi::errno::Errno;
use crate::abi::xen::DomainId;
use crate::causes::write_causes;

/// Error of an operation on an event channel: its kind, and the port, peer or virtual interrupt that it is about.
///
/// An error compares with an [`ErrorKind`]: `error == ErrorKind::NoPeer`. Displayed it is one line, such as
/// `event channel: port 7 of domain 3: no such port, or not for this domain`, and with `{:#}` that line and its cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    kind: ErrorKind,
    object: Option<Object>,
}

/// The object that an [`Error`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Object {
    /// A port of this domain.
    Port(u32),
    /// A domain that a port is for.
    Domain(DomainId),
    /// A port of another domain.
    RemotePort(DomainId, u32),
    /// A virtual interrupt.
    Virq(u32),
}

impl Error {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The port, peer or virtual interrupt, if the operation has one.
    #[must_use]
    pub const fn object(&self) -> Option<Object> {
        self.object
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, object: None }
    }
}

impl PartialEq<ErrorKind> for Error {
    fn eq(&self, other: &ErrorKind) -> bool {
        self.kind == *other
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("event channel: ")?;
        match self.object {
            Some(Object::Port(port)) => write!(f, "port {port}: ")?,
            Some(Object::Domain(domain)) => write!(f, "port for domain {domain}: ")?,
            Some(Object::RemotePort(domain, port)) => write!(f, "port {port} of domain {domain}: ")?,
            Some(Object::Virq(virq)) => write!(f, "virtual interrupt {virq}: ")?,
            None => {}
        }
        write!(f, "{}", self.kind)?;
        write_causes(f, self)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::Refused(errno) => Some(errno),
            _ => None,
        }
    }
}

/// Kind of an [`Error`] of an event channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// All ports of the domain are in use; `xl` allows 1023 unless `max_event_channels` is set. With FIFO event channels a port
    /// that was closed before its last event was delivered is free after the next turn of the main loop.
    NoPort,
    /// The peer has no such port, or it is not for this domain.
    NoPeer,
    /// The virtual interrupt is already bound, or not for this domain.
    NoInterrupt,
    /// Out of memory to keep the port.
    OutOfMemory,
    /// No priorities: Xen does not support FIFO event channels, or `domu.fifo=off` is set.
    NoPriorities,
    /// The port is from before a [resume](crate::lifecycle#suspend-and-resume): it is closed, and the peers make another.
    BeforeResume,
    /// Another error of Xen, which is the source.
    Refused(Errno),
}

impl ErrorKind {
    /// The error about an object.
    #[cold]
    pub(super) const fn of(self, object: Object) -> Error {
        Error { kind: self, object: Some(object) }
    }

    /// Translates Xen's refusal to bind a port; `absent` is the meaning of an absent other end.
    pub(crate) const fn from_xen(errno: Errno, absent: Option<Self>) -> Self {
        match (errno, absent) {
            (Errno::ENOSPC, _) => Self::NoPort,
            (Errno::ENOMEM, _) => Self::OutOfMemory,
            (
                Errno::EINVAL | Errno::ESRCH | Errno::EEXIST | Errno::ENOENT | Errno::EPERM | Errno::EBUSY,
                Some(absent),
            ) => absent,
            (errno, _) => Self::Refused(errno),
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPort => "no free port (max_event_channels)",
            Self::NoPeer => "no such port, or not for this domain",
            Self::NoInterrupt => "already bound, or not for this domain",
            Self::OutOfMemory => "out of memory",
            Self::NoPriorities => "no priorities without FIFO event channels (domu.fifo)",
            Self::BeforeResume => "the port is from before a resume",
            Self::Refused(_) => "refused by Xen",
        })
    }
}

#[cfg(test)]
mod tests {
    use core::error::Error as _;
    use std::format;
    use std::string::ToString;

    use super::*;

    #[test]
    fn error_text_names_port_peer_and_interrupt() {
        let peer = ErrorKind::NoPeer.of(Object::RemotePort(DomainId(3), 7));
        assert_eq!(peer.to_string(), "event channel: port 7 of domain 3: no such port, or not for this domain");
        let old = ErrorKind::BeforeResume.of(Object::Port(5));
        assert_eq!(old.to_string(), "event channel: port 5: the port is from before a resume");
        let bound = ErrorKind::NoInterrupt.of(Object::Virq(1));
        assert_eq!(bound.to_string(), "event channel: virtual interrupt 1: already bound, or not for this domain");
        let full = ErrorKind::NoPort.of(Object::Domain(DomainId(2)));
        assert_eq!(full.to_string(), "event channel: port for domain 2: no free port (max_event_channels)");
        assert_eq!(Error::from(ErrorKind::OutOfMemory).to_string(), "event channel: out of memory");
    }

    #[test]
    fn refusal_of_xen_is_the_source() {
        let error = ErrorKind::Refused(Errno::EPERM).of(Object::Port(5));
        assert_eq!(error.source().unwrap().downcast_ref(), Some(&Errno::EPERM));
        assert_eq!(format!("{error}"), "event channel: port 5: refused by Xen");
        assert_eq!(format!("{error:#}"), "event channel: port 5: refused by Xen: EPERM");
        assert!(ErrorKind::NoPort.of(Object::Port(5)).source().is_none());
    }
}
