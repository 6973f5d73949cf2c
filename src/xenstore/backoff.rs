//! Back-off before a connection to a server that breaks its connections.

use core::time::Duration;

use crate::time::Instant;

/// Pause before the second connection in a row; each further one is twice as long. The first has none.
const FIRST: Duration = Duration::from_millis(1);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(1);
/// How long a connection must have lasted when it brings a useful reply, to end the back-off.
const STABLE: Duration = Duration::from_secs(1);

/// Exponential back-off. It costs nothing, and no look at the clock, until a connection breaks.
#[derive(Default, Debug)]
pub(super) struct Backoff {
    /// Connections that broke in a row.
    failures: u32,
    /// End of the pause, until it was seen to have passed.
    until: Option<Instant>,
    /// From when on a useful reply ends the back-off.
    stable_at: Option<Instant>,
}

impl Backoff {
    /// The connection has broken.
    pub(super) fn broken(&mut self, now: Instant) {
        let doublings = self.failures.min(16).checked_sub(1);
        let pause = doublings.map_or(Duration::ZERO, |doublings| (FIRST * (1 << doublings)).min(LONGEST));
        self.until = (!pause.is_zero()).then_some(now + pause);
        self.stable_at = Some(now + pause + STABLE);
        self.failures = self.failures.saturating_add(1);
    }

    /// The end of the pause, if it lies ahead.
    pub(super) fn pause(&mut self, now: impl FnOnce() -> Instant) -> Option<Instant> {
        self.until = self.until.filter(|&until| now() < until);
        self.until
    }

    /// The end of the pause, which may have passed.
    pub(super) const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The server has answered a request.
    pub(super) fn replied(&mut self, now: impl FnOnce() -> Instant) {
        if self.stable_at.is_some_and(|stable_at| now() >= stable_at) {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Breaks a connection, and returns the pause that follows.
    fn pause(backoff: &mut Backoff, now: Instant) -> Duration {
        backoff.broken(now);
        backoff.pause(|| now).map_or(Duration::ZERO, |until| until - now)
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::from_nanos(77));
        for milliseconds in [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000, 1000] {
            let pause = pause(&mut backoff, now);
            assert_eq!(pause, milliseconds * MS);
            now = now + pause;
            assert_eq!(backoff.pause(|| now), None);
        }
        for _ in 0..100 {
            assert_eq!(pause(&mut backoff, now), LONGEST);
        }
    }

    #[test]
    fn reply_on_a_stable_connection_ends_the_back_off() {
        let (mut backoff, now) = (Backoff::default(), Instant::from_nanos(77));
        for _ in 0..5 {
            backoff.broken(now);
        }
        // A reply that comes too early, and time without a reply, change nothing.
        backoff.replied(|| now + (8 * MS + STABLE - Duration::from_nanos(1)));
        assert_eq!(pause(&mut backoff, now + 3600 * STABLE), 16 * MS);
        backoff.replied(|| now + 3600 * STABLE + 16 * MS + STABLE);
        assert_eq!(pause(&mut backoff, now + 7200 * STABLE), Duration::ZERO);
    }

    #[test]
    fn clock_is_not_read_before_a_connection_breaks() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(|| unreachable!()), None);
        backoff.replied(|| unreachable!());
    }
}
