//! Slots of waiters, which several lists share.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::task::Waker;

use super::background::is_background;
use crate::local::Instance;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// Slots whose memory is kept when the last waiter has left.
pub(super) const KEPT: usize = 32;

/// The sequence number of a free slot.
const FREE: u64 = u64::MAX;

/// A waiter that registers.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(super) waker: Waker,
    pub(super) background: bool,
}

impl Waiter {
    /// Clones a waker, which the caller does before it locks, and notes whether it waits in the background.
    pub(crate) fn new(domain: Instance, waker: &Waker) -> Self {
        Self::foreground(waker).mark(is_background(domain))
    }

    /// A waiter that counts also in background work.
    pub(crate) fn foreground(waker: &Waker) -> Self {
        Self { waker: waker.clone(), background: false }
    }

    /// Sets whether it waits in the background.
    pub(crate) fn mark(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// The waker that it was made of.
    #[cfg(feature = "embassy-time")]
    pub(crate) const fn waker(&self) -> &Waker {
        &self.waker
    }
}

/// Names a waiter, also after it has gone: no other waiter of the same [`Waiters`] ever has the same id. Later waiters have greater ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WaiterId {
    sequence: u64,
    pub(super) slot: u32,
}

impl WaiterId {
    /// Its number in the order of arrival.
    pub(crate) const fn sequence(self) -> u64 {
        self.sequence
    }
}

/// A point in the order of arrival: the waiters before it are those that were there when it was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(u64);

/// A place for a waiter.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Slot {
    sequence: u64,
    /// None once it was woken in its place, until it registers again, and before it has registered.
    pub(super) waker: Option<Waker>,
    /// A number that its list keeps: how much it waits for, or until when.
    pub(super) value: u64,
    /// The slot before it in its queue, or its place in a heap.
    pub(super) before: u32,
    /// The slot after it in its queue, or the next free one.
    pub(super) after: u32,
    background: bool,
}

impl Slot {
    /// Whether its waiter was there when a mark was taken.
    pub(super) const fn is_before(&self, mark: Mark) -> bool {
        self.sequence < mark.0
    }

    /// Its place in the order of values, and of arrival among equal ones.
    pub(super) const fn rank(&self) -> (u64, u64) {
        (self.value, self.sequence)
    }
}

/// Waiters of what one lock protects.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Waiters {
    slots: Vec<Slot>,
    /// The first free slot.
    free: u32,
    /// Slots in use, and those of them that are not in the background.
    used: u32,
    foreground: u32,
    next: u64,
}

impl Default for Waiters {
    fn default() -> Self {
        Self::new()
    }
}

impl Waiters {
    /// No waiter.
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), free: NONE, used: 0, foreground: 0, next: 0 }
    }

    /// Makes room for one more waiter.
    pub(crate) fn try_reserve(&mut self) -> Result<(), TryReserveError> {
        if self.free == NONE { self.slots.try_reserve(1) } else { Ok(()) }
    }

    /// Adds a waiter that has no waker yet.
    pub(crate) fn join(&mut self, background: bool) -> WaiterId {
        self.insert(None, background, 0)
    }

    /// Adds a waiter, which is in no list.
    pub(super) fn insert(&mut self, waker: Option<Waker>, background: bool, value: u64) -> WaiterId {
        let sequence = self.next;
        self.next += 1;
        self.used += 1;
        self.foreground += u32::from(!background);
        let new = Slot { sequence, waker, value, before: NONE, after: NONE, background };
        let slot = self.free;
        if let Some(place) = self.slots.get_mut(slot as usize) {
            self.free = place.after;
            *place = new;
            return WaiterId { sequence, slot };
        }
        self.slots.push(new);
        WaiterId { sequence, slot: self.slots.len() as u32 - 1 }
    }

    /// Sets a waiter's waker, and returns the one that it replaces. Fails if the waiter has gone.
    #[must_use = "the replaced waker is dropped after unlocking"]
    pub(crate) fn register(&mut self, id: WaiterId, waker: Waker) -> Result<Option<Waker>, Waker> {
        match self.get_mut(id) {
            Some(slot) => Ok(slot.waker.replace(waker)),
            None => Err(waker),
        }
    }

    /// The same, and sets whether it is in the background.
    pub(super) fn replace(&mut self, id: WaiterId, waiter: Waiter) -> Result<Option<Waker>, Waiter> {
        let Some(slot) = self.get_mut(id) else { return Err(waiter) };
        let replaced = slot.waker.replace(waiter.waker);
        let before = core::mem::replace(&mut slot.background, waiter.background);
        self.foreground = self.foreground + u32::from(before) - u32::from(waiter.background);
        Ok(replaced)
    }

    /// Takes a waiter's waker, to be woken after unlocking. The waiter stays.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn take_waker(&mut self, id: WaiterId) -> Option<Waker> {
        self.get_mut(id)?.waker.take()
    }

    /// Takes out a waiter that is in no list, and returns its waker, to be woken or dropped after unlocking.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) fn leave(&mut self, id: WaiterId) -> Option<Waker> {
        self.get(id)?;
        self.release(id.slot)
    }

    /// Frees a slot.
    pub(super) fn release(&mut self, slot: u32) -> Option<Waker> {
        let place = self.slots.get_mut(slot as usize)?;
        let waker = place.waker.take();
        place.sequence = FREE;
        place.after = self.free;
        self.free = slot;
        self.used -= 1;
        self.foreground -= u32::from(!place.background);
        if self.used == 0 && self.slots.capacity() > KEPT {
            (self.slots, self.free) = (Vec::new(), NONE);
        }
        waker
    }

    /// Takes all waiters out. Their ids name none from here on. The wakers are in no order, and woken or dropped after unlocking.
    #[must_use = "the wakers are woken or dropped after unlocking"]
    pub(crate) fn close(&mut self) -> Self {
        let next = self.next;
        core::mem::replace(self, Self { next, ..Self::new() })
    }

    /// The waiter with an id, unless it has gone.
    pub(super) fn get(&self, id: WaiterId) -> Option<&Slot> {
        self.slots.get(id.slot as usize).filter(|slot| slot.sequence == id.sequence)
    }

    fn get_mut(&mut self, id: WaiterId) -> Option<&mut Slot> {
        self.slots.get_mut(id.slot as usize).filter(|slot| slot.sequence == id.sequence)
    }

    /// A slot by its number.
    pub(super) fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    pub(super) fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)
    }

    /// The id of the waiter in a slot.
    pub(super) fn id(&self, slot: u32) -> Option<WaiterId> {
        self.slot(slot).map(|place| WaiterId { sequence: place.sequence, slot })
    }

    /// Whether a waiter is in the background, or has gone.
    pub(crate) fn is_background(&self, id: WaiterId) -> bool {
        self.get(id).is_none_or(|slot| slot.background)
    }

    /// Whether a waiter is there that is not in the background.
    pub(crate) const fn has_foreground(&self) -> bool {
        self.foreground > 0
    }

    /// Waiters in all lists.
    pub(crate) const fn len(&self) -> usize {
        self.used as usize
    }

    /// Slots, in use or free, and the room for them.
    #[cfg(test)]
    pub(super) const fn slots(&self) -> usize {
        self.slots.len()
    }

    #[cfg(test)]
    pub(super) const fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// Marks the end of the order of arrival.
    pub(crate) const fn mark(&self) -> Mark {
        Mark(self.next)
    }
}
