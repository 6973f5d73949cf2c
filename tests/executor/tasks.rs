//! Tasks, the hooks of the main loop, and its end.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;

use domu::executor::{activity, after_turn, at_exit, before_turn, spawn, yield_now};
use domu::lifecycle::Reason;
use domu::sim::{End, Guest};
use domu::{eventchn, time};

use crate::{Guard, MS, run};

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
        // The end of the turn that falls asleep, the one that finds the timer due, and the one in which main goes on.
        assert_eq!(seen.borrow().iter().collect::<String>(), "><><");
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
    assert!(report.console_text().contains("exit handlers timed out after 10 s"), "{}", report.console_text());
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
