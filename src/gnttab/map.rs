//! Pages of peers, mapped into unpopulated space: never over RAM, which Xen would take away.
//!
//! All pages of a mapping come with one hypercall for each 32 of them, and go so. Which of them are there is kept beside the
//! hole that they lie in, in one value whose end takes away what is there: whether all went well, one was refused, or the
//! future was dropped while it waited.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::mem;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use zerocopy::{FromBytes, IntoBytes};

use super::retry::Retry;
use super::{Access, Error, ErrorKind, Grant, ReadOnly, ReadWrite, Reference};
use crate::abi::errno::Errno;
use crate::abi::grant_table::{MAP_HOST, MAP_READ_ONLY, MapGrantRef, Status, UnmapGrantRef};
use crate::abi::xen::DomainId;
use crate::local::domain_local;
use crate::local::{self, Instance};
use crate::memory::unpopulated::Hole;
use crate::shared::{Owner, SharedMemory, owner};
use crate::{arch, hypercall, memory};

domain_local! {
    /// The pages of peers that the domain maps.
    pub(crate) static MAPPED: Mapped = Mapped::new();
}

/// Pages in a hypercall: a KiB of the stack.
const BATCH: usize = 32;

/// What is known of what this domain maps.
#[derive(Debug)]
pub(crate) struct Mapped {
    /// Pages that are mapped.
    pub(super) pages: AtomicU32,
    /// Pages of unpopulated space that are not used again, as Xen would not take a mapping away.
    pub(super) lost: AtomicU32,
}

impl Mapped {
    /// Nothing.
    const fn new() -> Self {
        Self { pages: AtomicU32::new(0), lost: AtomicU32::new(0) }
    }

    /// Takes note that nothing is mapped after a resume. Who holds a mapping gives its space back.
    pub(crate) fn resume(&self) {
        self.pages.store(0, Ordering::Relaxed);
    }
}

/// Pages of one or several peers, in one piece: [`ReadOnly`], or [`ReadWrite`].
///
/// The peer may write to them at any time, and end its grant only when they are unmapped: by [`unmap`](Self::unmap), or when
/// this is dropped. A peer that ends does not take the pages along; what was mapped stays until then.
///
/// ```no_run
/// # use domu::gnttab::{Mapping, ReadWrite, Reference};
/// # async fn example(peer: domu::DomainId, told: &[Reference]) -> domu::Result {
/// let mapping = Mapping::<ReadWrite>::new(peer, told).await?;
/// mapping.memory().write(0, b"hello");
/// mapping.unmap()?;
/// # Ok(())
/// # }
/// ```
///
/// What is unmapped cannot be used any more:
///
/// ```compile_fail,E0382
/// # fn example(mapping: domu::gnttab::Mapping<domu::gnttab::ReadWrite>) {
/// let _ = mapping.unmap();
/// let _ = mapping.memory();
/// # }
/// ```
///
/// Nor can memory that may only be read be written to:
///
/// ```compile_fail,E0599
/// # fn example(mapping: domu::gnttab::Mapping<domu::gnttab::ReadOnly>) {
/// mapping.memory().write(0, b"hello");
/// # }
/// ```
#[doc(alias("gnttab_map_refs", "Import", "Local_mapping", "mapv", "xengnttab_map_grant_refs"))]
pub struct Mapping<A: Access> {
    placed: Placed,
    /// Given out for as long as the value is borrowed, if it may be written to.
    memory: SharedMemory<'static>,
    access: PhantomData<A>,
}

impl<A: Access> Mapping<A> {
    /// Pages that a mapping may have: 2 MiB.
    pub const MAX_PAGES: usize = memory::WINDOW as usize;

    /// Maps pages of a peer, one after the other: all of them, or none.
    ///
    /// If Xen says that a page is not there now, those that are missing are tried again, up to ten times within a second.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OwnDomain`]; [`ErrorKind::Memory`] for no page at all or more than [`MAX_PAGES`](Self::MAX_PAGES), or if there is
    /// no space or memory for them; [`ErrorKind::NoDomain`], [`ErrorKind::NoReference`], [`ErrorKind::NotGranted`] and the like, as Xen
    /// refuses one of them; [`ErrorKind::Unavailable`] if a page was not there all the time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing mapped.
    pub async fn new(peer: DomainId, references: &[Reference]) -> Result<Self, Error> {
        Self::map(references.len(), |index| Grant { domain: peer, reference: references[index] }).await
    }

