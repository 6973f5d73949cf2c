//! Waiters in order of their deadlines.

use alloc::vec::Vec;
use core::task::Waker;

use super::waiters::{KEPT, Waiter, WaiterId, Waiters};

/// Waiters, each with a deadline: a binary heap of their slots. Equal deadlines are in order of arrival.
#[derive(Debug)]
pub(crate) struct Deadlines {
    waiters: Waiters,
    /// Slots. Each has a lower rank than those at twice its place and one or two more, and knows its place.
    heap: Vec<u32>,
}

impl Deadlines {
    /// No waiter.
    pub(crate) const fn new() -> Self {
        Self { waiters: Waiters::new(), heap: Vec::new() }
    }

    /// Registers a waiter: with the deadline that it has, if it is there already, else with this one. Sets its id, and returns the
    /// waker that was replaced.
    #[must_use = "the replaced waker is dropped after unlocking"]
    pub(crate) fn register(&mut self, id: &mut Option<WaiterId>, waiter: Waiter, deadline: u64) -> Option<Waker> {
        let waiter = match *id {
            Some(id) => match self.waiters.replace(id, waiter) {
                Ok(replaced) => return replaced,
                Err(waiter) => waiter,
            },
            None => waiter,
        };
        let new = self.waiters.insert(Some(waiter.waker), waiter.background, deadline);
        self.heap.push(new.slot);
        self.rise(self.heap.len() - 1, new.slot);
        *id = Some(new);
        None
    }

    /// Takes a waiter out, unless it has gone, and returns its waker.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn leave(&mut self, id: WaiterId) -> Option<Waker> {
        let place = self.waiters.get(id)?.before as usize;
        self.remove(place, id.slot)
    }

    /// Takes out the first waiter, if its deadline is not after `now`, and returns its id and waker.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn pop(&mut self, now: u64) -> Option<(WaiterId, Option<Waker>)> {
        self.first().filter(|deadline| *deadline <= now)?;
        let id = self.waiters.id(*self.heap.first()?)?;
        Some((id, self.remove(0, id.slot)))
    }

    /// The earliest deadline.
    pub(crate) fn first(&self) -> Option<u64> {
        self.waiters.slot(*self.heap.first()?).map(|slot| slot.value)
    }

    /// A waiter's deadline, unless it has gone.
    #[cfg(feature = "embassy-time")]
    pub(crate) fn deadline(&self, id: WaiterId) -> Option<u64> {
        self.waiters.get(id).map(|slot| slot.value)
    }

    /// Whether a waiter is there that is not in the background.
    pub(crate) const fn has_foreground(&self) -> bool {
        self.waiters.has_foreground()
    }

    /// Waiters.
    pub(crate) const fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Takes out the waiter in a slot, which is at this place of the heap.
    fn remove(&mut self, place: usize, slot: u32) -> Option<Waker> {
        let waker = self.waiters.release(slot);
        // The last one takes the place.
        if let Some(last) = self.heap.pop().filter(|last| *last != slot) {
            let place = self.rise(place, last);
            self.sink(place, last);
        }
        if self.heap.is_empty() && self.heap.capacity() > KEPT {
            self.heap = Vec::new();
        }
        waker
    }

    /// The rank of the slot at a place; above all ranks if there is none.
    fn rank(&self, place: usize) -> (u64, u64) {
        self.heap.get(place).and_then(|slot| self.waiters.slot(*slot)).map_or((u64::MAX, u64::MAX), |slot| slot.rank())
    }

    /// Puts a slot at a place.
    fn put(&mut self, place: usize, slot: u32) {
        if let (Some(entry), Some(of_waiter)) = (self.heap.get_mut(place), self.waiters.slot_mut(slot)) {
            *entry = slot;
            of_waiter.before = place as u32;
        }
    }

    /// Puts a slot at a place, or further to the front as its rank demands; returns where.
    fn rise(&mut self, mut place: usize, slot: u32) -> usize {
        self.put(place, slot);
        while let Some(parent) = place.checked_sub(1).map(|before| before / 2)
            && self.rank(place) < self.rank(parent)
        {
            self.put(place, self.heap[parent]);
            self.put(parent, slot);
            place = parent;
        }
        place
    }

    /// Moves a slot from its place to the back as its rank demands.
    fn sink(&mut self, mut place: usize, slot: u32) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let child = if self.rank(right) < self.rank(left) { right } else { left };
            if self.rank(child) >= self.rank(place) {
                break;
            }
            self.put(place, self.heap[child]);
            self.put(child, slot);
            place = child;
        }
    }
}
