//! Who waits for references: first come, first served.
//!
//! A waiter for many is not overtaken by one for few, or it might wait for ever; and nobody holds some while waiting for
//! more, so no two keep each other waiting.
//!
//! Who does not want to wait is not held up by those who do, however: the first of them may wait for what a peer never lets go
//! of. But what the first was woken for is left to it.

use alloc::collections::VecDeque;
use core::task::Waker;

use super::ErrorKind;
use crate::memory;

/// A future that waits.
#[derive(Debug)]
struct Waiter {
    ticket: u64,
    count: u32,
    /// None when it was woken, until it asks again.
    waker: Option<Waker>,
}

/// All that wait, in the order in which they came. Wakers are the application's code: they are cloned, woken and dropped by
/// the callers, when nothing is locked.
#[derive(Debug)]
pub(super) struct Waiters {
    queue: VecDeque<Waiter>,
    next_ticket: u64,
}

impl Waiters {
    pub(super) const fn new() -> Self {
        Self { queue: VecDeque::new(), next_ticket: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether all that are in front of one have gone. One that has none comes behind all.
    pub(super) fn is_first(&self, ticket: Option<u64>) -> bool {
        self.queue.front().map(|first| first.ticket) == ticket
    }

    /// Makes room for one more.
    pub(super) fn reserve(&mut self) -> Result<(), ErrorKind> {
        self.queue.try_reserve(1).map_err(|_| ErrorKind::Memory(memory::Error::OutOfMemory))
    }

    /// Comes last, into the room that was made, and takes a ticket.
    pub(super) fn join(&mut self, count: u32, waker: Waker) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.push_back(Waiter { ticket, count, waker: Some(waker) });
        ticket
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.queue.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    /// Sets whom to wake, and returns who was to be woken before.
    pub(super) fn update(&mut self, ticket: u64, waker: Waker) -> Option<Waker> {
        let index = self.position(ticket)?;
        self.queue.get_mut(index)?.waker.replace(waker)
    }

    /// Gives a ticket back, and returns who was to be woken.
    pub(super) fn leave(&mut self, ticket: u64) -> Option<Waker> {
        let index = self.position(ticket)?;
        self.queue.remove(index)?.waker
    }

    /// What is to be left for the first, if that is enough for it.
    pub(super) fn spoken_for(&self, available: u32) -> u32 {
        self.queue.front().map(|first| first.count).filter(|count| *count <= available).unwrap_or(0)
    }

    /// Who is to be woken: the first, if there are as many references as it wants, or will never be.
    pub(super) fn next(&mut self, available: u32, most: u32) -> Option<Waker> {
        let first = self.queue.front_mut()?;
        if first.count <= available || first.count > most { first.waker.take() } else { None }
    }
}
