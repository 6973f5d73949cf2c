//! When the backend may wake the domain for lines of the log that wait for room in the ring.
//!
//! No task waits for that room: at the end of each turn the main loop moves up what there is room for, and lets the next event
//! in. A backend that sends events without end and reads nothing would have a turn for each of them, so the gate is closed for
//! a while after some.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::eventchn::{Pace, Port};
use crate::local::Instance;
use crate::time::{self, Instant};

/// The gate. On one virtual CPU nobody else uses it meanwhile, so its parts have no order.
pub(super) struct Gate {
    /// Until when it is closed, in nanoseconds; zero if it is open.
    closed: AtomicU64,
    /// How many events there had been when it was opened the last time.
    events: AtomicU64,
    /// How far the backend had read then, as far as the domain had looked, as its index.
    read: AtomicU32,
}

impl Gate {
    pub(super) const fn new() -> Self {
        Self { closed: AtomicU64::new(0), events: AtomicU64::new(0), read: AtomicU32::new(0) }
    }

    /// Until when it is closed.
    pub(super) fn closed(&self) -> Option<Instant> {
        let until = self.closed.load(Ordering::Relaxed);
        (until != 0).then(|| Instant::from_nanos(until))
    }

    /// Nobody waits behind it any more.
    pub(super) fn leave(&self) {
        self.closed.store(0, Ordering::Relaxed);
    }

    /// Lets the next event in, if it is time for that. To be done before the ring is looked at: then an event that comes later
    /// wakes the domain. `read` is how far the
    /// backend had read at the last look: what an event has brought counts in the next turn.
    pub(super) fn open(&self, state: Instance, port: &Port, pace: &Pace, read: u32) {
        if self.closed().is_some_and(|until| time::now_in(state) < until) {
            return;
        }
        self.leave();
        let events = port.count();
        let came = self.events.swap(events, Ordering::Relaxed) != events;
        if self.read.swap(read, Ordering::Relaxed) != read {
            pace.expected();
        } else if came && let Some(until) = pace.rest(state) {
            // One more may come, and be delivered, until then.
            self.closed.store(until.as_nanos(), Ordering::Relaxed);
        }
    }
}
