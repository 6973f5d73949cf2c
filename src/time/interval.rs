//! Periodic ticks, and what becomes of those that were missed.

use core::time::Duration;

use super::{Instant, now, sleep_until};
use crate::executor::yield_now;

/// Ticks once per period, the first time after one period. A period of zero becomes one nanosecond.
///
/// A tick is missed when the task, or the whole domain, does not run when it is due: another task does not yield, or the
/// toolstack pauses the domain, which the monotonic clock does not stop for. [`MissedTickBehavior`] says what then follows. No
/// tick is missed by a [suspend](crate::lifecycle::suspend), during which the monotonic clock stands still.
///
/// ```no_run
/// # async fn example() {
/// use core::time::Duration;
/// use domu::time::{self, MissedTickBehavior};
///
/// let mut seconds = time::interval(Duration::from_secs(1));
/// seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
/// loop {
///     seconds.tick().await;
///     log::info!("a second has passed");
/// }
/// # }
/// ```
#[doc(alias = "ticker")]
#[doc(alias = "set_timer_op")]
#[must_use]
pub fn interval(period: Duration) -> Interval {
    let period = period.max(Duration::from_nanos(1));
    Interval { next: now() + period, period, behavior: MissedTickBehavior::default(), has_yielded: false }
}

/// Behavior of an [`Interval`] after missed ticks.
///
/// Each of the three gives the tick that is due at once, and differs in the ticks after it. With a period of 100 ms and ticks
/// due at 100, 200, ... 700 ms, of which the first could be taken only at 430 ms:
///
/// | behavior | next ticks are taken at |
/// |---|---|
/// | [`Burst`](Self::Burst) | 430 (three more times), 500, 600, 700 ms |
/// | [`Delay`](Self::Delay) | 530, 630, 730 ms |
/// | [`Skip`](Self::Skip) | 500, 600, 700 ms |
///
/// The default is [`Skip`](Self::Skip), as a domain may be paused for hours: afterwards one tick stands for all that were
/// missed, and the later ones stay aligned with the start. Tokio, whose names and semantics these are, has `Burst`.
#[doc(alias = "catch_up")]
#[doc(alias = "coalesce")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum MissedTickBehavior {
    /// Ticks without a pause until all missed ticks are made up for, then as before.
    ///
    /// No tick is lost: their number is the time divided by the period. Each takes a turn of the executor, so other tasks run
    /// in between. An hour's pause of a domain with a period of 100 ms is followed by 36,000 ticks.
    Burst,
    /// Ticks one period after the late tick, and in periods from then on.
    ///
    /// Ticks are never closer than a period, and are no longer multiples of the period from the start. A tick is late if it
    /// is taken more than 5 ms, or a whole period, after it was due: a smaller delay, which any wake-up has, shifts nothing.
    Delay,
    /// Skips missed ticks, and ticks at the next multiple of the period from the start.
    ///
    /// The tick after a late one may follow it by less than a period.
    #[default]
    Skip,
}

/// A delay up to this is a wake-up's, and does not shift later ticks.
const TOLERANCE_NS: u64 = 5_000_000;

impl MissedTickBehavior {
    /// When the next tick is due, after one that was due at `tick` was taken at `now`.
    fn next(self, tick: Instant, now: Instant, period: Duration) -> Instant {
        let late = now.duration_since(tick);
        match self {
            Self::Delay if late > Duration::from_nanos(TOLERANCE_NS) || late >= period => now + period,
            // A tick that is late by less than a period is followed by the usual one.
            Self::Skip if late >= period => {
                // The remainder is less than `late`, which is a `u64`.
                let since_multiple = (late.as_nanos() % period.as_nanos()) as u64;
                Instant(now.0 - since_multiple) + period
            }
            _ => tick + period,
        }
    }
}

/// Periodic ticks: see [`interval`].
#[derive(Debug)]
pub struct Interval {
    next: Instant,
    period: Duration,
    behavior: MissedTickBehavior,
    /// The tick that is due has let other tasks run.
    has_yielded: bool,
}

