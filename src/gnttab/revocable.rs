//! Pages whose grant is revoked and restored in place, page by page and without a hypercall.
//!
//! The frame in the entry of each page is written once. The word of flags and domain switches the access: revoking is a
//! compare-and-swap of that word from the permission to 0, restoring a store of the permission.
//!
//! *Exclusive access.* Each page is *private* or *granted*. A slice is lent for private pages only, and borrows the value, so
//! that [`restore`](Revocable::restore) has to wait until it is gone. A page becomes private by a compare-and-swap that
//! succeeds only if neither READING nor WRITING is set. Xen sets these by a compare-and-swap on the same word before it
//! maps or copies, and clears them when the last use has ended. One of the two comes first: if ours does, Xen's finds no
//! permission, and any later copy fails without a write. If Xen's does, ours fails and the page stays granted. So nothing but
//! this program accesses a private page.
//!
//! *What is read.* The compare-and-swap acquires: a copy that ended before it is in memory. Each change of sides passes the
//! pointer through [`handover`], as Xen's writes are not the program's.
//!
//! *After a resume* all entries are 0 and name no frame. A store of the permission would grant frame 0 to the peer's number. So
//! nothing is switched unless the grant's generation is the domain's, and private pages stay what they are.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering;

use super::share::Held;
use super::table::{EntryPlace, Permit, frame_number, permission};
use super::{Error, ErrorKind, Reference};
use crate::abi::errno::Errno;
use crate::abi::xen::DomainId;
use crate::gnttab::GRANTS;
use crate::local::{self, Instance};
use crate::memory::{self, Pages};
use crate::shared::handover;

const PAGE: usize = 4096;

/// Pages of one piece that a peer may write, each of which this domain can take back for exclusive access, and give again.
///
/// For buffers that a peer fills by copies of Xen's, such as the receive buffers of a network interface: instead of a copy
/// out of memory that may change, the program reads the page itself, while the peer has no access. Revoking and restoring a
/// page is an atomic operation each, and no hypercall. The peer must not have the page mapped then.
///
/// The first pages are granted. The others, if there are any, are never granted: room in the same piece of memory. All are
/// zeroed when they are new.
///
/// Dropping is as [`end`](Self::end), whose result is lost then.
///
/// ```no_run
/// # use domu::gnttab::Revocable;
/// # fn example(peer: domu::DomainId) -> Result<(), domu::gnttab::Error> {
/// let mut buffers = Revocable::try_new(peer, 256, 17)?;
/// let reference = buffers.reference(3);
/// // The peer was told the reference, has had Xen copy 60 bytes there, and has said so:
/// buffers.revoke(3)?;
/// if let Some(bytes) = buffers.bytes(3 * 4096..3 * 4096 + 60) {
///     log::info!("received {bytes:x?}");
/// }
/// buffers.restore(3)?;
/// assert!(buffers.bytes(3 * 4096..3 * 4096 + 60).is_none());
/// # Ok(())
/// # }
/// ```
#[doc(alias("gnttab_end_foreign_access_ref", "gnttab_grant_foreign_access_ref", "persistent grant"))]
pub struct Revocable {
    /// `None` when it is at its end.
    held: Option<Held>,
    /// The entries of the granted pages, in their order.
    entries: Vec<EntryPlace>,
    /// A bit for each page that the peer cannot access.
    private: Vec<u64>,
    /// The word of flags and domain that lets the peer access a page.
    permission: u32,
    peer: DomainId,
    state: Instance,
    /// That of the domain in which they were granted.
    generation: u64,
}

impl Revocable {
    /// Grants `granted` new pages, with `private` more behind them that are never granted.
    ///
    /// # Errors
    ///
    /// As [`Granted::try_new`](super::Granted::try_new).
    pub fn try_new(peer: DomainId, granted: usize, private: usize) -> Result<Self, Error> {
        let count = granted.checked_add(private).ok_or_else(|| ErrorKind::TooMany.of_peer(peer))?;
        Self::share(peer, granted, || Pages::new(count)).map_err(|kind| kind.of_peer(peer))
    }

