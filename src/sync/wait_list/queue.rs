//! Waiters in order of arrival.

use core::task::Waker;

use super::waiters::{Mark, NONE, Waiter, WaiterId, Waiters};

/// A list of waiters in the slots of a [`Waiters`], which is the same in each call. An empty one takes no memory.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Queue {
    first: u32,
    last: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Queue {
    /// An empty queue.
    pub(crate) const fn new() -> Self {
        Self { first: NONE, last: NONE }
    }

    /// Registers a waiter: in its place if it has one, else behind all others, with the number that it waits for. Sets its id, and
    /// returns the waker that was replaced.
    #[must_use = "the replaced waker is dropped after unlocking"]
    pub(crate) fn register(
        &mut self,
        waiters: &mut Waiters,
        id: &mut Option<WaiterId>,
        waiter: Waiter,
        value: u64,
    ) -> Option<Waker> {
        let waiter = match *id {
            Some(id) => match waiters.replace(id, waiter) {
                Ok(replaced) => return replaced,
                Err(waiter) => waiter,
            },
            None => waiter,
        };
        let new = waiters.insert(Some(waiter.waker), waiter.background, value);
        if let Some(slot) = waiters.slot_mut(new.slot) {
            slot.before = self.last;
        }
        match waiters.slot_mut(self.last) {
            Some(last) => last.after = new.slot,
            None => self.first = new.slot,
        }
        self.last = new.slot;
        *id = Some(new);
        None
    }

    /// Takes a waiter out, unless it has gone, and returns its waker.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn leave(&mut self, waiters: &mut Waiters, id: WaiterId) -> Option<Waker> {
        let slot = waiters.get(id)?;
        let (before, after) = (slot.before, slot.after);
        match waiters.slot_mut(before) {
            Some(slot) => slot.after = after,
            None => self.first = after,
        }
        match waiters.slot_mut(after) {
            Some(slot) => slot.before = before,
            None => self.last = before,
        }
        waiters.release(id.slot)
    }

    /// Takes out the first waiter, if it was there when a mark was taken, and returns its waker.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn pop(&mut self, waiters: &mut Waiters, mark: Mark) -> Option<Waker> {
        let slot = waiters.slot(self.first).filter(|slot| slot.is_before(mark))?;
        let (first, after) = (self.first, slot.after);
        self.first = after;
        match waiters.slot_mut(after) {
            Some(slot) => slot.before = NONE,
            None => self.last = NONE,
        }
        waiters.release(first)
    }

    /// The first waiter, and the number that it waits for.
    pub(crate) fn first(&self, waiters: &Waiters) -> Option<(WaiterId, u64)> {
        let id = waiters.id(self.first)?;
        Some((id, waiters.get(id)?.value))
    }
}
