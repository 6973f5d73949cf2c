//! Errors of operations on xenstore.

use alloc::string::String;
use core::fmt::{self, Write};

use super::code::Code;
use super::operation::Operation;
use super::wire::{Malformed, Unsendable};
use crate::abi::xs_wire::ABS_PATH_MAX;
use crate::causes::write_causes;
use crate::eventchn;

/// Error of an operation on xenstore: its kind, and the operation and the path that it names.
///
/// An error compares with an [`ErrorKind`]: `error == ErrorKind::NotFound`. Displayed it is one line, such as
/// `xenstore: cannot read device/vif/0/state: no such node`, and with `{:#}` that line and its cause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    kind: ErrorKind,
    operation: Option<Operation>,
    path: Option<String>,
}

impl Error {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that failed, if it was one. The conversion of a text or a value is none.
    #[must_use]
    pub const fn operation(&self) -> Option<Operation> {
        self.operation
    }

    /// The path, as the caller gave it. Absent if the operation has none, if there was no memory to keep it, and if it has more
    /// than 3072 bytes, so that it cannot be a path.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// An error of a path that is in memory of its own already.
    pub(super) fn of_path(kind: ErrorKind, path: String) -> Self {
        Self { kind, operation: None, path: Some(path).filter(|path| path.len() <= ABS_PATH_MAX) }
    }
}

impl ErrorKind {
    /// The error of an operation on a path.
    #[cold]
    #[inline(never)]
    pub(crate) fn at(self, operation: Operation, path: &str) -> Error {
        Error { kind: self, operation: Some(operation), path: copy(path) }
    }

    /// The error of an operation without a path.
    #[cold]
    pub(super) const fn of(self, operation: Operation) -> Error {
        Error { kind: self, operation: Some(operation), path: None }
    }

    /// The error of a path.
    #[cold]
    pub(super) fn with_path(self, path: &str) -> Error {
        Error { kind: self, operation: None, path: copy(path) }
    }
}

/// Writes a path, with control characters escaped: what is not a valid path may hold anything.
pub(crate) fn write_path(f: &mut fmt::Formatter<'_>, path: &str) -> fmt::Result {
    for c in path.chars() {
        if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
    }
    Ok(())
}

/// A path in memory of its own, if there is memory for it.
pub(crate) fn copy(path: &str) -> Option<String> {
    let mut copy = String::new();
    (path.len() <= ABS_PATH_MAX && copy.try_reserve_exact(path.len()).is_ok()).then(|| {
        copy.push_str(path);
        copy
    })
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, operation: None, path: None }
    }
}

impl PartialEq<ErrorKind> for Error {
    fn eq(&self, other: &ErrorKind) -> bool {
        self.kind == *other
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("xenstore: ")?;
        if let Some(operation) = self.operation {
            write!(f, "cannot {operation}")?;
            f.write_str(if self.path.is_some() { " " } else { ": " })?;
        }
        if let Some(path) = &self.path {
            write_path(f, path)?;
            f.write_str(": ")?;
        }
        write!(f, "{}", self.kind)?;
        write_causes(f, self)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::Port(error) => Some(error),
            _ => None,
        }
    }
}

