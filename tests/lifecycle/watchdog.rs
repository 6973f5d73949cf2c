//! The watchdog.

use std::time::Duration;

use domu::lifecycle::{Reason, Watchdog, WatchdogError};
use domu::sim::abi::errno::Errno;
use domu::sim::abi::xen::Hypercall;
use domu::sim::{End, Guest};
use domu::time;

use super::{MS, SECOND, elapsed};

#[test]
fn a_domain_that_does_not_feed_its_watchdog_ends_in_time() {
    let report = Guest::new().run(async |_| -> domu::Result {
        let _watchdog = Watchdog::start(5 * SECOND)?;
        time::sleep(100 * SECOND).await;
        Ok(())
    });
    assert_eq!(report.end, End::Shutdown(Reason::Watchdog));
    assert_eq!(elapsed(&report).as_secs(), 5);
}

#[cfg(not(miri))]
#[test]
fn a_domain_that_computes_for_ever_ends_too() {
    let report = Guest::new().run(async |_| -> domu::Result {
        // A part of a second is a whole one.
        let _watchdog = Watchdog::start(MS)?;
        loop {
            let _ = time::now();
        }
    });
    assert_eq!((report.end, elapsed(&report).as_secs()), (End::Shutdown(Reason::Watchdog), 1));
}

#[cfg(not(miri))]
#[test]
fn a_watchdog_that_is_fed_or_dropped_does_nothing() {
    let report = Guest::new().run(async |_| -> domu::Result {
        let watchdog = Watchdog::start(2 * SECOND)?;
        for _ in 0..10 {
            time::sleep(3 * SECOND / 2).await;
            watchdog.feed()?;
        }
        drop(watchdog);
        time::sleep(100 * SECOND).await;
        Ok(())
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
}

#[cfg(not(miri))]
#[test]
fn there_are_two_and_a_third_is_an_error() {
    let report = Guest::new().run(async |_| -> domu::Result {
        for _ in 0..3 {
            let one = Watchdog::start(5 * SECOND)?;
            let other = Watchdog::start(7 * SECOND)?;
            assert_eq!(Watchdog::start(SECOND).err(), Some(WatchdogError::TooMany));
            time::sleep(4 * SECOND).await;
            one.feed()?;
            time::sleep(2 * SECOND).await;
            drop(other);
            time::sleep(2 * SECOND).await;
            one.feed()?;
        }
        let _other = Watchdog::start(2 * SECOND)?;
        let one = Watchdog::start(SECOND)?;
        one.feed()?;
        time::sleep(10 * SECOND).await;
        Ok(())
    });
    assert_eq!(report.end, End::Shutdown(Reason::Watchdog), "{}", report.debug_text());
    assert_eq!(elapsed(&report).as_secs(), 25, "the earlier one counts");
}

#[cfg(not(miri))]
#[test]
fn times_that_are_none_and_refusals_are_errors() {
    let report = Guest::new().run(async |_| {
        for none in [Duration::ZERO, SECOND * u32::MAX + MS, Duration::MAX] {
            assert_eq!(Watchdog::start(none).err(), Some(WatchdogError::InvalidTime));
        }
        drop(Watchdog::start(SECOND * u32::MAX).unwrap());
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
    const WATCHDOG: u64 = 6;
    let mut calls = 0;
    let refused = Guest::new().fault(move |call, operation| {
        calls += u32::from(call == Hypercall::Sched && operation == WATCHDOG);
        (calls > 1 && operation == WATCHDOG).then_some(Errno::EPERM)
    });
    let report = refused.run(async |_| {
        let watchdog = Watchdog::start(SECOND).unwrap();
        assert_eq!(watchdog.feed(), Err(WatchdogError::Refused(Errno::EPERM)));
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
    assert_eq!(Watchdog::start(SECOND).err(), Some(WatchdogError::Refused(Errno::ESRCH)), "there is no domain here");
}
