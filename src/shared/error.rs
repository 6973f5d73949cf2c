//! Why an operation on shared memory failed.

use core::fmt;

/// Why an operation on a ring failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The peer showed an impossible index: more than there can be, or less than there was. The ring is of no use any more.
    Corrupt,
    /// The peer answered a request that is not in flight, by this id: one that it made up, or has answered before.
    NotInFlight(u64),
    /// As many requests are in flight as the ring has room for.
    Full,
    /// There is no request to be answered.
    NoRequest,
    /// There is no memory to keep requests.
    OutOfMemory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt => f.write_str("the peer has put an impossible index into a ring"),
            Self::NotInFlight(id) => write!(f, "the peer answered request {id}, which is not in flight"),
            Self::Full => f.write_str("the ring is full"),
            Self::NoRequest => f.write_str("there is no request to be answered"),
            Self::OutOfMemory => f.write_str("no memory for requests in flight"),
        }
    }
}

impl core::error::Error for Error {}
