//! Errors of operations on grants.

use core::fmt;

use super::{Grant, Reference};
use crate::abi::errno::Errno;
use crate::abi::grant_table::Status;
use crate::abi::xen::DomainId;
use crate::causes::write_causes;
use crate::memory;

/// Error of an operation on grants: its kind, and the peer and the reference that it is about.
///
/// An error compares with an [`ErrorKind`]: `error == ErrorKind::InUse`. Displayed it is one line, such as
/// `grant: reference 9 of domain 3: no such reference`, and with `{:#}` that line and its cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    kind: ErrorKind,
    object: Object,
}

/// The object of an error, in 8 bytes: a result for each copy of a batch has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Object {
    None,
    Peer(DomainId),
    Grant(DomainId, Reference),
}

impl Error {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The peer, if the error is about one: the domain that granted the page, or that it was to be granted to.
    #[must_use]
    pub const fn domain(&self) -> Option<DomainId> {
        match self.object {
            Object::None => None,
            Object::Peer(domain) | Object::Grant(domain, _) => Some(domain),
        }
    }

    /// The reference in the table of [`domain`](Self::domain), if the error is about one.
    #[must_use]
    pub const fn reference(&self) -> Option<Reference> {
        match self.object {
            Object::Grant(_, reference) => Some(reference),
            Object::None | Object::Peer(_) => None,
        }
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, object: Object::None }
    }
}

impl PartialEq<ErrorKind> for Error {
    fn eq(&self, other: &ErrorKind) -> bool {
        self.kind == *other
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("grant: ")?;
        match self.object {
            Object::Grant(domain, reference) => write!(f, "reference {reference} of domain {domain}: ")?,
            Object::Peer(domain) => write!(f, "domain {domain}: ")?,
            Object::None => {}
        }
        write!(f, "{}", self.kind)?;
        write_causes(f, self)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::Refused(errno) => Some(errno),
            ErrorKind::Memory(error) => Some(error),
            _ => None,
        }
    }
}

/// Kind of an [`Error`] of a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The domain is this one. Xen would move the page and lose its contents.
    OwnDomain,
    /// No such domain.
    NoDomain,
    /// The peer's grant table has no such reference.
    NoReference,
    /// General error of Xen: the reference is not in use, is for another domain, or is read-only.
    NotGranted,
    /// Permission denied by Xen's policy or by the grant.
    Denied,
    /// Xen cannot map or copy this page.
    BadPage,
    /// Xen cannot map a page at this address.
    BadAddress,
    /// No such mapping.
    NotMapped,
    /// A copy crosses the end of a page.
    BeyondPage,
    /// The batch is full: submit it first.
    BatchFull,
    /// The page was not available in ten attempts, such as one that the peer's host has paged out.
    Unavailable,
    /// Xen's maptrack table of this domain (`max_maptrack_frames`) or its IOMMU mappings are full.
    NoRecords,
    /// Not enough free grant references now, besides those that wake a waiting future.
    NoReferences,
    /// More grant references than the table can have (`max_grant_frames`).
    TooMany,
    /// The frame number exceeds the 32 bits of grant table version 1: the page lies above 16 TiB.
    FrameTooHigh,
    /// The peer still uses too many pages of ended grants: see [`deferred_limit`](super::deferred_limit). Other peers are not
    /// affected.
    TooManyDeferred,
    /// The peer still uses pages of the grant. They are kept until it is done with them: see [`stat`](super::stat()).
    InUse,
    /// The grant or mapping is from before a [resume](crate::lifecycle#suspend-and-resume): it is gone, and is made again with the
    /// peer.
    BeforeResume,
    /// A status that this crate does not know.
    Status(Status),
    /// Xen refused the hypercall; its error number is the source.
    Refused(Errno),
    /// Out of memory, or of unpopulated address space to map to; the error is the source.
    Memory(memory::Error),
}

impl ErrorKind {
    /// The error about a page that a peer grants.
    #[cold]
    pub(super) const fn of_grant(self, grant: Grant) -> Error {
        Error { kind: self, object: Object::Grant(grant.domain, grant.reference) }
    }

    /// The error about a peer.
    #[cold]
    pub(super) const fn of_peer(self, peer: DomainId) -> Error {
        Error { kind: self, object: Object::Peer(peer) }
    }

