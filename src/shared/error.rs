//! Errors of operations on rings.

use core::fmt;

/// Error of an operation on a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Impossible index of the peer: beyond the size of the ring, or behind the last one. The ring stays closed.
    Corrupt,
    /// Response with this id, to a request that is not in flight: invented, or answered before.
    NotInFlight(u64),
    /// The ring is full of requests in flight.
    Full,
    /// No request is left to answer.
    NoRequest,
    /// Out of memory to keep requests.
    OutOfMemory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt => f.write_str("ring: impossible index of the peer; ring closed"),
            Self::NotInFlight(id) => write!(f, "ring: response to request {id}, which is not in flight"),
            Self::Full => f.write_str("ring: full"),
            Self::NoRequest => f.write_str("ring: no request to answer"),
            Self::OutOfMemory => f.write_str("ring: out of memory for requests in flight"),
        }
    }
}

impl core::error::Error for Error {}