    /// Grants the first `granted` of these pages with what is in them.
    ///
    /// # Errors
    ///
    /// As [`try_new`](Self::try_new). [`ErrorKind::TooMany`] if there are fewer pages. The pages are free then.
    pub fn try_from_pages(peer: DomainId, pages: Pages, granted: usize) -> Result<Self, Error> {
        if granted > pages.count() {
            return Err(ErrorKind::TooMany.of_peer(peer));
        }
        Self::share(peer, granted, || Ok(pages)).map_err(|kind| kind.of_peer(peer))
    }

    fn share(
        peer: DomainId,
        granted: usize,
        pages: impl FnOnce() -> Result<Pages, memory::Error>,
    ) -> Result<Self, ErrorKind> {
        let state = local::current().ok_or(ErrorKind::Refused(Errno::ESRCH))?;
        let count = match u32::try_from(granted) {
            Ok(0) => return Err(memory::Error::NotPages.into()),
            Ok(count) => count,
            Err(_) => return Err(ErrorKind::TooMany),
        };
        let grants = GRANTS.of(state);
        grants.allow(peer)?;
        let no_memory = |_| ErrorKind::Memory(memory::Error::OutOfMemory);
        let (mut entries, mut private) = (Vec::new(), Vec::new());
        entries.try_reserve_exact(granted).map_err(no_memory)?;
        let pages = pages()?;
        // By their numbers the peer would be given pages of this domain's.
        if pages.instance() != state {
            return Err(ErrorKind::Refused(Errno::ESRCH));
        }
        let last = frame_number(pages.frame() + u64::from(count) - 1)?;
        private.try_reserve_exact(pages.count().div_ceil(64)).map_err(no_memory)?;
        private.resize(pages.count().div_ceil(64), 0);
        (granted..pages.count()).for_each(|page| private[page / 64] |= 1 << (page % 64));
        let references = grants.try_take(count)?;
        if let Err(kind) = grants.add_place(peer) {
            grants.give(references);
            return Err(kind);
        }
        grants.read_entries(&references, |entry| entries.push(entry));
        handover(pages.as_ptr());
        grants.permit(&references, Permit { peer, frame: last - (count - 1), read_only: false });
        let held = Some(Held { pages, references });
        Ok(Self {
            held,
            entries,
            private,
            permission: permission(peer, false),
            peer,
            state,
            generation: state.generation(),
        })
    }

    /// The peer.
    #[must_use]
    pub const fn peer(&self) -> DomainId {
        self.peer
    }

