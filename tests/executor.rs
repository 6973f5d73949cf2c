//! Tasks, timers and event channels on the simulated Xen: whole domains, with peers that the tests play.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::time::Duration;

use domu::abi::event_channel::virq;
use domu::eventchn::{self, Abi, Binding, Error};
use domu::executor::{activity, after_turn, at_exit, before_turn, spawn, yield_now};
use domu::lifecycle::Reason;
use domu::sim::{End, Guest, Report, race};
use domu::time::{self, Elapsed, Instant};
use domu::{Domain, DomainId};

const MS: Duration = Duration::from_millis(1);

/// Both interfaces of Xen's event channels. Tests of what neither changes run on the usual one, FIFO.
const BOTH: [Abi; 2] = [Abi::TwoLevel, Abi::Fifo];

/// A guest on a Xen that has an interface at best.
fn on(abi: Abi) -> Guest {
    match abi {
        Abi::TwoLevel => Guest::new().without_fifo(),
        Abi::Fifo => Guest::new(),
    }
}

/// Runs a guest whose main must come to its end.
fn run<F: Future<Output = domu::Result>>(guest: Guest, main: impl FnOnce(Domain) -> F) -> Report {
    guest.run(main).powered_off()
}

#[test]
fn tasks_run_and_give_their_output() {
    run(Guest::new(), async |_| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|number| {
                let order = Rc::clone(&order);
                spawn(async move {
                    order.borrow_mut().push(number);
                    yield_now().await;
                    order.borrow_mut().push(number + 10);
                    number * 2
                })
            })
            .collect();
        let mut outputs = Vec::new();
        for task in tasks {
            outputs.push(task.await);
        }
        assert_eq!(outputs, [0, 2, 4]);
        assert_eq!(*order.borrow(), [0, 1, 2, 10, 11, 12]);
        Ok(())
    });
}

/// Tells when it is dropped.
struct Guard(Rc<Cell<bool>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn a_task_whose_handle_is_dropped_is_stopped_and_a_detached_one_is_not() {
    run(Guest::new(), async |_| {
        let (dropped, ran) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let guard = Guard(Rc::clone(&dropped));
        let task = spawn(async move {
            let _guard = guard;
            pending::<()>().await;
        });
        yield_now().await;
        assert!(!dropped.get());
        drop(task);
        yield_now().await;
        assert!(dropped.get());

        let flag = Rc::clone(&ran);
        spawn(async move { flag.set(true) }).detach();
        yield_now().await;
        assert!(ran.get());

        let late = spawn(async { 7 });
        yield_now().await;
        assert!(late.is_finished());
        assert_eq!(late.abort().await, Some(7));
        assert_eq!(spawn(pending::<()>()).abort().await, None);
        Ok(())
    });
}

#[test]
fn a_panic_in_a_task_is_the_domains() {
    let report = Guest::new().run(async |_| {
        spawn(async { panic!("from a task") }).await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("from a task"));
}

#[test]
fn a_main_that_nothing_can_wake_is_told() {
    let report = Guest::new().run(async |_| pending::<()>().await);
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("nothing is left that could wake it"));
}

#[test]
fn hooks_see_each_turn_and_an_idle_domain_has_none() {
    run(Guest::new(), async |_| {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (before, after) = (Rc::clone(&seen), Rc::clone(&seen));
        before_turn(move || before.borrow_mut().push('<'));
        after_turn(move || after.borrow_mut().push('>'));
        let task = Rc::clone(&seen);
        spawn(async move { task.borrow_mut().push('t') }).detach();
        yield_now().await;
        seen.borrow_mut().push('m');
        yield_now().await;
        assert_eq!(seen.borrow().iter().collect::<String>(), "t><m><");
        seen.borrow_mut().clear();
        time::sleep(1000 * MS).await;
        // To sleep, and to the end of it.
        assert!(seen.borrow().len() <= 6, "{:?}", seen.borrow());
        Ok(())
    });
}

#[test]
fn a_hook_may_add_hooks_and_wake_tasks() {
    run(Guest::new(), async |_| {
        let (port, added) = (Rc::new(eventchn::bind_ipi()?), Rc::new(Cell::new(0)));
        let (woken, counter) = (Rc::clone(&port), Rc::clone(&added));
        let mut once = true;
        after_turn(move || {
            if core::mem::take(&mut once) {
                let counter = Rc::clone(&counter);
                before_turn(move || counter.set(counter.get() + 1));
                woken.notify().unwrap();
            }
        });
        assert_eq!(port.after(0).await, Ok(1));
        yield_now().await;
        assert!(added.get() > 0);
        Ok(())
    });
}

#[test]
fn what_is_left_for_the_exit_is_done_last_first_whatever_main_returns() {
    for fails in [false, true] {
        let report = Guest::new().run(async move |domain| {
            for number in 0..3 {
                at_exit(async move {
                    time::sleep(MS).await;
                    domain.console().write_all(&[b'0' + number]).await.unwrap();
                });
            }
            domain.console().write_all(b"main ").await.unwrap();
            if fails { Err("it failed") } else { Ok(()) }
        });
        let end = if fails { "domu: main failed: it failed\r\n" } else { "" };
        assert_eq!(report.console_text(), format!("main 210{end}"));
    }
}

#[test]
fn more_may_be_left_for_the_exit_while_it_runs() {
    let report = run(Guest::new(), async |domain| {
        spawn(async move {
            time::sleep(5 * MS).await;
            at_exit(async move { domain.console().write_all(b"2").await.unwrap() });
        })
        .detach();
        at_exit(async move {
            time::sleep(20 * MS).await;
            at_exit(async move { domain.console().write_all(b"3").await.unwrap() });
            domain.console().write_all(b"1").await.unwrap();
        });
        Ok(())
    });
    assert_eq!(report.console_text(), "132");
}

#[test]
fn an_exit_that_never_ends_is_given_up() {
    let dropped = [(); 3].map(|()| Rc::new(Cell::new(false)));
    let guards = dropped.clone().map(Guard);
    let report = run(Guest::new(), async move |_| {
        for guard in guards {
            at_exit(async move {
                let _guard = guard;
                pending().await
            });
        }
        Ok(())
    });
    assert!(dropped.iter().all(|dropped| dropped.get()));
    assert!((10_000_000_000..11_000_000_000).contains(&report.elapsed_ns), "{}", report.elapsed_ns);
    assert!(report.console_text().contains("not done after 10 s"), "{}", report.console_text());
}

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
    assert_eq!(report.halts, 3);
    let set = report.hypercalls.iter().filter(|(call, _)| *call as u32 == 15).count();
    assert_eq!(set, 3);
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
            assert_eq!(time::timeout(1000 * MS, async { 1 }).await, Ok(1));
        }
        time::sleep(MS).await;
        Ok(())
    });
    // The hundred cost no timer, no halt and no second.
    assert_eq!(report.halts, 2);
    assert!(report.elapsed_ns < 100_000_000);
}

