//! Why a step of a device's handshake was not taken.

use core::fmt;

use crate::xenstore;

/// Why a step of a device's handshake was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The toolstack has removed the device, and perhaps made it anew: this end is over, and a new one may be opened.
    Gone,
    /// The other end closes, is closed or has disappeared, or the toolstack wants this one to close: the next step is
    /// [`close`](super::Frontend::close), and after that this end may begin again.
    Closed,
    /// The device says that its other end is where none of its can be: at another place, or in another domain.
    Misplaced,
    /// What stands where a state should be is no number.
    InvalidState,
    /// More than [`MAX_DEVICES`](super::MAX_DEVICES) devices of a class are listed in xenstore.
    TooManyDevices,
    /// Xenstore has failed, or a value in it is not what it should be.
    Xenstore(xenstore::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the device is gone"),
            Self::Closed => f.write_str("the other end of the device does not connect"),
            Self::Misplaced => f.write_str("the other end of the device is not where it should be"),
            Self::InvalidState => f.write_str("the state of a device is no number"),
            Self::TooManyDevices => write!(f, "more than {} devices of a class in xenstore", super::MAX_DEVICES),
            Self::Xenstore(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {}

impl From<xenstore::Error> for Error {
    fn from(error: xenstore::Error) -> Self {
        Self::Xenstore(error)
    }
}
