//! Errors of operations on devices.

use alloc::string::String;
use core::fmt;

use crate::causes::write_causes;
use crate::xenstore;

/// Error of an operation on a device: its kind, and the device or the class that it names.
///
/// An error compares with an [`ErrorKind`]: `error == ErrorKind::Gone`. Displayed it is one line, such as
/// `xenbus: device/vif/0: removed by the toolstack`, and with `{:#}` that line and its cause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    kind: ErrorKind,
    device: Option<String>,
}

impl Error {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The directory of the device, as the caller gave it; of a listing, the class. Absent if there was no memory to keep it.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }
}

impl ErrorKind {
    /// The error of an operation on a device.
    #[cold]
    pub(super) fn at(self, device: &str) -> Error {
        Error { kind: self, device: xenstore::copy(device) }
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, device: None }
    }
}

impl PartialEq<ErrorKind> for Error {
    fn eq(&self, other: &ErrorKind) -> bool {
        self.kind == *other
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("xenbus: ")?;
        if let Some(device) = &self.device {
            xenstore::write_path(f, device)?;
            f.write_str(": ")?;
        }
        write!(f, "{}", self.kind)?;
        write_causes(f, self)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::Xenstore(error) => error.source(),
            _ => None,
        }
    }
}

/// Kind of an [`Error`] of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The toolstack has removed the device, and perhaps created it again. This end stays unusable; another one can be opened.
    Gone,
    /// The other end is closing, closed or gone, or the toolstack closes this one. The next step is
    /// [`close`](super::Frontend::close), and after that this end may begin again.
    Closed,
    /// Invalid path or domain of the other end (`backend`, `backend-id`, `frontend`, `frontend-id`).
    Misplaced,
    /// A `state` node is not a number.
    InvalidState,
    /// More than [`MAX_DEVICES`](super::MAX_DEVICES) devices of a class are listed in xenstore.
    TooManyDevices,
    /// An operation on xenstore failed, or a value there is invalid. The error names the path; its text is part of this one's.
    Xenstore(xenstore::Error),
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("removed by the toolstack"),
            Self::Closed => f.write_str("the other end is closing, closed or gone"),
            Self::Misplaced => f.write_str("invalid path or domain of the other end (backend, frontend)"),
            Self::InvalidState => f.write_str("state is not a number"),
            Self::TooManyDevices => write!(f, "more than {} devices of one class in xenstore", super::MAX_DEVICES),
            Self::Xenstore(error) => error.fmt(f),
        }
    }
}

impl From<xenstore::Error> for ErrorKind {
    fn from(error: xenstore::Error) -> Self {
        Self::Xenstore(error)
    }
}

#[cfg(test)]
mod tests {
    use core::error::Error as _;
    use std::format;
    use std::string::ToString;

    use super::*;
    use crate::eventchn;
    use crate::xenstore::Operation;

    #[test]
    fn error_names_the_device() {
        let error = ErrorKind::Gone.at("device/vif/0");
        assert_eq!(error.to_string(), "xenbus: device/vif/0: removed by the toolstack");
        assert_eq!((error.kind(), error.device()), (&ErrorKind::Gone, Some("device/vif/0")));
        assert!(error == ErrorKind::Gone && error.source().is_none());
        assert_eq!(Error::from(ErrorKind::Closed).to_string(), "xenbus: the other end is closing, closed or gone");
    }

    #[test]
    fn error_of_xenstore_names_its_path() {
        let port = eventchn::Error::from(eventchn::ErrorKind::NoPeer);
        let cause = xenstore::ErrorKind::Port(port).at(Operation::Read, "device/vif/0/state");
        let error = ErrorKind::from(cause).at("device/vif/0");
        let text = "xenbus: device/vif/0: xenstore: cannot read device/vif/0/state: ";
        assert!(error.to_string().starts_with(text), "{error}");
        assert_eq!(error.source().unwrap().downcast_ref(), Some(&port));
        assert!(format!("{error:#}").ends_with(&port.to_string()), "{error:#}");
    }
}