#[test]
fn an_interval_loses_no_tick() {
    run(Guest::new(), async |_| {
        let start = time::now();
        let mut interval = time::interval(10 * MS);
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
fn a_task_that_yields_for_ever_delays_nothing_by_more_than_a_turn() {
    run(Guest::new(), async |_| {
        // In each turn it runs behind the main loop's look at the timers: the turn in which it sees the deadline first.
        let (deadline, due) = (time::now() + if cfg!(miri) { MS / 10 } else { MS }, Rc::new(Cell::new(None)));
        let seen = Rc::clone(&due);
        spawn(async move {
            loop {
                if seen.get().is_none() && time::now() >= deadline {
                    seen.set(Some(activity().turns));
                }
                yield_now().await;
            }
        })
        .detach();
        let turns = activity().turns;
        time::sleep_until(deadline).await;
        let now = activity().turns;
        assert!(now - turns > 10, "the other task has run meanwhile");
        let late = due.get().map_or(0, |due| now - due);
        assert!(late <= 1, "{late} turns late");
        assert_eq!(activity().halts, 0);
        Ok(())
    });
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
fn events_are_counted_whenever_they_come() {
    for abi in BOTH {
        let report = run(on(abi).offer_port(3, 17), async |_| {
            let port = eventchn::bind_interdomain(DomainId(3), 17)?;
            assert_eq!(port.binding(), Ok(Binding::Interdomain(DomainId(3), 17)));
            // The one that comes with the binding.
            assert_eq!(port.after(0).await, Ok(1));
            port.notify()?;
            Ok(())
        });
        assert_eq!(report.sent, [(3, 17)]);
    }
}

#[test]
fn an_event_wakes_an_idle_domain_once_and_costs_no_hypercall() {
    for abi in BOTH {
        let guest = on(abi).after(5 * MS, |outside| outside.notify(4)).after(9 * MS, |outside| outside.notify(4));
        let report = run(guest, async |_| {
            let port = eventchn::alloc_unbound(DomainId(5))?;
            assert_eq!((port.number(), port.binding()), (4, Ok(Binding::Unbound(DomainId(5)))));
            assert_eq!(port.after(0).await, Ok(1));
            let before = activity();
            assert_eq!(port.after(1).await, Ok(2));
            let after = activity();
            assert_eq!((after.halts - before.halts, after.turns - before.turns), (1, 2));
            Ok(())
        });
        assert_eq!(report.halts, 2);
        // Boot's six, the timer's port, the port, its status, the callback, closing the port, and the end; beside them
        // FIFO's two pages, or that it is refused.
        let pages = if abi == Abi::Fifo { 2 } else { 1 };
        assert_eq!(report.hypercalls.len(), 12 + pages, "{:?}", report.hypercalls);
    }
}

#[test]
fn an_event_between_two_waits_is_not_lost() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let port = eventchn::bind_ipi()?;
            let mut seen = 0;
            for _ in 0..100 {
                port.notify()?;
                yield_now().await;
                seen = port.after(seen).await.unwrap();
            }
            assert_eq!((seen, port.count()), (100, 100));
            // A wait that was given up takes nothing away.
            assert_eq!(time::timeout(MS, port.after(seen)).await, Err(Elapsed));
            port.notify()?;
            assert_eq!(port.after(seen).await, Ok(101));
            Ok(())
        });
    }
}

