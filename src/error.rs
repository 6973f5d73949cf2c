//! The error of the whole crate, into which those of its modules fold.

use core::fmt;

use crate::console;

/// Any error of this crate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Output did not reach the console.
    Console(console::Error),
}

/// A result with this crate's error.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Console(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {}

impl From<console::Error> for Error {
    fn from(error: console::Error) -> Self {
        Self::Console(error)
    }
}
