//! The timers, in the main loop.

use super::{Source, Turn};
use crate::local::Instance;
use crate::time::{Instant, TIMERS};

/// Deadlines that have come wake their waiters.
pub(crate) struct DueTimers;

impl Source for DueTimers {
    #[inline]
    fn poll(&self, turn: &mut Turn) {
        let timers = TIMERS.of(turn.domain);
        // The clock is read only for a waiter.
        if timers.any() {
            timers.fire(turn.now());
        }
    }

    #[inline]
    fn next_deadline(&self, domain: Instance) -> Option<Instant> {
        TIMERS.of(domain).first()
    }

    #[inline]
    fn may_wake(&self, domain: Instance) -> bool {
        TIMERS.of(domain).has_foreground()
    }
}