#[test]
fn several_wait_for_one_port() {
    for abi in BOTH {
        run(on(abi).after(MS, |outside| outside.notify(4)), async |_| {
            let port = Rc::new(eventchn::alloc_unbound(DomainId(1))?);
            let tasks: Vec<_> = (0..3)
                .map(|_| {
                    let port = Rc::clone(&port);
                    spawn(async move { port.after(0).await })
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await, Ok(1));
            }
            Ok(())
        });
    }
}

#[test]
fn a_storm_from_one_port_starves_nobody() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let storm = Rc::new(eventchn::bind_ipi()?);
            let quiet = eventchn::bind_ipi()?;
            // Whoever handles it sends the next one: it is pending in every turn.
            let again = Rc::clone(&storm);
            spawn(async move {
                let mut seen = 0;
                loop {
                    let _ = again.notify();
                    seen = again.after(seen).await.unwrap();
                }
            })
            .detach();
            for round in 0..if cfg!(miri) { 5 } else { 50 } {
                quiet.notify()?;
                let turns = activity().turns;
                assert_eq!(quiet.after(round).await, Ok(round + 1));
                assert!(activity().turns - turns <= 3);
            }
            time::sleep(if cfg!(miri) { MS / 10 } else { MS }).await;
            // One that nobody takes note of is delivered once, however often it is sent.
            let ignored = eventchn::bind_ipi()?;
            for _ in 0..10 {
                ignored.notify()?;
                yield_now().await;
                yield_now().await;
            }
            assert_eq!(ignored.count(), 1);
            assert_eq!(ignored.after(1).await, Ok(2), "what came meanwhile");
            // Whoever asks for the count has taken note, too.
            ignored.notify()?;
            yield_now().await;
            yield_now().await;
            assert_eq!(ignored.count(), 3);
            Ok(())
        });
    }
}

#[test]
fn a_domain_talks_to_itself() {
    for abi in BOTH {
        run(on(abi), async |domain| {
            let one = eventchn::alloc_unbound(DomainId::SELF)?;
            let other = eventchn::bind_interdomain(DomainId::SELF, one.number())?;
            assert_eq!(other.after(0).await, Ok(1));
            let (mut seen, mut answered) = (0, 1);
            for _ in 0..200 {
                other.notify()?;
                seen = one.after(seen).await.unwrap();
                one.notify()?;
                answered = other.after(answered).await.unwrap();
            }
            assert_eq!((seen, answered), (200, 201));
            drop(one);
            // The peer is gone: its end is unbound, and what is sent is swallowed.
            assert_eq!(other.binding(), Ok(Binding::Unbound(domain.id())));
            other.notify()?;
            Ok(())
        });
    }
}

#[test]
fn what_xen_refuses_is_an_error() {
    for abi in BOTH {
        run(on(abi).port_limit(7), async |_| {
            assert_eq!(eventchn::bind_interdomain(DomainId(9), 1).unwrap_err(), Error::NoPeer);
            let ports = [eventchn::bind_ipi()?, eventchn::bind_ipi()?, eventchn::bind_virq(1)?];
            assert_eq!(eventchn::bind_ipi().unwrap_err(), Error::NoPort);
            assert_eq!(ports[2].notify().unwrap_err(), Error::Refused(domu::abi::errno::Errno::EINVAL));
            drop(ports);
            let debug = eventchn::bind_virq(1)?;
            assert_eq!(eventchn::bind_virq(1).unwrap_err(), Error::NoInterrupt);
            assert_eq!(debug.binding(), Ok(Binding::Virq(1)));
            Ok(())
        });
    }
}

