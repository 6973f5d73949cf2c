//! Toolstacks that write to the nodes of `control/` without end.

use std::cell::Cell;
use std::rc::Rc;

use domu::executor::{self, activity, spawn};
use domu::lifecycle::{self, Reason, ShutdownRequest};
use domu::sim::{Report, Store};
use domu::time;

use super::{MS, SECOND, SHUTDOWN, ended, guest, lines};

const SYSRQ: &str = "/local/domain/7/control/sysrq";

/// Runs a domain for ten seconds beside a task that ticks 100 times a second, and returns its turns.
fn run(store: &Store) -> (Report, u64) {
    let turns = Cell::new(0);
    let report = guest(store).run(async |_| {
        let ticks = Rc::new(Cell::new(0));
        let count = Rc::clone(&ticks);
        let _ticking = spawn(async move {
            loop {
                time::sleep(10 * MS).await;
                count.set(count.get() + 1);
            }
        });
        time::sleep(SECOND).await;
        // The first key; the reaction writes all others.
        store.write(SYSRQ, "h");
        let (before, ticks_before) = (activity().turns, ticks.get());
        time::sleep(10 * SECOND).await;
        turns.set(activity().turns - before);
        assert!(ticks.get() - ticks_before >= 950, "{} ticks", ticks.get() - ticks_before);
    });
    ended(&report, Reason::Poweroff, true);
    (report, turns.get())
}

#[test]
fn endless_sysrq_keys_are_throttled() {
    let store = Store::new();
    store.react(SYSRQ, |dom0, _| {
        if dom0.read(SYSRQ).as_deref() == Some(b"") {
            dom0.write(SYSRQ, "h");
        }
    });
    let (report, turns) = run(&store);
    // Ticks, and some turns for each of 20 keys in a second.
    assert!(turns <= 6000, "{turns} turns in 10 s");
    assert!((20..=40).contains(&lines(&report, "sysrq: 'h'")), "{}", report.console_text());
    assert!(lines(&report, "similar lines suppressed") > 5, "{}", report.console_text());
}

#[test]
fn endless_unknown_requests_are_throttled() {
    let store = Store::new();
    let dom0 = store.clone();
    let mut guest = guest(&store);
    // A new word of 2,000 bytes in each millisecond.
    for moment in 1..=10_000_u32 {
        let dom0 = dom0.clone();
        let word = format!("{moment}\x1b").repeat(300);
        guest = guest.after(SECOND + moment * MS, move |_| dom0.write(SHUTDOWN, word));
    }
    let turns = Cell::new(0);
    let report = guest.run(async |_| {
        time::sleep(SECOND).await;
        let before = activity().turns;
        time::sleep(10 * SECOND).await;
        turns.set(activity().turns - before);
        // The next request is heard.
        dom0.write(SHUTDOWN, "poweroff");
        time::sleep(100 * SECOND).await;
    });
    assert!(report.elapsed_ns < 13_000_000_000, "{} ns", report.elapsed_ns);
    assert!((20..=40).contains(&lines(&report, "unknown shutdown request")), "{}", report.console_text());
    assert!(report.console_text().len() <= 40_000, "{} bytes", report.console_text().len());
    // Events of the watch still wake the client.
    assert!(turns.get() <= 40_000, "{} turns in 10 s", turns.get());
}

#[test]
fn stream_of_unknown_requests_starves_no_task() {
    let store = Store::new();
    let dom0 = store.clone();
    let report = guest(&store).run(async |domain| -> domu::Result {
        let mut requests = domain.shutdown_requests();
        let turns = Rc::new(Cell::new(0_u32));
        let count = Rc::clone(&turns);
        let _turning = spawn(async move {
            loop {
                executor::yield_now().await;
                count.set(count.get() + 1);
            }
        });
        for number in 0..1000 {
            let before = turns.get();
            dom0.write(SHUTDOWN, format!("word {number}"));
            assert!(matches!(requests.next().await?, ShutdownRequest::Unknown(_)));
            assert!(turns.get() > before, "no turn of the other task for request {number}");
        }
        assert_eq!(lifecycle::stat().unknown, 1000);
        Ok(())
    });
    ended(&report, Reason::Poweroff, true);
    assert!(lines(&report, "unknown shutdown request") <= 12, "{}", report.console_text());
}