    /// Translates the status of an operation.
    ///
    /// # Errors
    ///
    /// The error, unless it succeeded.
    pub(super) const fn check(status: Status) -> Result<(), Self> {
        Err(match status {
            Status::OKAY => return Ok(()),
            Status::GENERAL_ERROR => Self::NotGranted,
            Status::BAD_DOMAIN => Self::NoDomain,
            Status::BAD_REFERENCE => Self::NoReference,
            Status::BAD_HANDLE => Self::NotMapped,
            Status::BAD_VIRTUAL_ADDRESS | Status::BAD_DEVICE_ADDRESS | Status::ADDRESS_TOO_BIG => Self::BadAddress,
            Status::NO_DEVICE_SPACE | Status::NO_SPACE => Self::NoRecords,
            Status::PERMISSION_DENIED => Self::Denied,
            Status::BAD_PAGE => Self::BadPage,
            Status::BAD_COPY_ARGUMENT => Self::BeyondPage,
            Status::AGAIN => Self::Unavailable,
            unknown => Self::Status(unknown),
        })
    }
}

impl From<memory::Error> for ErrorKind {
    fn from(error: memory::Error) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnDomain => "a domain cannot map its own grant",
            Self::NoDomain => "no such domain",
            Self::NoReference => "no such reference",
            Self::NotGranted => "not granted to this domain, or not for this access",
            Self::Denied => "permission denied",
            Self::BadPage => "the page cannot be mapped or copied",
            Self::BadAddress => "a page cannot be mapped at this address",
            Self::NotMapped => "no such mapping",
            Self::BeyondPage => "copy crosses the end of a page",
            Self::BatchFull => "the batch of copies is full",
            Self::Unavailable => "page not available in 10 attempts",
            Self::NoRecords => "maptrack table full (max_maptrack_frames)",
            Self::NoReferences => "not enough free grant references (max_grant_frames)",
            Self::TooMany => "more references than the grant table can have (max_grant_frames)",
            Self::FrameTooHigh => "a page above 16 TiB cannot be granted",
            Self::TooManyDeferred => "the peer still uses too many pages of ended grants (deferred_limit)",
            Self::InUse => "pages still in use by the peer",
            Self::BeforeResume => "the grant is from before a resume",
            Self::Status(status) => return write!(f, "unknown status {}", status.0),
            Self::Refused(_) => "refused by Xen",
            Self::Memory(_) => "no memory or address space",
        })
    }
}

#[cfg(test)]
mod tests {
    use core::error::Error as _;
    use std::collections::BTreeSet;
    use std::format;
    use std::string::ToString;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn every_status_is_an_error_of_its_own_and_unknown_ones_are_kept() {
        assert_eq!(ErrorKind::check(Status::OKAY), Ok(()));
        let errors: Vec<ErrorKind> = (1..=14).map(|number| ErrorKind::check(Status(-number)).unwrap_err()).collect();
        let texts: BTreeSet<_> = errors.iter().map(ToString::to_string).collect();
        // Three are about an address, and two about Xen's records.
        assert_eq!(texts.len(), errors.len() - 3);
        assert_eq!(errors[13], ErrorKind::Status(Status(-14)));
        assert_eq!(ErrorKind::check(Status(1)), Err(ErrorKind::Status(Status(1))));
        assert!(errors[..13].iter().all(|error| !matches!(error, ErrorKind::Status(_))));
    }

    #[test]
    fn error_text_names_reference_and_domain() {
        let grant = Grant { domain: DomainId(3), reference: Reference(9) };
        let error = ErrorKind::NoReference.of_grant(grant);
        assert_eq!(error.to_string(), "grant: reference 9 of domain 3: no such reference");
        assert_eq!((error.domain(), error.reference()), (Some(DomainId(3)), Some(Reference(9))));
        let error = ErrorKind::TooMany.of_peer(DomainId(3));
        let text = "grant: domain 3: more references than the grant table can have (max_grant_frames)";
        assert_eq!(error.to_string(), text);
        assert_eq!(Error::from(ErrorKind::InUse).to_string(), "grant: pages still in use by the peer");
    }

    #[test]
    fn refusal_of_xen_and_of_memory_are_sources() {
        let error = ErrorKind::Refused(Errno::EPERM).of_peer(DomainId(3));
        assert_eq!(error.source().unwrap().downcast_ref(), Some(&Errno::EPERM));
        assert_eq!(format!("{error:#}"), "grant: domain 3: refused by Xen: EPERM");
        let error = ErrorKind::Memory(memory::Error::OutOfMemory).of_peer(DomainId(3));
        assert_eq!(error.source().unwrap().downcast_ref(), Some(&memory::Error::OutOfMemory));
        assert!(ErrorKind::InUse.of_peer(DomainId(3)).source().is_none());
    }
}
