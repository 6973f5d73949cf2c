//! The deadlines that somebody waits for, earliest first.

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;

use crate::sync::Mutex;

use super::Instant;
use crate::local::vcpu_local;

vcpu_local! {
    /// The deadlines of this virtual CPU.
    pub(crate) static TIMERS: Timers = Timers::new();
}

/// A deadline and who waits for it, so that two may be for the same moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key(Instant, Waiter);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Waiter {
    /// One that keeps its key.
    Number(u64),
    /// One that keeps nothing: the addresses of its waker's data and functions, by which [`Waker::will_wake`] compares. They
    /// are nobody else's while the waker is kept here.
    #[cfg(feature = "embassy-time")]
    Waker(usize, usize),
}

/// The timers of a domain.
#[derive(Debug)]
pub(crate) struct Timers {
    inner: Mutex<Inner>,
    /// Timers of background tasks: they wake nothing that main waits for.
    background: AtomicUsize,
}

#[derive(Debug)]
struct Inner {
    deadlines: BTreeMap<Key, Waker>,
    next_id: u64,
    /// The deadline of each waiter that keeps nothing.
    #[cfg(feature = "embassy-time")]
    by_waker: BTreeMap<Waiter, Instant>,
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
            deadlines: BTreeMap::new(),
            next_id: 0,
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
        Self { inner: Mutex::new(Inner::new()), background: AtomicUsize::new(0) }
    }

    /// Has a waker called at a moment; `key` is an earlier registration of the same waiter.
    pub(super) fn set(&self, deadline: Instant, key: Option<Key>, waker: &Waker) -> Key {
        // Wakers are the application's code: cloned and dropped while the timers are free.
        let waker = waker.clone();
        let mut inner = self.inner.lock();
        let key = key.unwrap_or_else(|| {
            inner.next_id += 1;
            Key(deadline, Waiter::Number(inner.next_id))
        });
        let before = inner.deadlines.insert(key, waker);
        drop(inner);
        drop(before);
        key
    }

    /// Has a waker called at a moment, in nanoseconds, for a waiter that keeps no key and does not tell when it is gone. The
    /// earliest moment that was asked for stands for all: who is woken asks again for what it still waits for. So a waker
    /// has one registration, however often it asks and whatever it has left behind; those of wakers that nobody waits with
    /// any more are given up when there are many: see [`give_up`](Self::give_up).
    #[cfg(feature = "embassy-time")]
    pub(crate) fn set_earliest(&self, deadline_ns: u64, waker: &Waker) {
        let deadline = Instant(deadline_ns);
        // Its clone may have other addresses, and is what is kept.
        let waker = waker.clone();
        let waiter = Waiter::Waker(waker.data().addr(), core::ptr::from_ref(waker.vtable()).addr());
        let mut inner = self.inner.lock();
        if inner.by_waker.get(&waiter).is_some_and(|before| *before <= deadline) {
            drop(inner);
            return;
        }
        let before = inner.by_waker.insert(waiter, deadline);
        let before = before.and_then(|before| inner.deadlines.remove(&Key(before, waiter)));
        let same = inner.deadlines.insert(Key(deadline, waiter), waker);
        drop(inner);
        drop((before, same));
    }

    /// Forgets a registration.
    pub(super) fn cancel(&self, key: Key) {
        let waker = self.inner.lock().deadlines.remove(&key);
        drop(waker);
    }

    /// Whether anybody waits.
    pub(crate) fn any(&self) -> bool {
        !self.inner.lock().deadlines.is_empty()
    }

    /// Whether a timer may wake what main waits for.
    pub(crate) fn may_wake(&self) -> bool {
        self.inner.lock().deadlines.len() > self.background.load(Ordering::Relaxed)
    }

    /// Sets how many timers are those of background tasks.
    pub(crate) fn set_background(&self, timers: usize) {
        self.background.store(timers, Ordering::Relaxed);
    }

    /// Wakes whoever waits for a moment that has come: at most as many as wait now, as a waker may set a timer that is due.
    pub(crate) fn fire(&self, now: Instant) {
        self.fire_all(now);
        #[cfg(feature = "embassy-time")]
        self.give_up();
    }

    fn fire_all(&self, now: Instant) {
        let most = self.inner.lock().deadlines.len();
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
        let mut inner = self.inner.lock();
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
        let inner = &mut *self.inner.lock();
        let (waiter, deadline) = inner.by_waker.pop_first()?;
        inner.deadlines.remove(&Key(deadline, waiter))
    }

    fn next_due(&self, now: Instant) -> Option<Waker> {
        let inner = &mut *self.inner.lock();
        let earliest = inner.deadlines.first_entry().filter(|entry| entry.key().0 <= now)?;
        #[cfg(feature = "embassy-time")]
        inner.by_waker.remove(&earliest.key().1);
        Some(earliest.remove())
    }

    /// The earliest deadline.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.inner.lock().deadlines.first_key_value().map(|(key, _)| key.0)
    }

    /// Wakes all who wait, as the domain was suspended: the wall clock has moved on without the other. Who still waits sets his timer again.
    pub(crate) fn look_again(&self) {
        self.fire_all(Instant(u64::MAX));
    }
}
