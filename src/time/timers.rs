//! The deadlines that futures wait for, earliest first.

#[cfg(feature = "embassy-time")]
use alloc::collections::BTreeMap;
use core::task::Waker;

use crate::sync::Mutex;
use crate::sync::wait_list::{Deadlines, Waiter, WaiterId};

use super::Instant;
use crate::local::vcpu_local;

vcpu_local! {
    /// The deadlines of this virtual CPU.
    pub(crate) static TIMERS: Timers = Timers::new();
}

/// The addresses of a waker's data and functions, by which [`Waker::will_wake`] compares. They are no other waker's while this one
/// is kept.
#[cfg(feature = "embassy-time")]
type Addresses = (usize, usize);

#[cfg(feature = "embassy-time")]
fn addresses(waker: &Waker) -> Addresses {
    (waker.data().addr(), core::ptr::from_ref(waker.vtable()).addr())
}

/// The timers of a domain.
#[derive(Debug)]
pub(crate) struct Timers(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    deadlines: Deadlines,
    /// The waiters that keep no id, by their wakers.
    #[cfg(feature = "embassy-time")]
    by_waker: BTreeMap<Addresses, WaiterId>,
    /// How many of those had asked again in the turn after all of them were woken.
    #[cfg(feature = "embassy-time")]
    survivors: usize,
    /// All of them were woken in the last turn.
    #[cfg(feature = "embassy-time")]
    woken: bool,
}

impl Inner {
    const fn new() -> Self {
        Self {
            deadlines: Deadlines::new(),
            #[cfg(feature = "embassy-time")]
            by_waker: BTreeMap::new(),
            #[cfg(feature = "embassy-time")]
            survivors: 0,
            #[cfg(feature = "embassy-time")]
            woken: false,
        }
    }
}

/// So many waiters that keep nothing are never too many.
#[cfg(feature = "embassy-time")]
const FEW: usize = 64;

impl Timers {
    /// No deadline.
    const fn new() -> Self {
        Self(Mutex::new(Inner::new()))
    }

    /// Has a waiter woken at a moment. It keeps its id, which names its earlier registration in the next call.
    pub(super) fn set(&self, deadline: Instant, id: &mut Option<WaiterId>, waiter: Waiter) {
        let replaced = self.0.lock().deadlines.register(id, waiter, deadline.0);
        drop(replaced);
    }

    /// Has a waker called at a moment, in nanoseconds, for a waiter that keeps no key and does not tell when it is gone. The
    /// earliest moment that was asked for stands for all: who is woken asks again for what it still waits for. So a waker
    /// has one registration, however often it asks and whatever it has left behind; those of wakers that nobody waits with
    /// any more are given up when there are many: see [`give_up`](Self::give_up).
    #[cfg(feature = "embassy-time")]
    pub(crate) fn set_earliest(&self, deadline_ns: u64, waker: &Waker) {
        // Its clone may have other addresses, and is what is kept.
        let waiter = Waiter::foreground(waker);
        let addresses = addresses(waiter.waker());
        let mut inner = self.0.lock();
        let before = inner.by_waker.get(&addresses).copied();
        if before.and_then(|before| inner.deadlines.deadline(before)).is_some_and(|before| before <= deadline_ns) {
            drop(inner);
            return;
        }
        let replaced = before.and_then(|before| inner.deadlines.leave(before));
        let mut id = None;
        let none = inner.deadlines.register(&mut id, waiter, deadline_ns);
        inner.by_waker.extend(id.map(|id| (addresses, id)));
        drop(inner);
        drop((replaced, none));
    }

    /// Forgets a registration.
    pub(super) fn cancel(&self, id: WaiterId) {
        let waker = self.0.lock().deadlines.leave(id);
        drop(waker);
    }

    /// Whether there is a timer.
    pub(crate) fn any(&self) -> bool {
        self.0.lock().deadlines.len() > 0
    }

    /// Whether there is a timer that is not in the background.
    pub(crate) fn has_foreground(&self) -> bool {
        self.0.lock().deadlines.has_foreground()
    }

    /// Wakes whoever waits for a moment that has come: at most as many as wait now, as a waker may set a timer that is due.
    pub(crate) fn fire(&self, now: Instant) {
        self.fire_all(now);
        #[cfg(feature = "embassy-time")]
        self.give_up();
    }

    fn fire_all(&self, now: Instant) {
        let most = self.0.lock().deadlines.len();
        for _ in 0..most {
            let Some(waker) = self.next_due(now) else { break };
            waker.wake();
        }
    }

    /// Wakes all waiters that keep nothing, and forgets them, when there are more than twice as many as asked again the last
    /// time, and at least 64: a task that has ended keeps its memory as long as its waker is kept here. Whoever still waits
    /// asks again in the next turn. At least half of those that are woken have asked since, so each pays for two wakes.
    #[cfg(feature = "embassy-time")]
    fn give_up(&self) {
        let mut inner = self.0.lock();
        let waiters = inner.by_waker.len();
        if core::mem::take(&mut inner.woken) {
            inner.survivors = waiters;
        }
        if waiters <= FEW.max(2 * inner.survivors) {
            return;
        }
        inner.woken = true;
        drop(inner);
        for _ in 0..waiters {
            let Some(waker) = self.next_unkept() else { break };
            waker.wake();
        }
    }

    #[cfg(feature = "embassy-time")]
    fn next_unkept(&self) -> Option<Waker> {
        let inner = &mut *self.0.lock();
        let (_, id) = inner.by_waker.pop_first()?;
        inner.deadlines.leave(id)
    }

    fn next_due(&self, now: Instant) -> Option<Waker> {
        let inner = &mut *self.0.lock();
        let (_id, waker) = inner.deadlines.pop(now.0)?;
        #[cfg(feature = "embassy-time")]
        if let Some(addresses) = waker.as_ref().map(addresses).filter(|of| inner.by_waker.get(of) == Some(&_id)) {
            inner.by_waker.remove(&addresses);
        }
        waker
    }

    /// The earliest deadline.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.0.lock().deadlines.first().map(Instant)
    }

    /// Wakes all who wait, as the domain was suspended: the wall clock has moved on without the other. Who still waits sets his timer again.
    pub(crate) fn look_again(&self) {
        self.fire_all(Instant(u64::MAX));
    }
}
