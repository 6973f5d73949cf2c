//! Clocks, sleeps, timeouts and intervals.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use domu::DomainId;
use domu::eventchn::{self, ErrorKind};
use domu::executor::{activity, spawn, yield_now};
use domu::sim::abi::xen::Hypercall;
use domu::sim::{Guest, Report};
use domu::time::{self, Elapsed, Instant, MissedTickBehavior};

use crate::{BOTH, Guard, MS, on, run};

#[test]
fn sleeps_end_in_the_order_of_their_deadlines_and_not_before() {
    let report = run(Guest::new(), async |_| {
        let start = time::now();
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [5_u32, 1, 3, 1]
            .into_iter()
            .map(|delay| {
                let order = Rc::clone(&order);
                spawn(async move {
                    time::sleep(delay * MS).await;
                    assert!(start.elapsed() >= delay * MS);
                    order.borrow_mut().push(delay);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(*order.borrow(), [1, 1, 3, 5]);
        Ok(())
    });
    // Three deadlines: each is one halt, and sets the timer once.
    assert_eq!((report.halts, timers_set(&report)), (3, 3));
}

/// How often the domain has set its timer.
fn timers_set(report: &Report) -> usize {
    report.hypercalls.iter().filter(|(call, _)| *call == Hypercall::SetTimer).count()
}

#[test]
fn a_deadline_that_stays_the_earliest_is_set_once() {
    let guest = (1..=10).fold(Guest::new(), |guest, number| guest.after(number * MS, |outside| outside.notify(4)));
    let report = run(guest, async |_| {
        let port = eventchn::alloc_unbound(DomainId(1))?;
        let sleeper = spawn(time::sleep(100 * MS));
        for seen in 0..10 {
            assert_eq!(port.after(seen).await, Ok(seen + 1));
        }
        sleeper.await;
        Ok(())
    });
    // Ten events, and the deadline: all halts but the first find the timer set.
    assert_eq!((report.halts, timers_set(&report)), (11, 1));
}

#[test]
fn deadlines_past_now_and_far_ahead() {
    let report = run(Guest::new(), async |_| {
        time::sleep(Duration::ZERO).await;
        time::sleep_until(time::now()).await;
        assert_eq!(activity().halts, 0);
        // Xen does not take deadlines so far ahead: they are approached in steps.
        let far = Duration::from_secs(3_000_000);
        let start = time::now();
        time::sleep(far).await;
        assert!(start.elapsed() >= far);
        assert_eq!(time::timeout(Duration::MAX, async { 1 }).await, Ok(1));
        Ok(())
    });
    assert!((2..20).contains(&report.halts), "{} halts", report.halts);
}

#[test]
fn a_timeout_drops_what_is_late_and_its_timer_when_it_is_not() {
    let report = run(Guest::new(), async |_| {
        let dropped = Rc::new(Cell::new(false));
        let guard = Guard(Rc::clone(&dropped));
        let late = async move {
            let _guard = guard;
            pending::<()>().await;
        };
        assert_eq!(time::timeout(MS, late).await, Err(Elapsed));
        assert!(dropped.get());
        for _ in 0..100 {
            // Each waits, but not for long.
            assert_eq!(time::timeout(1000 * MS, yield_now()).await, Ok(()));
        }
        time::sleep(2000 * MS).await;
        Ok(())
    });
    // The hundred cost no halt and set no timer, neither at once nor when they would have been due.
    assert_eq!((report.halts, timers_set(&report)), (2, 2));
}

#[test]
fn an_interval_of_bursts_loses_no_tick() {
    run(Guest::new(), async |_| {
        let start = time::now();
        let mut interval = time::interval(10 * MS);
        interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 1..=5 {
            let tick = interval.tick().await;
            assert_eq!(tick, start_of(start, tick) + 10 * number * MS);
            if number == 2 {
                // Two ticks are missed, and come at once.
                time::sleep(25 * MS).await;
            }
        }
        assert!(start.elapsed() < 60 * MS);
        Ok(())
    });
}

/// The interval began some reads of the clock after the test.
fn start_of(start: Instant, tick: Instant) -> Instant {
    let offset = tick.duration_since(start).as_nanos() % 10_000_000;
    start + Duration::from_nanos(offset as u64)
}

#[test]
fn yielding_takes_no_timer_and_no_hypercall() {
    let report = run(Guest::new(), async |_| {
        for _ in 0..if cfg!(miri) { 50 } else { 1000 } {
            yield_now().await;
        }
        Ok(())
    });
    // Boot's six, and the end.
    assert_eq!((report.halts, report.hypercalls.len()), (0, 7));
}

#[test]
fn the_wall_clock_goes_where_dom0_puts_it_and_sleeps_do_not_mind() {
    // Beyond what the low half of the seconds holds.
    let stepped = 5_000_000_000_000_000_000;
    let guest = Guest::new().after(5 * MS, move |outside| outside.set_wall_clock(stepped));
    run(guest, async move |_| {
        let (before, start) = (time::wall_clock(), time::now());
        assert_eq!(before.as_secs(), 1_790_000_001);
        time::sleep(10 * MS).await;
        assert!((10 * MS..11 * MS).contains(&start.elapsed()));
        let ahead = time::wall_clock().as_nanos() - u128::from(stepped);
        assert!((4_900_000..6_000_000).contains(&ahead), "{ahead} ns after the step");
        Ok(())
    });
}

#[test]
fn an_interval_that_is_behind_keeps_nobody_waiting() {
    run(Guest::new(), async |_| {
        for behavior in [MissedTickBehavior::Burst, MissedTickBehavior::Delay, MissedTickBehavior::Skip] {
            // A look at the simulated clock takes twice as long as the period.
            let mut interval = time::interval(Duration::from_nanos(500));
            interval.set_missed_tick_behavior(behavior);
            spawn(async move {
                loop {
                    interval.tick().await;
                }
            })
            .detach();
        }
        time::sleep(if cfg!(miri) { MS / 10 } else { MS }).await;
        Ok(())
    });
}

#[test]
fn the_timer_is_not_for_others_and_has_its_port_when_none_is_left() {
    for abi in BOTH {
        let report = run(on(abi).port_limit(6), async |_| {
            assert_eq!(eventchn::bind_virq(0).unwrap_err(), ErrorKind::NoInterrupt);
            let mut ports = Vec::new();
            while let Ok(port) = eventchn::bind_ipi() {
                ports.push(port);
            }
            assert_eq!(ports.len(), 2);
            time::sleep(20 * MS).await;
            Ok(())
        });
        assert_eq!(report.halts, 1);
    }
}