#[test]
fn a_virtual_interrupt_arrives() {
    for abi in BOTH {
        // The first port that a domain makes.
        run(on(abi).after(5 * MS, |outside| outside.notify(4)), async |_| {
            let port = eventchn::bind_virq(virq::DEBUG)?;
            assert_eq!((port.number(), port.after(0).await), (4, Ok(1)));
            Ok(())
        });
    }
}

#[test]
fn a_number_that_is_used_again_has_no_past() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let first = eventchn::bind_ipi()?;
            let number = first.number();
            first.notify()?;
            yield_now().await;
            first.notify()?;
            drop(first);
            let second = eventchn::bind_ipi()?;
            assert_eq!((second.number(), second.count()), (number, 0));
            assert_eq!(time::timeout(MS, second.after(0)).await, Err(Elapsed));
            Ok(())
        });
    }
}

/// All choices of places for the steps of an event, each at or behind the one before: before each of so many accesses, and
/// when the domain halts. Miri takes a second for a wait, and has a few choices from all over.
fn places(abi: Abi, accesses: usize) -> Vec<Vec<usize>> {
    let steps = match abi {
        Abi::TwoLevel => race::TWO_LEVEL_STEPS,
        Abi::Fifo => race::FIFO_STEPS,
    };
    let mut all = vec![Vec::new()];
    for _ in 0..steps {
        let longer = |before: Vec<usize>| {
            let first = before.last().copied().unwrap_or(0);
            let places = (first..accesses).step_by(if cfg!(miri) { 4 } else { 1 }).chain([race::HALT]);
            places.map(move |next| [before.as_slice(), &[next]].concat())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    let stride = if cfg!(miri) { all.len().div_ceil(7) } else { 1 };
    all.into_iter().skip(stride / 2).step_by(stride).collect()
}

/// Ends a race. The domain must have halted within the accesses that there were places for: else there would be interleavings
/// that nobody has tried.
fn end_race(accesses: usize) {
    let before = race::before_halt().unwrap_or(0);
    assert!(before <= accesses, "{before} accesses before the halt, of which {accesses} were tried");
    let all = race::end();
    assert!(all < 60, "{all} accesses: a loop?");
}

#[test]
fn no_interleaving_loses_an_event() {
    for abi in BOTH {
        run(on(abi), async |_| {
            const ACCESSES: usize = 2;
            for choice in places(abi, ACCESSES) {
                let port = eventchn::alloc_unbound(DomainId(1))?;
                race::begin(port.number(), &choice);
                assert_eq!(port.after(0).await, Ok(1), "{choice:?}");
                end_race(ACCESSES);
            }
            Ok(())
        });
    }
}

#[test]
fn no_interleaving_loses_an_event_beside_another() {
    // While the event of one port is delivered, one of another comes: in the same word of the bitmaps, or in another; by
    // queues, in the same queue.
    for (abi, distance, accesses) in [(Abi::TwoLevel, 1, 11), (Abi::TwoLevel, 70, 11), (Abi::Fifo, 1, 18)] {
        run(on(abi), async move |_| {
            let ports = (0..=distance).map(|_| eventchn::bind_ipi()).collect::<Result<Vec<_>, _>>()?;
            let (one, other) = (&ports[0], &ports[distance]);
            for (seen, choice) in (0..).zip(places(abi, accesses)) {
                one.notify()?;
                race::begin(other.number(), &choice);
                assert_eq!(one.after(seen).await, Ok(seen + 1), "{choice:?}");
                assert_eq!(other.after(seen).await, Ok(seen + 1), "{choice:?}");
                end_race(accesses);
            }
            Ok(())
        });
    }
}

#[test]
fn no_interleaving_loses_an_event_behind_another() {
    // The second event of a port may come before, while and after the first is delivered, and the port unmasked again. The
    // two may become one, but only if the second came before the first was taken.
    for (abi, accesses) in BOTH.into_iter().zip([11, 16]) {
        run(on(abi), async move |_| {
            // The first halt binds the timer's port, of whose accesses there are to be none later.
            time::sleep(MS).await;
            let (mut became_one, choices) = (0, places(abi, accesses));
            for choice in &choices {
                let port = eventchn::bind_ipi()?;
                port.notify()?;
                // The accesses up to here are none of the race's.
                race::begin(port.number(), choice);
                assert_eq!(port.after(0).await, Ok(1));
                let coalesced = race::coalesced();
                // Whoever has seen the first waits for the second.
                let start = time::now();
                let second = time::timeout(10 * MS, port.after(1)).await;
                end_race(accesses);
                // The timer's event would bring a lost one along.
                let in_time = second.is_err() || start.elapsed() < 5 * MS;
                assert!(in_time, "{choice:?}: the second event came with the timer");
                if second.is_err() {
                    became_one += 1;
                    assert!(coalesced, "{choice:?}: the second event came behind the first, and is lost");
                }
                assert!(port.count() <= 2, "{choice:?}: an event is counted twice");
            }
            assert!(became_one > 0 && became_one < choices.len());
            Ok(())
        });
    }
}

#[test]
fn many_ports_work() {
    const LIMIT: u32 = if cfg!(miri) { 200 } else { 4096 };
    for abi in BOTH {
        run(on(abi).port_limit(LIMIT), async |_| {
            let mut ports = Vec::new();
            while let Ok(port) = eventchn::bind_ipi() {
                ports.push(port);
            }
            assert_eq!(ports.len() as u32, LIMIT - 4);
            for port in &ports {
                port.notify()?;
            }
            for port in &ports {
                assert_eq!(port.after(0).await, Ok(1));
            }
            Ok(())
        });
    }
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
        // A look at the simulated clock takes twice as long as the period.
        let mut interval = time::interval(Duration::from_nanos(500));
        spawn(async move {
            loop {
                interval.tick().await;
            }
        })
        .detach();
        time::sleep(if cfg!(miri) { MS / 10 } else { MS }).await;
        Ok(())
    });
}

