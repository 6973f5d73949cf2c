//! Token bucket: a burst, and then one in each interval.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use super::Instant;
use crate::local::Instance;

/// Token bucket on the monotonic clock, full at first.
///
/// It keeps one number, the moment at which it is full again. A token that is lost or gained in a race of two CPUs does no harm,
/// so that accesses are relaxed.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    /// Nanoseconds from one token to the next.
    interval: u64,
    /// Nanoseconds in which an empty bucket is filled.
    span: u64,
    full_at: AtomicU64,
}

impl TokenBucket {
    /// Bucket of `burst` tokens, which gets one in each interval.
    pub(crate) const fn new(burst: u32, interval: Duration) -> Self {
        let interval = interval.as_nanos() as u64;
        Self { interval, span: interval * burst as u64, full_at: AtomicU64::new(0) }
    }

    /// Takes a token, or returns when there is one again.
    pub(crate) fn take(&self, now: Instant) -> Result<(), Instant> {
        let full_at = self.full_at.load(Ordering::Relaxed).max(now.as_nanos()).saturating_add(self.interval);
        let latest = now + Duration::from_nanos(self.span);
        if full_at > latest.as_nanos() {
            return Err(now + Duration::from_nanos(full_at - latest.as_nanos()));
        }
        self.full_at.store(full_at, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a token, once there is one.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped before it is ready has taken none.
    pub(crate) async fn wait(&self, state: Instance) {
        while let Err(until) = self.take(super::now_in(state)) {
            super::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn burst_passes_and_then_one_in_each_interval() {
        let bucket = TokenBucket::new(3, SECOND);
        let start = Instant::from_nanos(1_000_000_007);
        for _ in 0..3 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        assert_eq!(bucket.take(start), Err(start + SECOND));
        assert_eq!(bucket.take(start + SECOND / 4), Err(start + SECOND));
        assert_eq!(bucket.take(start + SECOND), Ok(()));
        assert_eq!(bucket.take(start + SECOND), Err(start + 2 * SECOND));
        // A pause fills it again, and no further.
        for _ in 0..3 {
            assert_eq!(bucket.take(start + 3600 * SECOND), Ok(()));
        }
        assert!(bucket.take(start + 3600 * SECOND).is_err());
    }

    #[test]
    fn end_of_the_clock_overflows_nothing() {
        let bucket = TokenBucket::new(2, SECOND);
        for _ in 0..10 {
            let _ = bucket.take(Instant::from_nanos(u64::MAX));
        }
    }
}
