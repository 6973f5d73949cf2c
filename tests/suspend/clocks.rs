//! Time: what waits for a while goes on where it stood, and the wall clock is right, wherever the domain goes on.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use domu::executor::spawn;
use domu::sim::{Guest, Saved};
use domu::{lifecycle, time};

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
                let (Saved::Restored(pause) | Saved::Cancelled(pause) | Saved::Moved(pause, _)) = saved;
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
