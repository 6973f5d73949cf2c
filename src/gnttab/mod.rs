//! Grant tables: pages that domains let each other access.
//!
//! A domain names each page that a peer may access by a [`Reference`], and tells the peer that number. The peer maps the
//! page into its own memory, or has Xen copy from or to it.
//!
//! [`Granted`] are pages of this domain's that a peer may access. It owns both the pages and their references:
//!
//! ```no_run
//! # use domu::gnttab::{Granted, ReadWrite};
//! # async fn example(peer: domu::DomainId) -> domu::Result {
//! let granted = Granted::<ReadWrite>::new(peer, 1).await?;
//! granted.memory().write(0, b"hello");
//! for reference in granted.references() {
//!     log::info!("domain {peer} may map {reference}");
//! }
//! // When the peer is done with it, and has said so:
//! match granted.end() {
//!     Ok(pages) => log::info!("it wrote {:?}", &pages.bytes()[..5]),
//!     Err(error) => log::warn!("{error}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Xen's table of grants, version 1, is asked for when the first reference is wanted, and grows with the need, up to what the
//! toolstack allows (`max_grant_frames`, 64 by default: 32,760 references). When all are in use, [`Granted::new`] waits, and
//! [`Granted::try_new`] fails. The first eight are the toolstack's, and never handed out.
//!
//! [`Revocable`] pages are granted once, and taken back and given again one by one, without a hypercall: what a peer has filled
//! is then read in place.
//!
//! A peer's pages are used by a [`Mapping`], or by [`copy`]ing from and to them, which is less work for data that is looked at
//! once.
//!
//! A peer may keep a page in use for as long as it wants. Whoever ends or drops the grant does not wait for that: the page,
//! with its reference, is then kept back, and free within a second of when the peer is done with it, or has died.
//! [`stat`] tells how many there are. A peer that keeps too many is granted no more ([`ErrorKind::TooManyDeferred`],
//! [`deferred_limit`]). A driver that connects again uses the ring that it has, so that a peer which does not unmap it costs
//! nothing: see the example of [`xenbus`](crate::xenbus).

mod access;
pub mod copy;
mod deferred;
mod error;
mod grants;
mod list;
mod map;
mod peers;
mod retry;
mod revocable;
mod share;
mod table;
mod waiters;

use core::fmt;
use core::num::ParseIntError;
use core::str::FromStr;
use core::sync::atomic::Ordering;

pub use access::{Access, ReadOnly, ReadWrite};
pub use error::{Error, ErrorKind};
pub(crate) use grants::{DeferredGrants, GRANTS};
pub(crate) use map::MAPPED;
pub use map::Mapping;
pub use revocable::Revocable;
pub use share::{Granted, References};

use crate::abi::errno::Errno;
pub use crate::abi::grant_table::Status;
use crate::abi::xen::DomainId;
use crate::local::{self, Instance};

/// The number of a grant in the table of the domain that gives it: what a peer is told.
#[doc(alias("grant_ref_t", "gref", "Gntref"))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reference(pub u32);

impl Reference {
    /// That of the console's page, which the toolstack has granted.
    #[doc(alias = "GNTTAB_RESERVED_CONSOLE")]
    pub const CONSOLE: Self = Self(0);
    /// That of xenstore's page, which the toolstack has granted.
    #[doc(alias = "GNTTAB_RESERVED_XENSTORE")]
    pub const XENSTORE: Self = Self(1);
}

/// As a peer writes it to xenstore: a decimal number of 32 bits.
impl FromStr for Reference {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A page that a domain grants: whose, and by which reference. That is what it takes to use it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Grant {
    /// The domain that grants it.
    pub domain: DomainId,
    /// The reference.
    pub reference: Reference,
}

/// Whether a grant or mapping of this generation of a domain may be used here and now.
fn check(state: Instance, generation: u64) -> Result<(), ErrorKind> {
    if !state.is_running() {
        return Err(ErrorKind::Refused(Errno::ESRCH));
    }
    if generation == state.generation() { Ok(()) } else { Err(ErrorKind::BeforeResume) }
}

/// What is known of the grants that this domain gives, and of those that it maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Stat {
    /// References in use, those of deferred pages among them. The toolstack's eight do not count.
    pub in_use: u32,
    /// References that are free in the frames that the table has.
    #[doc(alias = "num_free_grants")]
    pub free: u32,
    /// Futures that wait for references.
    pub waiting: usize,
    /// Pages whose grant is at its end, but that the peer had in use when they were last looked at.
    pub deferred: u32,
    /// Pages that deferred grants keep: all pages of each, as they are one piece of memory, until the peer is done with the last
    /// of them.
    pub deferred_pages: u32,
    /// Grants that were refused because their peer had too many of those, since the domain started: see [`deferred_limit`].
    pub refused: u64,
    /// Deferred pages that the peer is done with, since the domain started.
    pub reclaimed: u64,
    /// Pages of others that are mapped here.
    pub mapped: u32,
    /// Pages of unpopulated space that are not used again, as Xen would not take away what is mapped there: none, unless Xen
    /// fails.
    pub lost: u32,
    /// Frames of the table. It has none until the first reference is wanted.
    #[doc(alias = "nr_grant_frames")]
    pub frames: u32,
    /// Frames that it may have. Zero until then, as Xen has not been asked.
    #[doc(alias = "max_grant_frames")]
    pub max_frames: u32,
}

/// What is known of the grants that this domain gives, and of those that it maps: a copy of some fields.
#[must_use]
pub fn stat() -> Stat {
    local::current().map_or_else(Stat::default, |state| Stat {
        mapped: MAPPED.of(state).pages.load(Ordering::Relaxed),
        lost: MAPPED.of(state).lost.load(Ordering::Relaxed),
        ..GRANTS.of(state).stat()
    })
}

/// How many pages the deferred grants of one peer keep.
///
/// A peer whose figure stays high is broken or hostile: it does not unmap what it has mapped. Zero outside of a domain.
#[must_use]
pub fn deferred_pages(peer: DomainId) -> u32 {
    local::current().map_or(0, |state| GRANTS.of(state).deferred_pages(peer))
}

/// The number of deferred pages at which a peer is refused further grants, which fail with [`ErrorKind::TooManyDeferred`].
///
/// By default that is a sixteenth of the domain's RAM, at most a quarter of the references that the table may have, and at least
/// 32. So a peer that never unmaps costs a sixteenth of the memory, and what the program has granted to it at one time. A peer
/// with fewer deferred pages is granted as many as there are. Pages that the peer is done with make room again, within a second,
/// and so does a [resume](crate::lifecycle#suspend-and-resume).
///
/// Zero outside of a domain.
#[must_use]
pub fn deferred_limit() -> u32 {
    local::current().map_or(0, |state| GRANTS.of(state).limit())
}

/// Sets the limit of deferred pages for each peer: see [`deferred_limit`]. `None` restores the default. A peer without deferred
/// pages is never refused.
///
/// A program whose drivers grant many pages to one driver domain, and reconnect all at once, may want more than the default;
/// one that talks to hostile peers in little memory may want less.
pub fn set_deferred_limit(pages: Option<u32>) {
    if let Some(state) = local::current() {
        GRANTS.of(state).set_limit(pages);
    }
}
