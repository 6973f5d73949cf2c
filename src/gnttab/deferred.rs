//! Pages that a peer still has in use although their grant is at its end: kept, with their references, and looked at again.
//!
//! The first look comes at the next full millisecond, and each further one at the next multiple of a period twice as long, up
//! to half a second: so a page is free within a second of when the peer is done with it. The moments are those of the clock,
//! and not of the entries: however many there are, an idle domain wakes some two times a second for them. The main loop
//! looks, at a bounded number in a turn, and sets the timer of the virtual CPU for the next look; without entries there is
//! neither.
//!
//! An entry's place is made with its grant, so that neither dropping a grant nor looking takes memory: 64 bytes for each of as
//! many grants as there ever were at once.

use alloc::collections::BinaryHeap;
use core::cmp::Ordering;

use super::ErrorKind;
use super::list::Chain;
use super::peers::Peers;
use crate::abi::xen::DomainId;
use crate::memory::{self, Pages};
use crate::time::Instant;

/// The period of the first look at an entry, in nanoseconds, and how often it is doubled at most. Each period is a multiple of
/// those before, so that what is looked at seldom is looked at together with what is looked at often.
const SHORTEST: u64 = 1_000_000;
const DOUBLINGS: u8 = 9;

/// A grant that is ended as far as it can be. The memory is in one piece, so it is kept until its last page is free; references
/// that are no longer in use are given back before.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pages: Pages,
    /// Those that were in use when they were last looked at.
    pub(super) references: Chain,
    /// How many of them are to be looked at before the next wait.
    pub(super) left: u32,
    due: Instant,
    pub(super) peer: DomainId,
    /// How often the period was doubled.
    doubled: u8,
}

// What the first lines of this file say of its size.
#[cfg(target_os = "none")]
const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    /// A grant whose end was tried now.
    pub(super) fn new(peer: DomainId, pages: Pages, references: Chain, now: Instant) -> Self {
        Self { pages, references, left: 0, due: next_multiple(now, SHORTEST), peer, doubled: 0 }
    }

    /// Pages that it keeps. There are no more than a table has references.
    fn count(&self) -> u32 {
        self.pages.count() as u32
    }

    /// Have all references been looked at? Then the next look is to come later than the last did.
    pub(super) fn postpone(&mut self, now: Instant) {
        if self.left == 0 {
            self.doubled = (self.doubled + 1).min(DOUBLINGS);
            self.due = next_multiple(now, SHORTEST << self.doubled);
        }
    }
}

/// The first moment after now that is a multiple of a period.
fn next_multiple(now: Instant, period: u64) -> Instant {
    Instant::from_nanos((now.as_nanos() / period + 1).saturating_mul(period))
}

/// In the order of a heap, whose greatest comes first: that is the one to be looked at next.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.due.cmp(&self.due)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

/// All entries, and places for those grants that may become one.
#[derive(Debug)]
pub(super) struct Deferred {
    entries: BinaryHeap<Entry>,
    /// Entries, and grants that are not one.
    places: usize,
    /// The same by peer, with the pages of the entries.
    pub(super) peers: Peers,
}

impl Deferred {
    pub(super) const fn new() -> Self {
        Self { entries: BinaryHeap::new(), places: 0, peers: Peers::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Makes a place for a grant to a peer.
    pub(super) fn add_place(&mut self, peer: DomainId) -> Result<(), ErrorKind> {
        let missing = (self.places + 1).saturating_sub(self.entries.len());
        self.entries.try_reserve(missing).map_err(|_| memory::Error::OutOfMemory)?;
        self.peers.add(peer)?;
        self.places += 1;
        Ok(())
    }

    /// A grant that was not deferred is gone.
    pub(super) fn drop_place(&mut self, peer: DomainId) {
        self.places -= 1;
        self.peers.remove(peer);
    }

    /// Defers a grant, in the place that was made for it.
    pub(super) fn add(&mut self, entry: Entry) {
        self.peers.defer(entry.peer, entry.count());
        self.entries.push(entry);
    }

    /// An entry that was taken out is free, and its place is gone.
    pub(super) fn free(&mut self, entry: &Entry) {
        self.peers.release(entry.peer, entry.count());
        self.drop_place(entry.peer);
    }

    /// Puts an entry back that was taken out.
    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Takes any entry out, whenever it is due.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        self.entries.pop()
    }

    /// Takes the first entry out that is to be looked at.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Entry> {
        self.entries.peek().filter(|entry| entry.due <= now)?;
        self.entries.pop()
    }

    /// When the next look is.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.entries.peek().map(|entry| entry.due)
    }
}