/// Kind of an [`Error`] of xenstore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The domain has no xenstore, as the first domain of a host. On the host also outside of the handle's simulated domain.
    Absent,
    /// No such node; of a commit, no such transaction.
    #[doc(alias = "ENOENT")]
    NotFound,
    /// Permission denied.
    #[doc(alias("EACCES", "EPERM"))]
    Denied,
    /// The node, or another object of the request, already exists.
    #[doc(alias = "EEXIST")]
    Exists,
    /// A quota of the domain is exhausted, or the value exceeds the largest size of a node.
    #[doc(alias("EQUOTA", "ENOSPC", "E2BIG"))]
    Quota,
    /// A transaction conflicts with other changes; nothing of it was applied. From
    /// [`Xenstore::transaction`](super::Xenstore::transaction), and from a listing in parts: every attempt conflicted.
    #[doc(alias = "EAGAIN")]
    Conflict,
    /// Another error of xenstored.
    Refused(Code),
    /// Invalid path: see [`Path`](super::Path).
    InvalidPath,
    /// The value does not have the requested form, such as a number of this size; or a string of a request contains a NUL.
    InvalidValue,
    /// Path and value exceed a message of 4096 bytes. Nothing was sent.
    TooLong,
    /// The listing exceeds a message of 4096 bytes, and the server does not support listings in parts.
    TooBig,
    /// A directory listing exceeds [`MAX_LISTING`](super::MAX_LISTING) bytes or 256 parts.
    ListingTooLong,
    /// Malformed reply. Other requests are not affected; the request may have been executed.
    Malformed,
    /// The connection is closed: xenstored violated the protocol (impossible index or message), or reported an error. A transaction
    /// of that connection is gone. The next request opens a new connection if the server supports that, and fails otherwise.
    Broken,
    /// The domain was resumed before the reply. The request may have been executed; it was not sent again.
    Interrupted,
    /// The transaction is from before a [resume](crate::lifecycle#suspend-and-resume), and its changes are lost.
    BeforeResume,
    /// Out of memory for a request or its reply.
    OutOfMemory,
    /// The event channel port of xenstore cannot be used. The error is the source.
    Port(eventchn::Error),
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "the domain has no xenstore",
            Self::NotFound => "no such node",
            Self::Denied => "permission denied",
            Self::Exists => "already exists",
            Self::Quota => "quota exhausted (quotas of xenstored)",
            Self::Conflict => "conflict with other transactions",
            Self::Refused(code) => return write!(f, "refused by xenstored: {code}"),
            Self::InvalidPath => "invalid path",
            Self::InvalidValue => "invalid value",
            Self::TooLong => "request exceeds 4096 bytes",
            Self::TooBig => "listing exceeds 4096 bytes, and xenstored does not support listings in parts",
            Self::ListingTooLong => "listing exceeds 256 KiB or 256 parts",
            Self::Malformed => "malformed reply from xenstored",
            Self::Broken => "protocol error from xenstored; connection closed",
            Self::Interrupted => "interrupted by a resume; the request may have been executed",
            Self::BeforeResume => "the transaction is from before a resume",
            Self::OutOfMemory => "out of memory",
            Self::Port(_) => "cannot use the event channel port of xenstore",
        })
    }
}

impl From<Code> for ErrorKind {
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

impl From<Malformed> for ErrorKind {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Unsendable> for ErrorKind {
    fn from(unsendable: Unsendable) -> Self {
        match unsendable {
            Unsendable::TooLong => Self::TooLong,
            Unsendable::Nul => Self::InvalidValue,
            Unsendable::OutOfMemory => Self::OutOfMemory,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::error::Error as _;
    use std::format;
    use std::string::ToString;

    use super::*;
    use crate::abi::errno::Errno;
    use crate::abi::xs_wire::MessageType;
    use crate::xenstore::Value;

    #[test]
    fn error_text_names_operation_and_path() {
        let error = ErrorKind::NotFound.at(Operation::Read, "device/vif/0/state");
        assert_eq!(error.to_string(), "xenstore: cannot read device/vif/0/state: no such node");
        assert_eq!((error.operation(), error.path()), (Some(Operation::Read), Some("device/vif/0/state")));
        let error = ErrorKind::Quota.of(Operation::Begin);
        assert_eq!(error.to_string(), "xenstore: cannot begin a transaction: quota exhausted (quotas of xenstored)");
        let error = ErrorKind::Denied.of(Operation::Request(MessageType::CONTROL));
        assert_eq!(error.to_string(), "xenstore: cannot send request CONTROL: permission denied");
        assert_eq!(ErrorKind::InvalidPath.with_path("a\n//").to_string(), "xenstore: a\\n//: invalid path");
        assert_eq!(Error::from(ErrorKind::Broken).to_string(), format!("xenstore: {}", ErrorKind::Broken));
    }

    #[test]
    fn error_of_an_overlong_path_has_no_path() {
        let error = ErrorKind::InvalidPath.at(Operation::Write, &"a".repeat(ABS_PATH_MAX + 1));
        assert_eq!((error.kind(), error.path()), (ErrorKind::InvalidPath, None));
        assert_eq!(error.to_string(), "xenstore: cannot write: invalid path");
        assert!(ErrorKind::NotFound.at(Operation::Write, &"a".repeat(ABS_PATH_MAX)).path().is_some());
    }

    #[test]
    fn error_of_a_port_has_it_as_source() {
        let cause = eventchn::Error::from(eventchn::ErrorKind::Refused(Errno::EPERM));
        let error = ErrorKind::Port(cause).at(Operation::Read, "name");
        assert_eq!(error.source().unwrap().downcast_ref(), Some(&cause));
        assert!(!error.to_string().contains(&cause.to_string()));
        assert!(format!("{error:#}").starts_with(&format!("{error}: {cause}")));
        assert!(ErrorKind::NotFound.at(Operation::Read, "name").source().is_none());
    }

    #[test]
    fn result_with_an_error_is_small() {
        assert!(size_of::<Result<Value, Error>>() <= 64, "{}", size_of::<Result<Value, Error>>());
    }
}
