//! Time: what waits for a while goes on where it stood, and the wall clock is right, wherever the domain goes on.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use domu::executor::spawn;
use domu::lifecycle::{self, Reason, Watchdog};
use domu::sim::{End, Guest, Saved};
use domu::time;

use crate::{MS, SECOND};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn sleeps_go_on_and_nothing_comes_in_a_burst() {
    for saved in [
        Saved::Restored(HOUR),
        Saved::Cancelled(HOUR),
        Saved::Moved(HOUR, Duration::from_nanos(1)),
        Saved::Moved(SECOND, 10_000 * HOUR),
    ] {
        let guest = Guest::new().saves(move || saved);
        let report = guest.run(async |_| -> domu::Result {
            let ticks = Rc::new(RefCell::new(Vec::new()));
            let its = Rc::clone(&ticks);
            let mut interval = time::interval(SECOND);
            let start = time::now();
            let ticking = spawn(async move {
                loop {
                    interval.tick().await;
                    its.borrow_mut().push(start.elapsed());
                }
            });
            let sleeping = spawn(async move {
                time::sleep(10 * SECOND).await;
                start.elapsed()
            });
            let bounded = spawn(time::timeout(20 * SECOND, core::future::pending::<()>()));
            let far = spawn(async move {
                time::sleep(50 * HOUR).await;
                start.elapsed()
            });
            for _ in 0..3 {
                time::sleep(2500 * MS).await;
                let (before, wall) = (time::now(), time::wall_clock());
                lifecycle::suspend().await?;
                assert!(before.elapsed() < MS, "{saved:?}: {:?}", before.elapsed());
                let (Saved::Restored(pause) | Saved::Cancelled(pause) | Saved::Moved(pause, _)) = saved else {
                    unreachable!("{saved:?}")
                };
                let passed = time::wall_clock() - wall;
                assert!((pause..pause + MS).contains(&passed), "{saved:?}: {passed:?}");
            }
            let late = sleeping.await;
            assert!((10 * SECOND..10 * SECOND + MS).contains(&late), "{saved:?}: {late:?}");
            assert_eq!(bounded.await, Err(time::Elapsed));
            for (number, tick) in (1..).zip(&*ticks.borrow()) {
                assert!((number * SECOND..number * SECOND + MS).contains(tick), "{saved:?}: {ticks:?}");
            }
            assert_eq!(ticks.borrow().len(), 20);
            drop(ticking);
            let late = far.await;
            assert!((50 * HOUR..50 * HOUR + MS).contains(&late), "{saved:?}: {late:?}");
            Ok(())
        });
        report.powered_off();
    }
}

/// Xen counts on meanwhile, and nothing comes of it.
#[test]
fn a_watchdog_begins_anew_when_a_suspend_was_cancelled() {
    // The second would end the domain before it feeds it for the first time, if nobody else did.
    for (pause, fed, end) in
        [(HOUR, true, Reason::Poweroff), (MS, true, Reason::Poweroff), (HOUR, false, Reason::Watchdog)]
    {
        let report = Guest::new().saves(move || Saved::Cancelled(pause)).run(async |_| -> domu::Result {
            let (watchdog, stopped) = (Watchdog::start(3 * SECOND)?, Watchdog::start(3 * SECOND)?);
            drop(stopped);
            time::sleep(2 * SECOND).await;
            lifecycle::suspend().await?;
            // What was stopped is not begun again.
            drop(Watchdog::start(SECOND)?);
            for _ in 0..10 {
                time::sleep(2 * SECOND).await;
                if fed {
                    watchdog.feed()?;
                }
            }
            Ok(())
        });
        assert_eq!(report.end, End::Shutdown(end), "{pause:?} {fed}");
    }
}

#[test]
fn who_waits_for_the_wall_clock_looks_at_it_again() {
    for (saved, late) in [(Saved::Restored(HOUR), HOUR - 9 * SECOND), (Saved::Cancelled(2 * SECOND), Duration::ZERO)] {
        let report = Guest::new().saves(move || saved).run(async |_| -> domu::Result {
            let (moment, start) = (time::wall_clock() + 10 * SECOND, time::now());
            let waiting = spawn(time::sleep_until_wall_clock(moment));
            time::sleep(SECOND).await;
            lifecycle::suspend().await?;
            waiting.await;
            let past = time::wall_clock() - moment;
            assert!((late..late + 10 * MS).contains(&past), "{saved:?}: {past:?}");
            // The clock without the suspend.
            assert!(start.elapsed() < 11 * SECOND);
            Ok(())
        });
        report.powered_off();
    }
}

#[test]
fn the_wall_clock_may_be_set_and_a_moment_that_has_passed_is_over() {
    const SET: u64 = 2_000_000_000;
    let guest = Guest::new().after(HOUR / 2, |outside| outside.set_wall_clock(SET * 1_000_000_000));
    let report = guest.run(async |_| -> domu::Result {
        let start = time::now();
        time::sleep_until_wall_clock(Duration::ZERO).await;
        time::sleep_until_wall_clock(time::wall_clock()).await;
        assert!(start.elapsed() < MS);
        let waiting = time::timeout(200 * HOUR, time::sleep_until_wall_clock(Duration::from_secs(SET)));
        assert_eq!(waiting.await, Ok(()));
        assert!((HOUR / 2..HOUR / 2 + 61 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
        Ok(())
    });
    report.powered_off();
}
