//! What a domain keeps of the grants that it gives: who has which reference, who waits for some, and what is not free yet.

use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};

use crate::sync::Mutex;

use super::deferred::{Deferred, Entry};
use super::list::{Chain, Lists};
use super::table::{EntryPlace, Permit, Table};
use super::waiters::Waiters;
use super::{ErrorKind, Stat};
use crate::abi::errno::Errno;
use crate::abi::grant_table::{ENTRIES_PER_FRAME, RESERVED_ENTRIES};
use crate::abi::xen::DomainId;
use crate::executor::{Source, Turn};
use crate::local::{Instance, domain_local};
use crate::memory::Pages;
use crate::sync::wait_list::{Waiter, WaiterId};
use crate::time::Instant;

domain_local! {
    /// The grants that the domain gives.
    pub(crate) static GRANTS: Grants = Grants::new();
}

/// References that are looked at in a turn of the main loop, at most: some microseconds.
const LOOKS_IN_A_TURN: u32 = 128;

/// The least limit of deferred pages for a peer, unless the application sets one: that of a domain of 2 MiB. Some rings can be
/// replaced while the peer is slow to unmap the old ones.
const LEAST_LIMIT: u32 = 32;

/// There is no next look.
const NEVER: u64 = u64::MAX;

/// The grants that a domain gives.
#[derive(Debug)]
pub(crate) struct Grants {
    inner: Mutex<Inner>,
    /// When the deferred ones are to be looked at, in nanoseconds: read in each turn.
    next_look: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    table: Table,
    lists: Lists,
    waiters: Waiters,
    deferred: Deferred,
    /// References of deferred grants that were in use when they were last looked at, and such that have come back.
    in_use: u32,
    reclaimed: u64,
    /// Frames of RAM at boot, and the limit that the application has set.
    ram_frames: u64,
    limit: Option<u32>,
    /// Grants that were refused because of it.
    refused: u64,
}

impl Inner {
    const fn new() -> Self {
        Self {
            table: Table::new(),
            lists: Lists::new(),
            waiters: Waiters::new(),
            deferred: Deferred::new(),
            in_use: 0,
            reclaimed: 0,
            ram_frames: 0,
            limit: None,
            refused: 0,
        }
    }

    /// References that the table may yet grow by. Those of the first page that are reserved do not count.
    fn growth(&self) -> u32 {
        let reserved = if self.table.pages() == 0 { RESERVED_ENTRIES } else { 0 };
        let pages = self.table.known_most().saturating_sub(self.table.pages());
        (pages * ENTRIES_PER_FRAME).saturating_sub(reserved)
    }

    /// Deferred pages that a peer may have when it is granted more: see [`deferred_limit`](super::deferred_limit).
    fn limit(&self) -> u32 {
        let sixteenth_of_ram = u32::try_from(self.ram_frames / 16).unwrap_or(u32::MAX);
        // Nothing is deferred before Xen was asked for the size of the table.
        let quarter_of_table = match self.table.known_most() {
            0 => u32::MAX,
            frames => frames * ENTRIES_PER_FRAME / 4,
        };
        self.limit.unwrap_or_else(|| sixteenth_of_ram.min(quarter_of_table).max(LEAST_LIMIT))
    }

    /// Whether a peer may be granted pages.
    fn allow(&mut self, peer: DomainId) -> Result<(), ErrorKind> {
        if self.deferred.is_empty() {
            return Ok(());
        }
        let deferred = self.deferred.peers.deferred(peer);
        if deferred == 0 || deferred < self.limit() {
            return Ok(());
        }
        self.refused += 1;
        Err(ErrorKind::TooManyDeferred)
    }

    /// References that are free, or can be.
    fn available(&self) -> u32 {
        self.lists.free() + self.growth()
    }

    /// Takes so many references, or none if there are not so many besides those that are to be left: then the table has not
    /// grown for it.
    fn take(&mut self, count: u32, left: u32) -> Result<Option<Chain>, ErrorKind> {
        self.table.most()?;
        loop {
            // What a boot loader has left in use shows only when a page of the table is placed: both are asked each time.
            if count > self.lists.known().saturating_add(self.growth()) {
                return Err(ErrorKind::TooMany);
            }
            if count > self.available().saturating_sub(left) {
                return Ok(None);
            }
            if count <= self.lists.free() {
                return Ok(self.lists.take(count));
            }
            let block = self.lists.reserve()?;
            self.table.grow()?;
            self.lists.adopt(block, |reference| self.table.is_usable(reference));
        }
    }

    /// Who is to be woken, as references have become free, or nobody is in front of the next any more.
    fn next_waiter(&mut self) -> Option<Waker> {
        self.waiters.next(self.available(), self.lists.known() + self.growth())
    }

