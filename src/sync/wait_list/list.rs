//! One queue of waiters with slots of its own.

use alloc::collections::TryReserveError;
use core::task::Waker;

use super::queue::Queue;
use super::waiters::{Mark, Waiter, WaiterId, Waiters};

/// Waiters in order of arrival, each for a number of units: references, bytes of room, or one event.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct WaitList {
    waiters: Waiters,
    queue: Queue,
}

impl WaitList {
    /// No waiter.
    pub(crate) const fn new() -> Self {
        Self { waiters: Waiters::new(), queue: Queue::new() }
    }

    /// Makes room for one more waiter.
    pub(crate) fn try_reserve(&mut self) -> Result<(), TryReserveError> {
        self.waiters.try_reserve()
    }

    /// Registers a waiter for some units: in its place if it has one, else behind all others. Sets its id, and returns the waker
    /// that was replaced.
    #[must_use = "the replaced waker is dropped after unlocking"]
    pub(crate) fn register(&mut self, id: &mut Option<WaiterId>, waiter: Waiter, units: u32) -> Option<Waker> {
        self.queue.register(&mut self.waiters, id, waiter, u64::from(units))
    }

    /// Takes a waiter out, unless it has gone, and returns its waker. Where waiters are woken one at a time the caller then
    /// passes the wake-up on by [`wake_first`](Self::wake_first).
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn leave(&mut self, id: WaiterId) -> Option<Waker> {
        self.queue.leave(&mut self.waiters, id)
    }

    /// Takes out the first waiter, if it was there when a mark was taken, and returns its waker.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn pop(&mut self, mark: Mark) -> Option<Waker> {
        self.queue.pop(&mut self.waiters, mark)
    }

    /// The first waiter, and the units that it waits for.
    pub(crate) fn first(&self) -> Option<(WaiterId, u32)> {
        self.queue.first(&self.waiters).map(|(id, units)| (id, units as u32))
    }

    /// The waker of the first waiter, if it can be served by the units that it waits for, and was not woken since it last
    /// registered. It keeps its place.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn wake_first(&mut self, can_be_served: impl FnOnce(u32) -> bool) -> Option<Waker> {
        let (id, units) = self.first()?;
        if can_be_served(units) { self.waiters.take_waker(id) } else { None }
    }

    /// Whether a waiter is there that is not in the background.
    pub(crate) const fn has_foreground(&self) -> bool {
        self.waiters.has_foreground()
    }

    /// Waiters in the list.
    pub(crate) const fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Marks the end of the order of arrival.
    pub(crate) const fn mark(&self) -> Mark {
        self.waiters.mark()
    }
}