    /// Maps pages of several peers, one after the other, as [`new`](Self::new) does.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    ///
    /// # Cancel safety
    ///
    /// As [`new`](Self::new).
    pub async fn gather(grants: &[Grant]) -> Result<Self, Error> {
        Self::map(grants.len(), |index| grants[index]).await
    }

    async fn map(count: usize, grant: impl Fn(usize) -> Grant) -> Result<Self, Error> {
        let state = local::current().ok_or(ErrorKind::Refused(Errno::ESRCH))?;
        if let Some(own) =
            (0..count).map(&grant).find(|grant| [hypercall::domain(state), DomainId::SELF].contains(&grant.domain))
        {
            return Err(ErrorKind::OwnDomain.of_grant(own));
        }
        let mut placed = Placed::new(state, count)?;
        let mut retry = Retry::new();
        while !placed.map(A::READ_ONLY, &grant)? {
            if !retry.wait().await {
                let missing = placed.handles.iter().position(Option::is_none).unwrap_or_default();
                return Err(ErrorKind::Unavailable.of_grant(grant(missing)));
            }
        }
        let start = NonNull::new(arch::phys(placed.address(0))).ok_or(ErrorKind::BadAddress)?;
        // SAFETY: all pages are mapped, one after the other, and stay so as long as the value lives, which lends the view to
        // who borrows it. The hole is the value's, so nothing else reaches them. Where they are mapped read-only, `ReadOnly`
        // lets nobody have the view, and itself calls nothing that writes.
        let memory = unsafe { SharedMemory::new(start, count) };
        Ok(Self { placed, memory, access: PhantomData })
    }

    /// How many pages there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.placed.handles.len()
    }

    /// Whether the pages are there. After a resume they are not: what is read then is ones, and what is written goes nowhere.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`]; [`ErrorKind::Refused`] on the host, outside of the mapping's simulated domain.
    pub fn check(&self) -> Result<(), Error> {
        Ok(self.placed.check()?)
    }

    /// Unmaps the pages. Dropping does the same, and tells nobody if it fails.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`], when there is nothing to be unmapped; [`ErrorKind::Refused`] on the host, outside of the mapping's
    /// simulated domain, where nothing is unmapped. As Xen refuses it, which it has no cause to. The space that the pages lie in is then never used again, and counted:
    /// [`Stat::lost`](super::Stat::lost).
    #[doc(alias = "gnttab_unmap_refs")]
    pub fn unmap(mut self) -> Result<(), Error> {
        Ok(self.placed.unmap()?)
    }
}

impl Mapping<ReadWrite> {
    /// The memory, which the peer may read and write at the same time.
    #[must_use]
    pub const fn memory(&self) -> SharedMemory<'_> {
        self.memory
    }
}

impl Mapping<ReadOnly> {
    /// Copies bytes out, once.
    ///
    /// # Panics
    ///
    /// If they do not lie in the memory.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.memory.read(offset, bytes);
    }

    /// Copies a value out, once: what is returned is private. Any bytes are a value of its type.
    ///
    /// # Panics
    ///
    /// If it does not lie in the memory.
    #[must_use]
    pub fn read_value<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        self.memory.read_value(offset)
    }
}

impl owner::Sealed for Mapping<ReadWrite> {}

// SAFETY: it is one view, of pages that stay mapped read-write, at the same place, until the value is gone, wherever it is moved
// to; only `SharedMemory` reaches them, as the hole that they lie in is the value's.
unsafe impl Owner for Mapping<ReadWrite> {
    fn memory(&self) -> SharedMemory<'_> {
        self.memory
    }
}

impl<A: Access> fmt::Debug for Mapping<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("memory", &self.memory).finish()
    }
}

/// A hole, and what is mapped in it: taken away at the end.
struct Placed {
    state: Instance,
    /// That of the domain that mapped them.
    generation: u64,
    /// None once it is lost.
    hole: Option<Hole>,
    /// For each page its handle, if it is there.
    handles: Vec<Option<u32>>,
    first: u64,
}

impl Placed {
    /// Room for so many pages, with nothing there yet.
    fn new(state: Instance, count: usize) -> Result<Self, ErrorKind> {
        let mut handles = Vec::new();
        let hole = Hole::new(count as u64)?;
        handles.try_reserve_exact(count).map_err(|_| memory::Error::OutOfMemory)?;
        handles.resize(count, None);
        let first = hole.frames().start;
        Ok(Self { state, generation: state.generation(), hole: Some(hole), handles, first })
    }

