//! Pages that a peer may access, and the end of that.

use core::fmt;
use core::iter::FusedIterator;
use core::marker::PhantomData;

use super::grants::Take;
use super::list::Chain;
use super::table::{Permit, frame_number};
use super::{Access, Error, ErrorKind, ReadOnly, ReadWrite, Reference};
use crate::abi::errno::Errno;
use crate::abi::xen::DomainId;
use crate::gnttab::GRANTS;
use crate::local::{self, Instance};
use crate::memory::{self, Pages};
use crate::shared::{Owner, SharedMemory, owner};
use crate::time;

/// One or more pages of this domain's that follow each other, and that a peer domain may access: [`ReadOnly`]
/// or [`ReadWrite`]. They are zeroed, so that the peer sees nothing that it was not meant to see, unless somebody has
/// [prepared](Self::from_pages) them.
///
/// The pages are one piece of memory, which this domain reads and writes through one view, and which is free again when the
/// peer is done with the last of them. Who needs no such piece, but many pages, has one of these for each. Each takes 64 bytes
/// of the heap besides, so that dropping it takes none.
///
/// Dropping is as [`end`](Self::end), whose result nobody sees then.
///
/// A grant cannot be ended twice, nor its references be given back twice:
///
/// ```compile_fail,E0382
/// # fn example(granted: domu::gnttab::Granted<domu::gnttab::ReadWrite>) {
/// let _ = granted.end();
/// let _ = granted.end();
/// # }
/// ```
///
/// Nor does a ring work in pages that the peer can only read:
///
/// ```compile_fail,E0277
/// # fn example(granted: domu::gnttab::Granted<domu::gnttab::ReadOnly>) {
/// let _ = domu::shared::FrontRing::<[u8; 16], [u8; 16], _>::new(granted);
/// # }
/// ```
#[doc(alias("gnttab_grant_foreign_access", "grant_access", "share_pages"))]
pub struct Granted<A: Access> {
    /// None when it is at its end.
    held: Option<Held>,
    peer: DomainId,
    /// Given out for as long as the value is borrowed.
    memory: SharedMemory<'static>,
    state: Instance,
    /// That of the domain in which they were granted.
    generation: u64,
    access: PhantomData<A>,
}

/// What belongs together until the peer is done with all of it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) pages: Pages,
    pub(super) references: Chain,
}

impl Held {
    /// Ends the grant to a peer: the pages, if the peer has none of them in use.
    pub(super) fn end(self, domain: Instance, peer: DomainId) -> Option<Pages> {
        if !domain.is_running() {
            // The pages and their references stay in use in their domain, if that has not ended.
            return None;
        }
        GRANTS.of(domain).end(peer, self.pages, self.references, || time::now_in(domain))
    }
}

impl<A: Access> Granted<A> {
    /// Grants so many new pages to a peer, and waits until there are as many references. Who came first has them first, however
    /// many the others want. The peer need not exist yet.
    ///
    /// Who waits for many holds up all that come behind: for as long as others keep their grants, and as peers keep what is
    /// deferred. One of them may keep a single reference for ever. Who cannot wait so long has a [`timeout`](time::timeout)
    /// around this, or takes what is free now: [`try_new`](Self::try_new).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooManyDeferred`] if the peer still uses too many pages of grants that have ended, now or when the references
    /// are there: the caller then waits, and tries again; [`ErrorKind::TooMany`] if there will never be so many references;
    /// [`ErrorKind::Memory`] for none at all, or if so many pages in
    /// one piece are not free, or there is none for the table; [`ErrorKind::FrameTooHigh`]; [`ErrorKind::Refused`] by Xen, or outside
    /// of a domain.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place among those that wait. Nothing is granted.
    pub async fn new(peer: DomainId, pages: usize) -> Result<Self, Error> {
        let (state, count) = Self::prepare(peer, pages)?;
        let references = Take::new(state, count).await.map_err(|kind| kind.of_peer(peer))?;
        Self::share(state, peer, references, Pages::new(pages))
    }