    /// Tries to end so many grants of a list. References of those that are not in use are given back, the others go behind.
    fn end(&mut self, references: &mut Chain, count: u32) -> u32 {
        let mut ended = 0;
        for _ in 0..count {
            let Some(one) = self.lists.pop(references) else { break };
            if one.first().is_none_or(|reference| self.table.end(reference)) {
                self.lists.give(one);
                ended += 1;
            } else {
                self.lists.append(references, one);
            }
        }
        ended
    }
}

impl Grants {
    /// No grant.
    const fn new() -> Self {
        Self { inner: Mutex::new(Inner::new()), next_look: AtomicU64::new(NEVER) }
    }

    /// Sets the frames of RAM, of which the default limit of deferred pages is a part.
    pub(crate) fn set_ram(&self, frames: u64) {
        self.inner.lock().ram_frames = frames;
    }

    /// The pages of the table.
    #[cfg(test)]
    pub(super) fn entries(&self) -> alloc::vec::Vec<crate::shared::SharedPage> {
        self.inner.lock().table.pages.clone()
    }

    pub(super) fn stat(&self) -> Stat {
        let inner = self.inner.lock();
        Stat {
            in_use: inner.lists.known() - inner.lists.free(),
            free: inner.lists.free(),
            waiting: inner.waiters.len(),
            deferred: inner.in_use,
            deferred_pages: inner.deferred.peers.all_deferred(),
            refused: inner.refused,
            reclaimed: inner.reclaimed,
            frames: inner.table.pages(),
            max_frames: inner.table.known_most(),
            ..Stat::default()
        }
    }

    /// Reads where the entries of a grant are, in the order of its pages.
    pub(super) fn read_entries(&self, references: &Chain, mut read: impl FnMut(EntryPlace)) {
        let inner = self.inner.lock();
        for reference in core::iter::successors(references.first(), |&reference| inner.lists.next(reference)) {
            inner.table.place(reference).into_iter().for_each(&mut read);
        }
    }

    /// The reference behind another of the same grant.
    pub(super) fn behind(&self, reference: u32) -> Option<u32> {
        self.inner.lock().lists.next(reference)
    }

    /// Takes so many references now, whoever waits, but not what the first that waits can have.
    pub(super) fn try_take(&self, count: u32) -> Result<Chain, ErrorKind> {
        let mut inner = self.inner.lock();
        let left = inner.waiters.spoken_for(inner.available());
        let taken = inner.take(count, left);
        // Growth may have shown that the first waits for more than there are.
        let waker = inner.next_waiter();
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
        taken?.ok_or(ErrorKind::NoReferences)
    }

    /// Gives references back that were not used.
    pub(super) fn give(&self, chain: Chain) {
        let mut inner = self.inner.lock();
        inner.lists.give(chain);
        let waker = inner.next_waiter();
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Pages of a peer's deferred grants.
    pub(super) fn deferred_pages(&self, peer: DomainId) -> u32 {
        self.inner.lock().deferred.peers.deferred(peer)
    }

    pub(super) fn limit(&self) -> u32 {
        self.inner.lock().limit()
    }

    pub(super) fn set_limit(&self, pages: Option<u32>) {
        self.inner.lock().limit = pages;
    }

    /// Whether a peer may be granted pages: not if it has too many in use of grants that have ended.
    pub(super) fn allow(&self, peer: DomainId) -> Result<(), ErrorKind> {
        // Without a next look nothing is deferred.
        if self.next_look().is_none() { Ok(()) } else { self.inner.lock().allow(peer) }
    }

    /// Makes a place for a grant to a peer, which may not be at its end when its owner is.
    pub(super) fn add_place(&self, peer: DomainId) -> Result<(), ErrorKind> {
        let mut inner = self.inner.lock();
        inner.allow(peer)?;
        inner.deferred.add_place(peer)
    }

    /// Grants pages that follow each other, the first of which the permit names.
    pub(super) fn permit(&self, references: &Chain, first: Permit) {
        let inner = self.inner.lock();
        let all = core::iter::successors(references.first(), |&reference| inner.lists.next(reference));
        for (reference, frame) in all.zip(first.frame..) {
            inner.table.permit(reference, Permit { frame, ..first });
        }
    }

    /// Ends a grant to a peer: its pages, if the peer has none of them in use, or else they are deferred.
    pub(super) fn end(
        &self,
        peer: DomainId,
        pages: Pages,
        mut references: Chain,
        now: impl FnOnce() -> Instant,
    ) -> Option<Pages> {
        let mut inner = self.inner.lock();
        let count = references.len();
        inner.end(&mut references, count);
        let pages = if references.len() == 0 {
            inner.deferred.drop_place(peer);
            Some(pages)
        } else {
            inner.in_use += references.len();
            inner.deferred.add(Entry::new(peer, pages, references, now()));
            self.set_next_look(&inner);
            None
        };
        let waker = inner.next_waiter();
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
        pages
    }

    /// When deferred grants are to be looked at again, if there are any.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        match self.next_look.load(Ordering::Relaxed) {
            NEVER => None,
            nanoseconds => Some(Instant::from_nanos(nanoseconds)),
        }
    }

    fn set_next_look(&self, inner: &Inner) {
        let due = inner.deferred.next_due().map_or(NEVER, Instant::as_nanos);
        self.next_look.store(due, Ordering::Relaxed);
    }

    /// Looks at deferred grants whose time has come, at a bounded number of references.
    pub(crate) fn look(&self, now: Instant) {
        if self.next_look().is_none_or(|due| due > now) {
            return;
        }
        let mut looks = LOOKS_IN_A_TURN;
        while looks > 0 {
            let mut inner = self.inner.lock();
            let Some(mut entry) = inner.deferred.pop_due(now) else { break };
            if entry.left == 0 {
                entry.left = entry.references.len();
            }
            let count = entry.left.min(looks);
            (entry.left, looks) = (entry.left - count, looks - count);
            let ended = inner.end(&mut entry.references, count);
            inner.in_use -= ended;
            inner.reclaimed += u64::from(ended);
            let mut free = None;
            if entry.references.len() == 0 {
                inner.deferred.free(&entry);
                free = Some(entry.pages);
            } else {
                entry.postpone(now);
                inner.deferred.push(entry);
            }
            let waker = inner.next_waiter();
            drop(inner);
            drop(free);
            waker.into_iter().for_each(Waker::wake);
        }
        self.set_next_look(&self.inner.lock());
    }

    /// Places the table again, after a resume, in which nothing is granted. References stay with whoever holds a grant from
    /// before.
    pub(crate) fn resume(&self) -> Result<(), Errno> {
        self.inner.lock().table.resume()
    }

    /// After a resume what was deferred is free. Who waits for references, of another Xen's table by now, looks again.
    pub(crate) fn reclaim(&self) {
        loop {
            let mut inner = self.inner.lock();
            let Some(entry) = inner.deferred.pop() else { break };
            let count = entry.references.len();
            inner.in_use -= count;
            inner.reclaimed += u64::from(count);
            inner.deferred.free(&entry);
            inner.lists.give(entry.references);
            let waker = inner.next_waiter();
            drop(inner);
            drop(entry.pages);
            waker.into_iter().for_each(Waker::wake);
        }
        let mut inner = self.inner.lock();
        self.set_next_look(&inner);
        let waker = inner.next_waiter();
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Whether a deferred grant may yet wake a future that waits for references.
    pub(crate) fn may_wake(&self) -> bool {
        let inner = self.inner.lock();
        !inner.deferred.is_empty() && inner.waiters.has_foreground()
    }
}