impl Interval {
    /// Waits for the next tick and returns the moment at which it was due, on the monotonic clock.
    ///
    /// A tick that is taken late is followed as [`MissedTickBehavior`] says. By the moments that two calls return, the caller
    /// sees how many periods lie between them. A tick that is due already lets other tasks run first.
    ///
    /// # Cancel safety
    ///
    /// A dropped future takes no tick: the next call returns it.
    pub async fn tick(&mut self) -> Instant {
        let tick = self.next;
        // Once a tick, so that a caller who polls this beside a future that is always ready gets his tick too.
        if now() >= tick && !core::mem::replace(&mut self.has_yielded, true) {
            yield_now().await;
        }
        sleep_until(tick).await;
        self.has_yielded = false;
        self.next = self.behavior.next(tick, now(), self.period);
        tick
    }

    /// Sets what follows missed ticks, from the next tick on.
    pub const fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.behavior = behavior;
    }

    /// Behavior after missed ticks: [`MissedTickBehavior::Skip`] unless set.
    #[must_use]
    pub const fn missed_tick_behavior(&self) -> MissedTickBehavior {
        self.behavior
    }

    /// The time between two ticks.
    #[must_use]
    pub const fn period(&self) -> Duration {
        self.period
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::executor::spawn;
    use crate::sim::Guest;
    use crate::time::sleep;

    const MS: u64 = 1_000_000;
    const BEHAVIORS: [MissedTickBehavior; 3] =
        [MissedTickBehavior::Burst, MissedTickBehavior::Delay, MissedTickBehavior::Skip];

    /// Due and taken, in nanoseconds from the start.
    type Tick = (u64, u64);

    /// The ticks of a task that works after each tick, found by walking along the multiples of the period.
    fn model(behavior: MissedTickBehavior, period: u64, work: &[u64]) -> Vec<Tick> {
        let (mut now, mut due, mut ticks) = (0, period, Vec::new());
        for work in work {
            now = due.max(now);
            ticks.push((due, now));
            let late = now - due;
            match behavior {
                MissedTickBehavior::Burst => due += period,
                MissedTickBehavior::Delay if late > 5 * MS || late >= period => due = now + period,
                MissedTickBehavior::Delay => due += period,
                MissedTickBehavior::Skip => {
                    while due <= now {
                        due += period;
                    }
                }
            }
            now += work;
        }
        ticks
    }

    /// The ticks of that task on the virtual clock, which only sleeps and halts move.
    fn taken(behavior: MissedTickBehavior, period: u64, work: Vec<u64>) -> Vec<Tick> {
        let ticks = Rc::new(RefCell::new(Vec::new()));
        let its = Rc::clone(&ticks);
        let guest = Guest::new().clock_look(Duration::ZERO);
        let report = guest.run(async move |_| {
            let start = now();
            let since = |moment: Instant| moment.as_nanos() - start.as_nanos();
            let mut interval = interval(Duration::from_nanos(period));
            interval.set_missed_tick_behavior(behavior);
            for work in work {
                let due = interval.tick().await;
                its.borrow_mut().push((since(due), since(now())));
                sleep(Duration::from_nanos(work)).await;
            }
        });
        report.powered_off();
        ticks.take()
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        #[test]
        #[cfg_attr(miri, ignore = "boots a domain for each case, which takes Miri many minutes")]
        fn ticks_are_those_of_the_model(
            period in prop_oneof![1..100_u64, 1..20 * MS, Just(5 * MS), Just(100 * MS)],
            // Work in hundredths of a period: less than one, some, and many.
            work in prop::collection::vec(prop_oneof![0..100_u64, 0..1000_u64, Just(100), Just(200)], 1..20),
        ) {
            let work: Vec<u64> = work.into_iter().map(|hundredths| period * hundredths / 100).collect();
            for behavior in BEHAVIORS {
                prop_assert_eq!(taken(behavior, period, work.clone()), model(behavior, period, &work), "{:?}", behavior);
            }
        }

        #[test]
        fn next_tick_of_any_moments_is_ahead(tick: u64, late: u64, period in 1..=u64::MAX, shift in 0..64_u32) {
            let (period, now) = (period >> shift, tick.saturating_add(late));
            let period = period.max(1);
            for behavior in BEHAVIORS {
                let next = behavior.next(Instant(tick), Instant(now), Duration::from_nanos(period)).0;
                let (tick, now, period) = (u128::from(tick), u128::from(now), u128::from(period));
                let late = now - tick;
                let exact = match behavior {
                    MissedTickBehavior::Delay if late > u128::from(5 * MS) || late >= period => now + period,
                    MissedTickBehavior::Skip => tick + period * (late / period + 1),
                    _ => tick + period,
                };
                prop_assert_eq!(u128::from(next), exact.min(u64::MAX.into()), "{:?}", behavior);
            }
        }
    }

    #[test]
    fn documented_example_is_true() {
        // The first tick is taken 330 ms late, then the task does nothing else.
        let after = |behavior, count| {
            let (mut due, mut now, mut ticks) = (Instant(100 * MS), Instant(430 * MS), Vec::new());
            for _ in 0..count {
                due = MissedTickBehavior::next(behavior, due, now, Duration::from_millis(100));
                now = due.max(now);
                ticks.push(now.0 / MS);
            }
            ticks
        };
        assert_eq!(after(MissedTickBehavior::Burst, 6), [430, 430, 430, 500, 600, 700]);
        assert_eq!(after(MissedTickBehavior::Delay, 3), [530, 630, 730]);
        assert_eq!(after(MissedTickBehavior::Skip, 3), [500, 600, 700]);
        assert_eq!(MissedTickBehavior::default(), MissedTickBehavior::Skip);
    }

    #[test]
    fn periods_and_delays_of_centuries_saturate() {
        const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);
        let late = Instant(0) + 5 * CENTURY;
        for period in [Duration::from_nanos(1), CENTURY, Duration::MAX] {
            for behavior in BEHAVIORS {
                let next = behavior.next(Instant(0), late, period);
                assert!(next > late || behavior == MissedTickBehavior::Burst, "{behavior:?} {period:?}");
                assert_eq!(behavior.next(Instant(u64::MAX), Instant(u64::MAX), period), Instant(u64::MAX));
            }
        }
        assert_eq!(MissedTickBehavior::Skip.next(Instant(0), late, Duration::from_nanos(1)), Instant(late.0 + 1));
        assert_eq!(MissedTickBehavior::Skip.next(Instant(7), late, CENTURY), Instant(7) + 5 * CENTURY);
    }

    #[test]
    #[cfg_attr(miri, ignore = "spins on the clock, which takes Miri many minutes")]
    fn starved_interval_ticks_once_by_default() {
        let report = Guest::new().clock_look(Duration::from_millis(1)).run(async |_| {
            let ticks = Rc::new(RefCell::new(Vec::new()));
            let its = Rc::clone(&ticks);
            let ticking = spawn(async move {
                let mut interval = interval(Duration::from_millis(100));
                loop {
                    let tick = interval.tick().await;
                    its.borrow_mut().push(tick);
                }
            });
            sleep(Duration::from_millis(250)).await;
            let before = ticks.borrow().len();
            // Another task does not yield for 6.8 s, in which 68 ticks are due.
            let start = now();
            while start.elapsed() < Duration::from_millis(6800) {}
            sleep(Duration::from_millis(50)).await;
            let missed = ticks.borrow().len() - before;
            assert!((1..=2).contains(&missed), "{missed} ticks");
            drop(ticking);
        });
        report.powered_off();
    }

    #[test]
    fn due_tick_beside_a_ready_future_is_taken() {
        let report = Guest::new().run(async |_| {
            let mut interval = interval(Duration::from_millis(1));
            sleep(Duration::from_millis(10)).await;
            let mut polls = 0;
            // Each round drops the tick that is not ready yet.
            while super::super::timeout(Duration::ZERO, interval.tick()).await.is_err() {
                polls += 1;
                assert!(polls < 10, "the tick that is due never comes");
            }
            assert_eq!(polls, 1, "it lets others run once");
        });
        report.powered_off();
    }
}