    /// How many pages there are, granted or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.pages.count())
    }

    /// How many pages are granted, those that are revoked now among them.
    #[must_use]
    pub fn granted(&self) -> usize {
        self.entries.len()
    }

    /// The reference of a page, which the peer is told.
    ///
    /// # Panics
    ///
    /// If it is not one of the [`granted`](Self::granted).
    #[must_use]
    pub fn reference(&self, page: usize) -> Reference {
        Reference(self.entries[page].reference)
    }

    /// Whether this domain alone has access to a page: it is revoked, or is one of those that are never granted.
    #[must_use]
    pub fn is_private(&self, page: usize) -> bool {
        self.private.get(page / 64).is_some_and(|bits| bits & 1 << (page % 64) != 0) && page < self.count()
    }

    /// Whether the grant is of this domain, and not of one before a resume.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`]; [`ErrorKind::Refused`] on the host, outside of the grant's simulated domain.
    pub fn check(&self) -> Result<(), Error> {
        super::check(self.state, self.generation).map_err(|kind| kind.of_peer(self.peer))
    }

    /// Takes a page back, unless the peer has it in use at this moment. It may be private already.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InUse`]: the peer has mapped the page, or copies to it. Nothing changes. [`ErrorKind::BeforeResume`];
    /// [`ErrorKind::Refused`].
    ///
    /// # Panics
    ///
    /// If it is not one of the [`granted`](Self::granted).
    pub fn revoke(&mut self, page: usize) -> Result<(), Error> {
        self.check()?;
        let word = self.entries[page].word();
        let bit = 1 << (page % 64);
        if self.private[page / 64] & bit != 0 {
            return Ok(());
        }
        if word.compare_exchange(self.permission, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Err(ErrorKind::InUse.of_peer(self.peer));
        }
        self.private[page / 64] |= bit;
        Ok(())
    }

    /// Lets the peer access a page again, with what is in it. It may be granted already.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`], [`ErrorKind::Refused`]. The page stays private.
    ///
    /// # Panics
    ///
    /// If it is not one of the [`granted`](Self::granted).
    pub fn restore(&mut self, page: usize) -> Result<(), Error> {
        // After a resume the entry names no frame: this store would grant frame 0.
        self.check()?;
        let word = self.entries[page].word();
        let bit = 1 << (page % 64);
        if self.private[page / 64] & bit != 0 {
            self.private[page / 64] &= !bit;
            if let Some(held) = &self.held {
                handover(held.pages.as_ptr());
            }
            word.store(self.permission, Ordering::Release);
        }
        Ok(())
    }

    /// Returns true if all pages with bytes of a range are private.
    fn is_exclusive(&self, range: &Range<usize>) -> bool {
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        range.start <= range.end
            && range.end <= self.count() * PAGE
            && pages.into_iter().all(|page| self.is_private(page))
    }

    /// The start of the memory, for the program's own accesses to private pages.
    fn start(&self, range: &Range<usize>) -> Option<*mut u8> {
        let held = self.held.as_ref().filter(|_| self.is_exclusive(range))?;
        Some(handover(held.pages.as_ptr()))
    }

    /// Bytes of private pages, by their offsets in the memory. `None` if a page of them is granted, or there is none.
    #[must_use]
    pub fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        let start = self.start(&range)?;
        // SAFETY: the range lies in the pages, which are initialised and live as long as the value. All pages with bytes of it are
        // private, so neither the peer nor Xen accesses them; they stay private as long as `self` is borrowed, as `restore`
        // borrows it exclusively. Within the program only `bytes_mut`, `copy_within` and the value's end access them, which
        // borrow or take it exclusively too.
        Some(unsafe { core::slice::from_raw_parts(start.add(range.start), range.len()) })
    }

    /// Bytes of private pages, to be written to. Once a page is restored, the peer can read what was written.
    #[must_use]
    pub fn bytes_mut(&mut self, range: Range<usize>) -> Option<&mut [u8]> {
        let start = self.start(&range)?;
        // SAFETY: as in `bytes`; and the value is borrowed exclusively, so nothing else in the program reads them.
        Some(unsafe { core::slice::from_raw_parts_mut(start.add(range.start), range.len()) })
    }

    /// Copies bytes between private pages; the ranges may overlap. Returns false, and copies nothing, if a page of them is
    /// granted, or there is none.
    #[must_use]
    pub fn copy_within(&mut self, from: Range<usize>, to: usize) -> bool {
        let target = to..to.saturating_add(from.len());
        if !self.is_exclusive(&target) {
            return false;
        }
        let Some(start) = self.start(&from) else { return false };
        // SAFETY: both ranges lie in the pages and are private, as just checked, and the value is borrowed exclusively.
        unsafe { core::ptr::copy(start.add(from.start), start.add(to), from.len()) };
        true
    }

    /// Ends all grants, and returns at once: with the pages, if the peer has none of them in use.
    ///
    /// # Errors
    ///
    /// As [`Granted::end`](super::Granted::end): [`ErrorKind::InUse`], and the pages are kept until the peer is done with them.
    pub fn end(mut self) -> Result<Pages, Error> {
        let peer = self.peer;
        self.finish().ok_or_else(|| ErrorKind::InUse.of_peer(peer))
    }

    fn finish(&mut self) -> Option<Pages> {
        // The entry of a private page is 0, which ends at once.
        let pages = self.held.take()?.end(self.state, self.peer)?;
        handover(pages.as_ptr());
        Some(pages)
    }
}

impl Drop for Revocable {
    fn drop(&mut self) {
        drop(self.finish());
    }
}

impl fmt::Debug for Revocable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocable")
            .field("peer", &self.peer)
            .field("granted", &self.granted())
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}
