//! Why an operation on xenstore failed.

use core::fmt;

use super::code::Code;
use super::wire::{Malformed, Unsendable};
use crate::eventchn;

/// Why an operation on xenstore failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The domain has no xenstore: the first domain of a host, for one. On the host also outside of the handle's simulated
    /// domain.
    Absent,
    /// There is no such node.
    #[doc(alias = "ENOENT")]
    NotFound,
    /// The domain may not do this.
    #[doc(alias("EACCES", "EPERM"))]
    Denied,
    /// The node, or something else that was to be made, is there already.
    #[doc(alias = "EEXIST")]
    Exists,
    /// A quota of the domain's is used up, or a value is larger than the server allows.
    #[doc(alias("EQUOTA", "ENOSPC", "E2BIG"))]
    Quota,
    /// What a transaction has read was changed by others meanwhile, and it did nothing: it is to be done again. From a
    /// closure that is done again by itself, and from a listing in many parts: it was so each time.
    #[doc(alias = "EAGAIN")]
    Conflict,
    /// Another refusal of the server's.
    Refused(Code),
    /// The text is no path: see [`Path`](super::Path).
    InvalidPath,
    /// The value is not what was asked for, such as a number of this size.
    InvalidValue,
    /// Path and value together are more than a message holds, 4096 bytes. Nothing was sent.
    TooLong,
    /// The listing is more than a message holds, 4096 bytes, and the server does not give it in parts.
    TooBig,
    /// A directory listing has more than [`MAX_LISTING`](super::MAX_LISTING) bytes, or came in more than 256 parts.
    ListingTooLong,
    /// The answer makes no sense. Others are not affected; whether the request was obeyed is not known.
    Malformed,
    /// The connection is broken, or was between two steps of a transaction: the server has shown an impossible index or
    /// message, or has given up. If it offers to begin anew the next request is on a new connection, and else an error.
    Broken,
    /// The domain was resumed elsewhere before the answer came. Whether the request was obeyed is not known; it was not sent
    /// again.
    Interrupted,
    /// The transaction is from before the domain was [resumed](crate::lifecycle#suspend-and-resume), and its changes are lost.
    BeforeResume,
    /// There is no memory for a request or its answer.
    OutOfMemory,
    /// Xenstore's port cannot be waited for.
    Port(eventchn::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the domain has no xenstore"),
            Self::NotFound => f.write_str("no such node in xenstore"),
            Self::Denied => f.write_str("xenstore denies it"),
            Self::Exists => f.write_str("it is there in xenstore already"),
            Self::Quota => f.write_str("a quota of xenstore is used up"),
            Self::Conflict => f.write_str("a transaction of xenstore is in conflict with others"),
            Self::Refused(code) => write!(f, "xenstore refuses: {code}"),
            Self::InvalidPath => f.write_str("not a path of xenstore"),
            Self::InvalidValue => f.write_str("a value of xenstore is not what was expected"),
            Self::TooLong => f.write_str("more than a message to xenstore holds"),
            Self::TooBig => f.write_str("a directory of xenstore is too big to be listed"),
            Self::ListingTooLong => f.write_str("xenstore directory listing exceeds 256 KiB or 256 parts"),
            Self::Malformed => f.write_str("an answer of xenstore's makes no sense"),
            Self::Broken => f.write_str("the connection to xenstore is broken"),
            Self::Interrupted => f.write_str("a request to xenstore was interrupted by a suspend"),
            Self::BeforeResume => f.write_str("the transaction of xenstore is from before the domain was resumed"),
            Self::OutOfMemory => f.write_str("no memory for a request to xenstore"),
            Self::Port(error) => write!(f, "the port of xenstore: {error}"),
        }
    }
}

impl core::error::Error for Error {}

impl From<Code> for Error {
    fn from(code: Code) -> Self {
        match code {
            Code::NotFound => Self::NotFound,
            Code::Access | Code::NotPermitted => Self::Denied,
            Code::Exists => Self::Exists,
            Code::Quota | Code::NoSpace | Code::TooBig => Self::Quota,
            Code::Again => Self::Conflict,
            code => Self::Refused(code),
        }
    }
}

impl From<Malformed> for Error {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Unsendable> for Error {
    fn from(unsendable: Unsendable) -> Self {
        match unsendable {
            Unsendable::TooLong => Self::TooLong,
            Unsendable::Nul => Self::InvalidValue,
            Unsendable::OutOfMemory => Self::OutOfMemory,
        }
    }
}
