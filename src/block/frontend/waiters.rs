//! Futures that wait for room, first come, first served.

use alloc::collections::VecDeque;
use core::task::Waker;

/// Tickets in order, each with its waker.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    queue: VecDeque<(u64, Waker)>,
    next: u64,
}

impl Waiters {
    /// Whether a future with this ticket, or without one, is the next.
    pub(super) fn is_next(&self, ticket: Option<u64>) -> bool {
        self.queue.front().is_none_or(|(first, _)| Some(*first) == ticket)
    }

    /// Has a future wait, at its place or behind all others.
    pub(super) fn wait(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
        let own = ticket.and_then(|ticket| self.queue.iter_mut().find(|(other, _)| *other == ticket));
        if let Some((_, kept)) = own {
            kept.clone_from(waker);
            return;
        }
        *ticket = Some(self.next);
        self.queue.push_back((self.next, waker.clone()));
        self.next += 1;
    }

    /// Ends a future's wait. The next may be woken then.
    pub(super) fn leave(&mut self, ticket: &mut Option<u64>) {
        if let Some(ticket) = ticket.take() {
            self.queue.retain(|(other, _)| *other != ticket);
        }
    }

    /// The waker of the next.
    pub(super) fn first(&self) -> Option<Waker> {
        self.queue.front().map(|(_, waker)| waker.clone())
    }

    /// The wakers of all. They stay in the queue.
    pub(super) fn all(&self) -> impl Iterator<Item = Waker> {
        self.queue.iter().map(|(_, waker)| waker.clone())
    }
}