    /// Grants so many new pages to a peer, now.
    ///
    /// It does not stand behind those that wait for more references than are free, so no peer can hold it up by what it keeps.
    /// Those wait longer for it: a program that has all references in use by this alone may keep them waiting for ever.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoReferences`] if so many are not free, besides those for which somebody who waited has just been woken; and as
    /// [`new`](Self::new).
    pub fn try_new(peer: DomainId, pages: usize) -> Result<Self, Error> {
        let (state, count) = Self::prepare(peer, pages)?;
        let references = GRANTS.of(state).try_take(count).map_err(|kind| kind.of_peer(peer))?;
        Self::share(state, peer, references, Pages::new(pages))
    }

    /// Grants pages with what is in them, such as data to be sent, as [`new`](Self::new) grants new ones. The peer can read all
    /// of it, whole pages: what was there before the data, too, unless they are new or overwritten.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new). The pages are free then.
    ///
    /// # Cancel safety
    ///
    /// As [`new`](Self::new). The pages are free then.
    pub async fn from_pages(peer: DomainId, pages: Pages) -> Result<Self, Error> {
        let (state, count) = Self::prepare(peer, pages.count())?;
        let references = Take::new(state, count).await.map_err(|kind| kind.of_peer(peer))?;
        Self::share(state, peer, references, Ok(pages))
    }

    /// Grants pages with what is in them, as [`from_pages`](Self::from_pages) does, but now.
    ///
    /// # Errors
    ///
    /// As [`try_new`](Self::try_new). The pages are free then.
    pub fn try_from_pages(peer: DomainId, pages: Pages) -> Result<Self, Error> {
        let (state, count) = Self::prepare(peer, pages.count())?;
        let references = GRANTS.of(state).try_take(count).map_err(|kind| kind.of_peer(peer))?;
        Self::share(state, peer, references, Ok(pages))
    }

    fn prepare(peer: DomainId, pages: usize) -> Result<(Instance, u32), Error> {
        let state = local::current().ok_or(ErrorKind::Refused(Errno::ESRCH))?;
        let allowed = match u32::try_from(pages) {
            Ok(0) => Err(memory::Error::NotPages.into()),
            // Before references are waited for, and again when they are there.
            Ok(count) => GRANTS.of(state).allow(peer).map(|()| (state, count)),
            Err(_) => Err(ErrorKind::TooMany),
        };
        allowed.map_err(|kind| kind.of_peer(peer))
    }

    /// Grants pages, one for each of these references, of which there is one at least. Without pages the references go back.
    fn share(
        state: Instance,
        peer: DomainId,
        references: Chain,
        pages: Result<Pages, memory::Error>,
    ) -> Result<Self, Error> {
        let made = pages.map_err(ErrorKind::from).and_then(|pages| {
            // By their numbers the peer would be given pages of this domain's.
            if pages.instance() != state {
                return Err(ErrorKind::Refused(Errno::ESRCH));
            }
            let behind_first = references.len() - 1;
            let last = frame_number(pages.frame() + u64::from(behind_first))?;
            GRANTS.of(state).add_place(peer)?;
            Ok((pages, last - behind_first))
        });
        let (pages, frame) = match made {
            Ok(made) => made,
            Err(kind) => {
                GRANTS.of(state).give(references);
                return Err(kind.of_peer(peer));
            }
        };
        GRANTS.of(state).permit(&references, Permit { peer, frame, read_only: A::READ_ONLY });
        // SAFETY: the pages are RAM of the domain's, mapped read-write, and stay so while the value has them. It lends the view
        // to who borrows the value, so nobody has it when the grant is at its end. Until then `pages` is not used, which alone
        // gives references to that memory.
        let memory = unsafe { SharedMemory::new(pages.start(), pages.count()) };
        let generation = state.generation();
        Ok(Self { held: Some(Held { pages, references }), peer, memory, state, generation, access: PhantomData })
    }

    /// Who may access the pages.
    #[must_use]
    pub const fn peer(&self) -> DomainId {
        self.peer
    }