    /// Where a page is placed.
    const fn address(&self, index: usize) -> u64 {
        (self.first + index as u64) << 12
    }

    /// Whether this is the domain that mapped them, not resumed elsewhere since.
    fn check(&self) -> Result<(), ErrorKind> {
        super::check(self.state, self.generation)
    }

    /// Maps what is not there yet. False if something is to be tried again.
    fn map(&mut self, read_only: bool, grant: impl Fn(usize) -> Grant) -> Result<bool, Error> {
        self.check()?;
        let flags = if read_only { MAP_HOST | MAP_READ_ONLY } else { MAP_HOST };
        let (mut next, mut complete) = (0, true);
        loop {
            let mut batch: heapless::Vec<MapGrantRef, BATCH> = heapless::Vec::new();
            let mut pages: heapless::Vec<usize, BATCH> = heapless::Vec::new();
            while next < self.handles.len() && pages.len() < BATCH {
                if self.handles[next].is_none() {
                    let Grant { domain, reference } = grant(next);
                    let request = MapGrantRef {
                        host_addr: self.address(next),
                        flags,
                        reference: reference.0,
                        dom: domain.0,
                        // What Xen does not come to is not mapped.
                        status: Status::AGAIN,
                        ..MapGrantRef::default()
                    };
                    // There is room for both.
                    let _ = batch.push(request);
                    let _ = pages.push(next);
                }
                next += 1;
            }
            if pages.is_empty() {
                return Ok(complete);
            }
            // SAFETY: each address is a page of the hole, which is this value's, and has nothing there yet. It becomes memory
            // when all is mapped, and is accessed as what others write, too.
            let result = unsafe { hypercall::grant_map(&mut batch) };
            let mut refused = None;
            for (request, &index) in batch.iter().zip(&pages) {
                match request.status {
                    Status::OKAY => self.handles[index] = Some(request.handle),
                    Status::AGAIN => complete = false,
                    status => {
                        let kind = ErrorKind::check(status).err();
                        refused = refused.or(kind.map(|kind| kind.of_grant(grant(index))));
                    }
                }
            }
            let there = batch.iter().filter(|request| request.status == Status::OKAY).count();
            MAPPED.of(self.state).pages.fetch_add(there as u32, Ordering::Relaxed);
            result.map_err(ErrorKind::Refused)?;
            if let Some(error) = refused {
                return Err(error);
            }
        }
    }

    /// Takes away what is there. If Xen does not do that, the hole is lost: what is placed there next would not be.
    fn unmap(&mut self) -> Result<(), ErrorKind> {
        self.check()?;
        let mut result = Ok(());
        let mut next = 0;
        while next < self.handles.len() {
            let mut batch: heapless::Vec<UnmapGrantRef, BATCH> = heapless::Vec::new();
            while next < self.handles.len() && batch.len() < BATCH {
                if let Some(handle) = self.handles[next].take() {
                    let host_addr = self.address(next);
                    // What Xen does not come to stays mapped.
                    let status = Status::GENERAL_ERROR;
                    // There is room.
                    let _ = batch.push(UnmapGrantRef { host_addr, handle, status, ..UnmapGrantRef::default() });
                }
                next += 1;
            }
            if batch.is_empty() {
                break;
            }
            // SAFETY: this value made these mappings, and forgets them. It is not used by anybody: views borrow from it.
            let called = unsafe { hypercall::grant_unmap(&mut batch) }.map_err(ErrorKind::Refused);
            let gone = batch.iter().filter(|request| request.status == Status::OKAY).count();
            MAPPED.of(self.state).pages.fetch_sub(gone as u32, Ordering::Relaxed);
            let refused = batch.iter().find_map(|request| ErrorKind::check(request.status).err());
            result = result.and(called).and(refused.map_or(Ok(()), Err));
        }
        if result.is_err()
            && let Some(hole) = self.hole.take()
        {
            MAPPED.of(self.state).lost.fetch_add(self.handles.len() as u32, Ordering::Relaxed);
            mem::forget(hole);
        }
        result
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // Refused unmaps are counted. Outside of its domain the mapping stays until that ends.
        let _ = self.unmap();
    }
}
