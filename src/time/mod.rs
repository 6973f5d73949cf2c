//! Time: a clock that never goes back, the wall clock, and waiting.
//!
//! [`Instant`]s count from the boot of the host, without the time for which the domain was suspended. What waits for one waits in the executor's main loop, which looks at the
//! timers in each turn, also when other tasks are always ready; the timer of the virtual CPU is set only when the domain
//! goes idle and its earliest deadline has changed. Xen may fire it up to 50 µs late, and an idle domain needs some time to
//! wake up; a sleep is never too short.
//!
//! ```no_run
//! # async fn example() {
//! use core::time::Duration;
//! use domu::time;
//!
//! time::sleep(Duration::from_millis(10)).await;
//! match time::timeout(Duration::from_secs(1), core::future::pending::<()>()).await {
//!     Ok(()) => unreachable!(),
//!     Err(time::Elapsed) => log::info!("a second has passed"),
//! }
//! # }
//! ```

#![forbid(unsafe_code)]

mod clock;
mod interval;
mod sleep;
mod timers;
mod token_bucket;

use core::fmt;
use core::ops::{Add, Sub};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

pub(crate) use clock::system_time_ns;
pub use interval::{Interval, MissedTickBehavior, interval};
pub use sleep::{Elapsed, Sleep, sleep, sleep_until, sleep_until_wall_clock, timeout};
pub(crate) use timers::TIMERS;
pub(crate) use token_bucket::TokenBucket;

use crate::hypercall;
use crate::local::domain_local;
use crate::local::{self, Instance};
use crate::shared::INFO;
use crate::shared::SharedInfo;

domain_local! {
    /// The monotonic clock.
    pub(crate) static CLOCK: Clock = Clock::new();
}

/// A moment on the monotonic clock, in nanoseconds since the host booted. While the domain is suspended the clock stands, and
/// on another host it goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Instant(u64);

impl Instant {
    pub(crate) const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the host booted.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// What has passed since an earlier moment; zero if it is not earlier.
    #[must_use]
    pub const fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// What has passed since this moment.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        now().duration_since(self)
    }
}

/// A moment too far ahead to be counted is the last one: some 584 years after the boot of the host.
impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// As [`Instant::duration_since`].
impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// Now, on a clock that never goes back. Zero outside of a domain.
///
/// Costs no exit, unless the host's time stamp counter is not reliable and Xen emulates it.
#[doc(alias = "system_time")]
#[must_use]
#[inline(never)]
pub fn now() -> Instant {
    let Some(state) = local::current() else {
        rare();
        return Instant(0);
    };
    try_now(state).unwrap_or_else(|| now_by_loop(state))
}

/// What makes a domain's clock of its host's.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The last moment that the domain was told.
    last: AtomicU64,
    /// What is added to system time, in nanoseconds; it wraps. Zero until the domain is suspended.
    offset: AtomicU64,
}

impl Clock {
    const fn new() -> Self {
        Self { last: AtomicU64::new(0), offset: AtomicU64::new(0) }
    }

    /// The system time of a moment. One that the host's clock has not come to, or that lies before its boot, is the nearest.
    pub(crate) fn system_time_of(&self, instant: Instant) -> u64 {
        let offset = self.offset.load(Ordering::Relaxed).cast_signed();
        instant.0.saturating_add_signed(offset.saturating_neg())
    }

    /// Goes on at a moment: that in which the domain was suspended was its last, and this is the next, wherever it is.
    pub(crate) fn resume(&self, info: &SharedInfo, suspended: Instant) {
        // Without a time record the offset stays: `now` returns the last moment until there is one.
        if let Some(system_time) = system_time_ns(info) {
            self.offset.store(suspended.0.wrapping_sub(system_time), Ordering::Relaxed);
        }
    }
}

/// Now, in a domain.
#[inline(never)]
pub(crate) fn now_in(state: Instance) -> Instant {
    try_now(state).unwrap_or_else(|| now_by_loop(state))
}

/// Now, by the usual path: no loop, and 64-bit operands. `None` leaves the answer to [`now_by_loop`].
///
/// Inlined in two functions, which are not inlined themselves.
#[inline(always)]
fn try_now(state: Instance) -> Option<Instant> {
    let clock = CLOCK.of(state);
    let now = clock::try_system_time_ns(INFO.of(state))?.wrapping_add(clock.offset.load(Ordering::Relaxed));
    if now < clock.last.load(Ordering::Relaxed) {
        return None;
    }
    // One vCPU: nothing runs between the load and this store, as interrupts are on during a halt alone and the crash path does
    // not come back. On the host, each domain has a state and a thread of its own. A second vCPU would need `fetch_max`.
    clock.last.store(now, Ordering::Relaxed);
    Some(Instant(now))
}

/// Marks a branch that the compiler is to place out of the way.
#[cold]
#[inline(always)]
const fn rare() {}

/// Now, for every time record: waits until Xen has written it, and computes in 128 bits. The last moment if Xen never finishes
/// writing.
#[cold]
#[inline(never)]
fn now_by_loop(state: Instance) -> Instant {
    let clock = CLOCK.of(state);
    let Some(system_time) = system_time_ns(INFO.of(state)) else {
        return Instant(clock.last.load(Ordering::Relaxed));
    };
    let now = system_time.wrapping_add(clock.offset.load(Ordering::Relaxed));
    Instant(clock.last.fetch_max(now, Ordering::Relaxed).max(now))
}

/// The wall clock: what has passed since the beginning of 1970 in UTC, as dom0 has set it; zero outside of a domain.
///
/// It is read anew each time and goes wherever dom0 puts it, back too. It is zero if Xen never finishes an update of it.
#[doc(alias = "wc_sec")]
#[must_use]
pub fn wall_clock() -> Duration {
    let Some(state) = local::current() else { return Duration::ZERO };
    // Xen gives the wall clock to domains that have said how they are interrupted.
    // Should it refuse, it is asked again before a halt, and the domain ends if it refuses then.
    let _ = hypercall::enable_callback(state);
    let nanoseconds = clock::wall_clock_ns(INFO.of(state)).unwrap_or(0);
    let seconds = u64::try_from(nanoseconds / 1_000_000_000).unwrap_or(u64::MAX);
    Duration::new(seconds, (nanoseconds % 1_000_000_000) as u32)
}
