//! Servers that break one connection after the other.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use domu::executor::{activity, after_turn, spawn, yield_now};
use domu::lifecycle::Reason;
use domu::sim::abi::xs_wire::RSP_PROD;
use domu::sim::{End, Guest, Report, Store, outside};
use domu::time;

use super::faults::break_connection;
use super::{ME, MS, run, run_guest};

/// The server's port.
const PORT: u32 = 1;

fn warnings(report: &Report) -> usize {
    report.console_text().matches("connection closed").count()
}

/// Has a server break each connection, in each turn, as long as `flaps` says so.
fn flap(server: &Store, flaps: impl Fn() -> bool + 'static) {
    let server = server.clone();
    after_turn(move || {
        if flaps() {
            server.set_word(ME, RSP_PROD, 0x7fff_0000);
            outside(|outside| outside.notify(PORT));
        }
    });
}

#[test]
fn flapping_server_is_throttled() {
    let server = Store::oxenstored();
    let report = run(&server, async |domain| {
        let mut watch = domain.xenstore().watch("data").await?;
        watch.next().await?;
        let _waiting = spawn(async move { while watch.next().await.is_ok() {} });
        // Other tasks run on.
        let ticks = Rc::new(Cell::new(0));
        let count = Rc::clone(&ticks);
        let _ticking = spawn(async move {
            loop {
                time::sleep(10 * MS).await;
                count.set(count.get() + 1);
            }
        });
        yield_now().await;
        flap(&server, || true);
        time::sleep(100 * MS).await;
        let (before, ticks_before) = (activity(), ticks.get());
        time::sleep(200 * MS).await;
        let (turns, halts) = (activity().turns - before.turns, activity().halts - before.halts);
        assert!(turns <= 200 && halts >= 15, "{turns} turns and {halts} halts in 200 ms");
        assert!(ticks.get() - ticks_before >= 18, "{} ticks of 10 ms in 200 ms", ticks.get() - ticks_before);
        Ok(())
    });
    // 1 + 2 + 4 ... + 256 ms.
    assert!((5..=11).contains(&warnings(&report)), "{} warnings", warnings(&report));
}

#[test]
fn flapping_for_ten_minutes_writes_few_lines() {
    let server = Store::oxenstored();
    let report = run(&server, async |domain| {
        let mut watch = domain.xenstore().watch("data").await?;
        watch.next().await?;
        let _waiting = spawn(async move { while watch.next().await.is_ok() {} });
        yield_now().await;
        flap(&server, || true);
        let before = activity();
        time::sleep(Duration::from_secs(600)).await;
        let turns = activity().turns - before.turns;
        assert!(turns <= 600 * 10, "{turns} turns in 600 s");
        Ok(())
    });
    assert!((500..=620).contains(&warnings(&report)), "{} warnings in 600 s", warnings(&report));
}

/// A server that answers well between two breaks must not lift the back-off by that.
#[test]
fn replies_between_breaks_do_not_lift_the_back_off() {
    let server = Store::oxenstored();
    let report = run(&server, async |domain| {
        let store = domain.xenstore();
        store.read("name").await?;
        let start = time::now();
        let mut answers = 0;
        while time::now() - start < Duration::from_secs(10) {
            answers += u32::from(store.read("name").await.is_ok());
            break_connection(&server);
            let _ = store.read("name").await;
        }
        assert!((10..60).contains(&answers), "{answers} answers in 10 s");
        Ok(())
    });
    assert!((10..=40).contains(&warnings(&report)), "{} warnings in 10 s", warnings(&report));
}

#[test]
fn first_reconnection_is_not_delayed() {
    let server = Store::oxenstored();
    run(&server, async |domain| {
        let store = domain.xenstore();
        for _ in 0..5 {
            store.read("name").await?;
            break_connection(&server);
            let start = time::now();
            let _ = store.read("name").await;
            store.read("name").await?;
            assert!(time::now() - start < MS, "{:?}", time::now() - start);
            // One that has lasted, and answers.
            time::sleep(Duration::from_secs(2)).await;
            store.read("name").await?;
        }
        Ok(())
    });
}

#[test]
fn requests_in_the_back_off_are_sent_after_it() {
    let server = Store::oxenstored();
    run(&server, async |domain| {
        let store = domain.xenstore();
        let mut watch = store.watch("data/w").await?;
        watch.next().await?;
        let flapping = Rc::new(Cell::new(true));
        let flaps = Rc::clone(&flapping);
        flap(&server, move || flaps.get());
        time::sleep(200 * MS).await;
        let tasks: Vec<_> = (0..40)
            .map(|_| {
                let store = domain.xenstore();
                spawn(async move { store.read("domid").await })
            })
            .collect();
        let start = time::now();
        flapping.set(false);
        let mut done = 0;
        for task in tasks {
            done += u32::from(task.await.is_ok());
        }
        assert_eq!(done, 40);
        assert!(time::now() - start < 300 * MS, "{:?}", time::now() - start);
        // Watches are there again.
        watch.next().await?;
        store.write("data/w/x", "").await?;
        assert_eq!(watch.next().await?, "data/w/x");
        Ok(())
    });
}

/// Main waits for an answer that comes after the back-off.
#[test]
fn back_off_is_no_deadlock() {
    let server = Store::oxenstored();
    run(&server, async |domain| {
        let store = domain.xenstore();
        for round in 0..8 {
            store.read("name").await?;
            break_connection(&server);
            let _ = store.read("name").await;
            let before = activity();
            store.read("name").await?;
            assert!(round < 2 || activity().halts > before.halts, "round {round} has no pause");
        }
        Ok(())
    });
}

/// The default handler of shutdown requests watches in the background.
#[test]
fn flapping_server_hides_no_deadlock() {
    let server = Store::oxenstored();
    let report = Guest::new().xenstore(&server).obedient().run(async |_| {
        time::sleep(MS).await;
        flap(&server, || true);
        time::sleep(Duration::from_secs(2)).await;
        pending::<()>().await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("nothing is left that could wake it"), "{}", report.debug_text());
    assert!(report.elapsed_ns < 5_000_000_000, "{} ns", report.elapsed_ns);
}

#[test]
fn shutdown_request_arrives_after_flapping() {
    let server = Store::oxenstored();
    let dom0 = server.clone();
    let flapping = Rc::new(Cell::new(true));
    let report = run_guest(
        Guest::new().xenstore(&server).obedient().after(Duration::from_secs(10), move |_| {
            dom0.write("/local/domain/7/control/shutdown", "poweroff");
        }),
        async |_| {
            time::sleep(MS).await;
            let flaps = Rc::clone(&flapping);
            flap(&server, move || flaps.get());
            time::sleep(Duration::from_secs(5)).await;
            flapping.set(false);
            time::sleep(Duration::from_secs(3600)).await;
            Ok(())
        },
    );
    assert!(report.elapsed_ns < 12_000_000_000, "{} ns", report.elapsed_ns);
}
