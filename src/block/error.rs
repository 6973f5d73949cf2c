//! Errors of requests to a disk.

use core::fmt;

use super::protocol::{DeviceNumber, GeometryError, RangeError};
use crate::{eventchn, gnttab, xenbus, xenstore};

/// Error of an operation on a disk: its kind, and the disk.
///
/// An error compares with an [`ErrorKind`]: `error == ErrorKind::ReadOnly`. Displayed it is one line, such as
/// `block: xvda: read-only`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    kind: ErrorKind,
    device: DeviceNumber,
}

impl Error {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The disk.
    #[must_use]
    pub const fn device(&self) -> DeviceNumber {
        self.device
    }
}

impl PartialEq<ErrorKind> for Error {
    fn eq(&self, other: &ErrorKind) -> bool {
        self.kind == *other
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block: {}: {}", self.device, self.kind)
    }
}

impl core::error::Error for Error {}

/// Kind of an [`Error`] of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Position or length is not a multiple of this many bytes, or the range is empty. Nothing was sent.
    Misaligned(u64),
    /// The range ends beyond the disk. Nothing was sent.
    OutOfRange,
    /// The disk is read-only. Nothing was sent.
    ReadOnly,
    /// The back end does not offer the operation.
    Unsupported,
    /// The back end reported an error. A part of the request may have been done.
    Failed,
    /// The back end offers neither flush nor barrier, or does not carry out what it offers: whether writes are durable is unknown.
    FlushUnsupported,
    /// A flush failed, so writes since the last good flush may be lost. Every flush, write and discard fails like this until
    /// [`Disk::clear_flush_failure`](super::Disk::clear_flush_failure).
    FlushFailed,
    /// The back end died, or the domain was resumed, after writes had completed and before they were flushed: they may be lost.
    /// Reported once; a later flush vouches for later writes.
    MayBeLost,
    /// The back end broke the protocol. The request may have been done.
    Protocol,
    /// The toolstack detaches the disk; requests in flight are still answered.
    Detached,
    /// No such disk.
    NotFound,
    /// The toolstack removed the disk, or its driver ended.
    Gone,
    /// The back end still uses the lent pages. The result is unknown, and the pages are freed when it is done with them.
    BufferKept,
    /// The peer could not be granted the pages: out of references or memory. The pages are freed.
    NotGranted,
    /// Out of memory.
    OutOfMemory,
    /// The back end published a size that no disk has.
    Geometry(GeometryError),
}

impl ErrorKind {
    /// The error of a disk.
    pub(super) const fn of(self, device: DeviceNumber) -> Error {
        Error { kind: self, device }
    }
}

impl From<RangeError> for ErrorKind {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Misaligned(size) => Self::Misaligned(u64::from(size)),
            RangeError::OutOfRange => Self::OutOfRange,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(unit) => write!(f, "position or length is not a multiple of {unit} bytes, or length is 0"),
            Self::OutOfRange => f.write_str("range ends beyond the disk"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::Unsupported => f.write_str("operation not offered by the back end"),
            Self::Failed => f.write_str("I/O error reported by the back end"),
            Self::FlushUnsupported => f.write_str("no flush or barrier: durability of writes unknown"),
            Self::FlushFailed => f.write_str("a flush failed: writes since the last one may be lost"),
            Self::MayBeLost => f.write_str("connection lost: completed writes that were not flushed may be lost"),
            Self::Protocol => f.write_str("protocol error of the back end"),
            Self::Detached => f.write_str("being detached by the toolstack"),
            Self::NotFound => f.write_str("no such disk"),
            Self::Gone => f.write_str("removed by the toolstack, or the driver ended"),
            Self::BufferKept => f.write_str("the back end still uses the lent pages"),
            Self::NotGranted => f.write_str("cannot grant pages to the back end"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Geometry(error) => error.fmt(f),
        }
    }
}

/// Why a disk could not be opened, or its driver ended.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DriverError {
    /// An error of the disk.
    Disk(Error),
    /// The handshake failed.
    Device(xenbus::Error),
    /// Pages could not be granted.
    Grant(gnttab::Error),
    /// An operation on the event channel failed.
    Port(eventchn::Error),
    /// An operation on xenstore failed.
    Xenstore(xenstore::Error),
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
            Self::Grant(error) => error.fmt(f),
            Self::Port(error) => error.fmt(f),
            Self::Xenstore(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DriverError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Disk(error) => error.source(),
            Self::Device(error) => error.source(),
            Self::Grant(error) => error.source(),
            Self::Port(error) => error.source(),
            Self::Xenstore(error) => error.source(),
        }
    }
}

impl From<Error> for DriverError {
    fn from(error: Error) -> Self {
        Self::Disk(error)
    }
}

impl From<xenbus::Error> for DriverError {
    fn from(error: xenbus::Error) -> Self {
        Self::Device(error)
    }
}

impl From<gnttab::Error> for DriverError {
    fn from(error: gnttab::Error) -> Self {
        Self::Grant(error)
    }
}

impl From<eventchn::Error> for DriverError {
    fn from(error: eventchn::Error) -> Self {
        Self::Port(error)
    }
}

impl From<xenstore::Error> for DriverError {
    fn from(error: xenstore::Error) -> Self {
        Self::Xenstore(error)
    }
}
