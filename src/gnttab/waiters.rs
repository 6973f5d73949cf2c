//! Waiters for references: first come, first served.
//!
//! A waiter for many is not overtaken by one for few, or it might wait for ever; and a waiter holds no references while it waits
//! for more, so no two of them deadlock.
//!
//! `try_*` bypasses the queue, as the first waiter may wait for pages that a peer never unmaps. References that the first waiter
//! was woken for are left to it.

use core::task::Waker;

use super::ErrorKind;
use crate::memory;
use crate::sync::wait_list::{WaitList, Waiter, WaiterId};

/// Futures that wait for references, in order of arrival. The first one keeps its place until it has taken its references.
#[derive(Debug)]
pub(super) struct Waiters(WaitList);

impl Waiters {
    pub(super) const fn new() -> Self {
        Self(WaitList::new())
    }

    /// Whether a future that is not in the background waits.
    pub(super) const fn has_foreground(&self) -> bool {
        self.0.has_foreground()
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no other waiter comes before this one. A caller that has not registered comes behind all waiters.
    pub(super) fn is_first(&self, id: Option<WaiterId>) -> bool {
        self.0.first().map(|(first, _)| first) == id
    }

    /// Makes room for one more waiter.
    pub(super) fn reserve(&mut self) -> Result<(), ErrorKind> {
        self.0.try_reserve().map_err(|_| ErrorKind::Memory(memory::Error::OutOfMemory))
    }

    /// Registers a waiter for a number of references. Returns the waker that was replaced, to be dropped after unlocking.
    pub(super) fn register(&mut self, id: &mut Option<WaiterId>, count: u32, waiter: Waiter) -> Option<Waker> {
        self.0.register(id, waiter, count)
    }

    /// Takes a waiter out. Returns its waker, to be dropped after unlocking.
    pub(super) fn leave(&mut self, id: WaiterId) -> Option<Waker> {
        self.0.leave(id)
    }

    /// References that are left to the first waiter, if they are enough for it.
    pub(super) fn spoken_for(&self, available: u32) -> u32 {
        self.0.first().map(|(_, count)| count).filter(|count| *count <= available).unwrap_or(0)
    }

    /// The waker of the first waiter, if there are enough references for it, or will never be.
    pub(super) fn next(&mut self, available: u32, most: u32) -> Option<Waker> {
        self.0.wake_first(|count| count <= available || count > most)
    }
}
