//! Ends that the program itself wants.

use std::future::{Future, pending};
use std::task::{Context, Waker};

use domu::executor::{self, spawn};
use domu::lifecycle::{self, Reason};
use domu::sim::{End, Guest};
use domu::time;

use super::{MS, SECOND, elapsed, lines};

#[test]
fn main_may_return_the_reason() {
    for reason in [Reason::Poweroff, Reason::Reboot, Reason::Crash] {
        let report = Guest::new().run(async |_| reason);
        assert_eq!(report.end, End::Shutdown(reason));
        let report = Guest::new().run(async |_| -> domu::Result<Reason> { Ok(reason) });
        assert_eq!(report.end, End::Shutdown(reason));
    }
    let report = Guest::new().run(async |_| Err::<Reason, _>("for this cause"));
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("for this cause"));
}

#[test]
fn what_was_left_is_done_before_the_end() {
    let report = Guest::new().run(async |_| -> domu::Result {
        executor::at_exit(async {
            time::sleep(MS).await;
            log::info!("said farewell");
        });
        lifecycle::finish(Reason::Reboot).await
    });
    assert_eq!(report.end, End::Shutdown(Reason::Reboot));
    assert_eq!(lines(&report, "said farewell"), 1, "{}", report.console_text());
}

#[test]
fn an_end_that_has_begun_is_not_stopped_by_dropping_it() {
    let report = Guest::new().run(async |_| {
        let mut end = Box::pin(lifecycle::finish(Reason::Reboot));
        let _ = end.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(end);
        time::sleep(SECOND).await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Reboot));
    assert!(elapsed(&report) < SECOND);
}

#[test]
fn of_several_ends_the_first_counts_and_what_was_left_is_done_once() {
    let report = Guest::new().run(async |_| {
        executor::at_exit(async {
            log::info!("said farewell");
            time::sleep(10 * MS).await;
        });
        spawn(async { lifecycle::finish(Reason::Reboot).await }).detach();
        spawn(async { lifecycle::finish(Reason::Crash).await }).detach();
        time::sleep(MS).await;
        // And main returns meanwhile.
        Ok::<_, domu::Error>(())
    });
    assert_eq!(report.end, End::Shutdown(Reason::Reboot));
    assert_eq!(lines(&report, "said farewell"), 1, "{}", report.console_text());

    // The other way round: main was first.
    let report = Guest::new().run(async |_| {
        executor::at_exit(async { time::sleep(10 * MS).await });
        spawn(async {
            time::sleep(MS).await;
            lifecycle::finish(Reason::Reboot).await;
        })
        .detach();
        executor::yield_now().await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
}

#[test]
fn a_future_that_was_never_polled_ends_nothing() {
    let report = Guest::new().run(async |_| {
        drop(lifecycle::finish(Reason::Reboot));
        let _ = time::timeout(MS, pending::<()>()).await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
}