    /// How many pages there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.pages.count())
    }

    /// Whether the peer has its access. After a resume it has not.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`]; [`ErrorKind::Refused`] on the host, outside of the grant's simulated domain.
    pub fn check(&self) -> Result<(), Error> {
        super::check(self.state, self.generation).map_err(|kind| kind.of_peer(self.peer))
    }

    /// The reference of each page, in their order: what the peer is told. There are none from before a resume.
    pub fn references(&self) -> References<'_> {
        let held = self.held.as_ref().filter(|_| self.check().is_ok());
        let chain = held.map_or(&Chain::EMPTY, |held| &held.references);
        References { state: self.state, next: chain.first(), left: chain.len(), owner: PhantomData }
    }

    /// Copies the references of the first pages, as many as there is room for, and returns how many: for a grant of many
    /// pages, whose [`references`](Self::references) are asked for one by one. There are none from before a resume.
    #[must_use]
    pub fn copy_references(&self, to: &mut [Reference]) -> usize {
        let Some(held) = self.held.as_ref().filter(|_| self.check().is_ok()) else { return 0 };
        let (mut places, mut count) = (to.iter_mut(), 0);
        GRANTS.of(self.state).read_entries(&held.references, |entry| {
            if let Some(place) = places.next() {
                *place = Reference(entry.reference);
                count += 1;
            }
        });
        count
    }

    /// Ends the grant, and returns at once: with the pages, which are this domain's alone again, if the peer has none of them
    /// in use. What it wrote is still there. One from before a resume has ended with that, whatever the peer does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InUse`] if the peer has some of them in use. It keeps its access to these, and none to the others. They are
    /// kept back, in a list, with their references, and are free when the peer is done with them. On the host also outside of
    /// the grant's simulated domain, where nothing is ended.
    #[doc(alias("gnttab_end_foreign_access", "end_access", "unshare"))]
    pub fn end(mut self) -> Result<Pages, Error> {
        let peer = self.peer;
        self.finish().ok_or_else(|| ErrorKind::InUse.of_peer(peer))
    }

    fn finish(&mut self) -> Option<Pages> {
        self.held.take()?.end(self.state, self.peer)
    }
}

impl<A: Access> Drop for Granted<A> {
    fn drop(&mut self) {
        drop(self.finish());
    }
}

impl<A: Access> Granted<A> {
    /// The memory, which the peer may read, or write to, at the same time.
    #[must_use]
    pub const fn memory(&self) -> SharedMemory<'_> {
        self.memory
    }
}

impl Granted<ReadOnly> {
    /// The memory, which the peer can read at the same time, but not write.
    ///
    /// What is written shows to the peer in any order, until something that it acquires is published with Release, such as
    /// the index of a ring.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let Some(held) = &mut self.held else { return &mut [] };
        // The view gives no references, and borrows `self`, so that nobody has it now. Xen maps and copies read-only for the
        // peer, so only this program writes the memory.
        held.pages.bytes_mut()
    }
}

impl owner::Sealed for Granted<ReadWrite> {}

// SAFETY: it is one view, of pages that stay where they are until the value is gone, and longer if the peer uses them. Nothing
// accesses them meanwhile but through `SharedMemory`: see where the view is made.
unsafe impl Owner for Granted<ReadWrite> {
    fn memory(&self) -> SharedMemory<'_> {
        self.memory
    }
}

impl<A: Access> fmt::Debug for Granted<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Granted").field("peer", &self.peer).field("held", &self.held).finish_non_exhaustive()
    }
}

/// The references of a grant, in the order of its pages.
#[derive(Clone)]
#[must_use = "iterators do nothing unless they are asked"]
pub struct References<'a> {
    state: Instance,
    next: Option<u32>,
    left: u32,
    owner: PhantomData<&'a ()>,
}

impl Iterator for References<'_> {
    type Item = Reference;

    fn next(&mut self) -> Option<Reference> {
        let reference = self.next.filter(|_| self.state.is_running())?;
        self.left = self.left.checked_sub(1)?;
        self.next = GRANTS.of(self.state).behind(reference);
        Some(Reference(reference))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for References<'_> {}
impl FusedIterator for References<'_> {}

impl fmt::Debug for References<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}
