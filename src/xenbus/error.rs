//! Errors of operations on devices.

use core::fmt;

use crate::xenstore;

/// Error of an operation on a device. The error of xenstore names the path; its text is the text of this one.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
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
    /// An operation on xenstore failed, or a value there is invalid.
    Xenstore(xenstore::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("device: removed by the toolstack"),
            Self::Closed => f.write_str("device: the other end is closing, closed or gone"),
            Self::Misplaced => f.write_str("device: invalid path or domain of the other end (backend, frontend)"),
            Self::InvalidState => f.write_str("device: state is not a number"),
            Self::TooManyDevices => {
                write!(f, "device: more than {} devices of one class in xenstore", super::MAX_DEVICES)
            }
            Self::Xenstore(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Xenstore(error) => error.source(),
            _ => None,
        }
    }
}

impl From<xenstore::Error> for Error {
    fn from(error: xenstore::Error) -> Self {
        Self::Xenstore(error)
    }
}

#[cfg(test)]
mod tests {
    use core::error::Error as _;
    use std::string::ToString;

    use super::*;
    use crate::eventchn;
    use crate::xenstore::{ErrorKind, Operation};

    #[test]
    fn error_of_xenstore_is_named_with_its_path() {
        let port = eventchn::Error::from(eventchn::ErrorKind::NoPeer);
        let error = Error::from(ErrorKind::Port(port).at(Operation::Read, "device/vif/0/state"));
        assert!(error.to_string().starts_with("xenstore: cannot read device/vif/0/state: "), "{error}");
        assert_eq!(error.source().unwrap().downcast_ref(), Some(&port));
        assert_eq!(Error::Gone.to_string(), "device: removed by the toolstack");
        assert!(Error::Gone.source().is_none());
    }
}
