//! The deadlines that somebody waits for, earliest first.

use alloc::collections::BTreeMap;
use core::task::Waker;

use spin::Mutex;

use super::Instant;
use crate::abi::event_channel::virq;
use crate::state::State;
use crate::{eventchn, hypercall};

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
#[derive(Debug, Default)]
pub(crate) struct Timers(Mutex<Inner>);

#[derive(Debug, Default)]
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
    /// What the timer of the virtual CPU is set to.
    programmed: Option<Instant>,
    /// The port of its interrupt, once it was needed.
    port: Option<u32>,
}

impl Inner {
    fn bind(&mut self, state: &State) -> Result<(), eventchn::Error> {
        if self.port.is_none() {
            state.delivery.choose();
            let port =
                hypercall::event_bind_virq(virq::TIMER).map_err(|errno| eventchn::Error::from_xen(errno, None))?;
            if let Err(error) = state.delivery.reserve(port) {
                // Closing what was just bound fails for no reason that could be acted on.
                let _ = hypercall::event_close(port);
                return Err(error);
            }
            state.delivery.unmask(&state.info, port);
            self.port = Some(port);
        }
        Ok(())
    }
}

/// No deadline further ahead is given to Xen, which fires those beyond 2^50 ns after 100 ms: half of that.
const FARTHEST_NS: u64 = 1 << 49;

/// So many waiters that keep nothing are never too many.
#[cfg(feature = "embassy-time")]
const FEW: usize = 64;

impl Timers {
    /// Whether somebody has them in hand.
    #[cfg(target_os = "none")]
    pub(crate) fn is_locked(&self) -> bool {
        self.0.is_locked()
    }

    /// Has a waker called at a moment; `key` is an earlier registration of the same waiter.
    pub(super) fn set(&self, deadline: Instant, key: Option<Key>, waker: &Waker) -> Key {
        // Wakers are the application's code: cloned and dropped while the timers are free.
        let waker = waker.clone();
        let mut inner = self.0.lock();
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
        let mut inner = self.0.lock();
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
        let waker = self.0.lock().deadlines.remove(&key);
        drop(waker);
    }

    /// Whether anybody waits.
    pub(crate) fn any(&self) -> bool {
        !self.0.lock().deadlines.is_empty()
    }

    /// The number of timers.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().deadlines.len()
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
        let (waiter, deadline) = inner.by_waker.pop_first()?;
        inner.deadlines.remove(&Key(deadline, waiter))
    }

    fn next_due(&self, now: Instant) -> Option<Waker> {
        let inner = &mut *self.0.lock();
        let earliest = inner.deadlines.first_entry().filter(|entry| entry.key().0 <= now)?;
        #[cfg(feature = "embassy-time")]
        inner.by_waker.remove(&earliest.key().1);
        Some(earliest.remove())
    }

    /// Sets the timer of the virtual CPU to the earliest deadline, or one of the crate's own, if that has changed. Says whether
    /// the domain may sleep: not if that deadline has come already, or if Xen refuses.
    pub(crate) fn program(&self, state: &State, now: Instant, own: Option<Instant>) -> bool {
        let mut inner = self.0.lock();
        let first = inner.deadlines.first_key_value().map(|(key, _)| key.0);
        let earliest = first.into_iter().chain(own).min();
        if earliest.is_some_and(|earliest| earliest <= now) {
            return false;
        }
        let wanted = earliest.map(|earliest| earliest.min(Instant(now.0.saturating_add(FARTHEST_NS))));
        // A far deadline is approached in steps: the one that is set stays until it has come.
        let is_step = wanted != earliest && inner.programmed.is_some();
        if wanted == inner.programmed || is_step {
            return true;
        }
        if inner.bind(state).is_err() {
            return false;
        }
        // Should Xen refuse, for whatever reason, the deadline is waited for awake.
        let set = hypercall::set_timer(wanted.map_or(0, |wanted| state.clock.system_time_of(wanted).max(1)));
        inner.programmed = wanted.filter(|_| set.is_ok());
        set.is_ok()
    }

    /// Wakes all who wait, as the domain was suspended: the wall clock has moved on without the other, and the timer of the
    /// virtual CPU may be another. Who still waits sets his timer again.
    pub(crate) fn look_again(&self) {
        self.fire_all(Instant(u64::MAX));
    }

    /// Forgets the timer of the virtual CPU, which is to be bound and set again.
    pub(crate) fn resume(&self) {
        let mut inner = self.0.lock();
        (inner.programmed, inner.port) = (None, None);
    }

    /// Binds the timer's port, the first that the domain binds, if that has not been done.
    pub(crate) fn bind(&self, state: &State) -> Result<(), eventchn::Error> {
        self.0.lock().bind(state)
    }

    /// Whether a port is that of the timer, which then has fired.
    pub(crate) fn owns(&self, port: u32) -> bool {
        let mut inner = self.0.lock();
        let fired = inner.port == Some(port);
        if fired {
            inner.programmed = None;
        }
        fired
    }
}