/// Waits for references. The first that waits is served first.
#[must_use = "futures do nothing unless polled"]
pub(super) struct Take {
    state: Instance,
    count: u32,
    /// Its registration.
    id: Option<WaiterId>,
}

impl Future for Take {
    type Output = Result<Chain, ErrorKind>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The table may grow for it, which only its own domain may do.
        if !self.state.is_running() {
            return Poll::Ready(Err(ErrorKind::Refused(Errno::ESRCH)));
        }
        let state = self.state;
        let waiter = Waiter::new(state, context.waker());
        let mut inner = GRANTS.of(state).inner.lock();
        // Without a registration it is its turn as well, if no other waits.
        let taken = if inner.waiters.is_first(self.id) { inner.take(self.count, 0) } else { Ok(None) };
        let count = self.count;
        let (result, replaced) = match taken {
            Ok(Some(chain)) => (Some(Ok(chain)), None),
            Err(error) => (Some(Err(error)), None),
            Ok(None) => match inner.waiters.reserve() {
                Ok(()) => (None, inner.waiters.register(&mut self.id, count, waiter)),
                Err(error) => (Some(Err(error)), None),
            },
        };
        drop(inner);
        drop(replaced);
        result.map_or(Poll::Pending, |result| {
            self.leave();
            Poll::Ready(result)
        })
    }
}

impl Take {
    /// Waits for this number of a domain's references.
    pub(super) const fn new(state: Instance, count: u32) -> Self {
        Self { state, count, id: None }
    }

    /// Leaves the queue, and wakes the next waiter if it can be served. Outside of its domain the place in the queue stays.
    fn leave(&mut self) {
        let Some(id) = self.id.take().filter(|_| self.state.is_running()) else { return };
        let mut inner = GRANTS.of(self.state).inner.lock();
        let own = inner.waiters.leave(id);
        let next = inner.next_waiter();
        drop(inner);
        drop(own);
        next.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Deferred grants, in the main loop.
pub(crate) struct DeferredGrants;

impl Source for DeferredGrants {
    #[inline]
    fn poll(&self, turn: &mut Turn) {
        let grants = GRANTS.of(turn.domain);
        if grants.next_look().is_some() {
            grants.look(turn.now());
        }
    }

    #[inline]
    fn next_deadline(&self, domain: Instance) -> Option<Instant> {
        GRANTS.of(domain).next_look()
    }

    #[inline]
    fn may_wake(&self, domain: Instance) -> bool {
        GRANTS.of(domain).may_wake()
    }
}