#[test]
fn the_timer_is_not_for_others_and_has_its_port_when_none_is_left() {
    for abi in BOTH {
        let report = run(on(abi).port_limit(6), async |_| {
            assert_eq!(eventchn::bind_virq(0).unwrap_err(), Error::NoInterrupt);
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

#[test]
fn events_and_timers_come_to_a_busy_domain_in_their_order() {
    const UNIT: Duration = Duration::from_micros(if cfg!(miri) { 100 } else { 1000 });
    for abi in BOTH {
        let guest = on(abi).after(9 * UNIT, |outside| outside.notify(4)).after(5 * UNIT, |outside| outside.notify(5));
        run(guest, async |_| {
            let (late, early) = (eventchn::alloc_unbound(DomainId(1))?, eventchn::alloc_unbound(DomainId(1))?);
            let busy = spawn(async {
                loop {
                    // Time passes on the simulated clock when somebody looks at it.
                    let _ = time::now();
                    yield_now().await;
                }
            });
            let start = time::now();
            assert_eq!(early.after(0).await, Ok(1));
            assert!((4 * UNIT..6 * UNIT).contains(&start.elapsed()) && late.count() == 0);
            assert_eq!(late.after(0).await, Ok(1));
            time::sleep(UNIT).await;
            assert_eq!(activity().halts, 0);
            drop(busy);
            Ok(())
        });
    }
}

/// A waker that owns what waits with it: dropping the waker drops a sleep and a port.
struct Owner(std::sync::Mutex<Option<Box<dyn std::any::Any + Send>>>);

impl std::task::Wake for Owner {
    fn wake(self: std::sync::Arc<Self>) {}
}

#[test]
fn a_waker_may_own_what_waits() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let port = eventchn::bind_ipi()?;
            let (mut sleep, mut after) = (Box::pin(time::sleep(MS)), Box::pin(port.after(0)));
            let owner = std::sync::Arc::new(Owner(std::sync::Mutex::new(None)));
            let waker = std::task::Waker::from(std::sync::Arc::clone(&owner));
            let mut context = std::task::Context::from_waker(&waker);
            let mut owned = Box::pin(time::sleep(1000 * MS));
            assert!(owned.as_mut().poll(&mut context).is_pending());
            assert!(sleep.as_mut().poll(&mut context).is_pending() && after.as_mut().poll(&mut context).is_pending());
            *owner.0.lock().unwrap() = Some(Box::new(owned));
            drop((waker, owner));
            // The last waker, and with it the sleep that it owns, goes where another takes its place.
            poll_fn(|context| {
                assert!(after.as_mut().poll(context).is_pending());
                sleep.as_mut().poll(context)
            })
            .await;
            Ok(())
        });
    }
}
