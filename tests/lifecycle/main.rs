//! What the toolstack asks of a domain, and the domain's ends, on the simulated Xen and its xenstored.
//!
//! Under Miri the watchdog alone is looked at, whose hypercall is all that is unsafe here.

#![cfg_attr(miri, allow(dead_code, unused_imports, reason = "for the tests that Miri does not run"))]

#[cfg(not(miri))]
mod cancelled;
#[cfg(not(miri))]
mod finish;
#[cfg(not(miri))]
mod floods;
#[cfg(not(miri))]
mod obey;
#[cfg(not(miri))]
mod stream;
#[cfg(not(miri))]
mod sysrq;
mod watchdog;
#[cfg(not(miri))]
mod withdrawn;

use std::time::Duration;

use domu::lifecycle::Reason;
use domu::sim::{End, Guest, Report, Store};
use domu::{Domain, time};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// How long a domain runs that is not asked for anything.
const LONG: Duration = Duration::from_secs(3600);
const SHUTDOWN: &str = "/local/domain/7/control/shutdown";

/// A domain that obeys the toolstack, and has a store.
fn guest(store: &Store) -> Guest {
    Guest::new().xenstore(store).obedient()
}

/// One that is told something a second after its start.
fn asked(store: &Store, word: &'static str) -> Guest {
    let dom0 = store.clone();
    guest(store).after(SECOND, move |_| dom0.write(SHUTDOWN, word))
}

/// A main that waits.
async fn waits(_: Domain) {
    time::sleep(LONG).await;
}

/// How it ended, and that it did so because it was asked to, or by itself.
fn ended(report: &Report, reason: Reason, by_request: bool) {
    assert_eq!(report.end, End::Shutdown(reason), "{}{}", report.debug_text(), report.console_text());
    assert_eq!(elapsed(report) < LONG, by_request, "after {:?}: {}", elapsed(report), report.console_text());
}

fn elapsed(report: &Report) -> Duration {
    Duration::from_nanos(report.elapsed_ns)
}

fn lines(report: &Report, text: &str) -> usize {
    report.console_text().lines().filter(|line| line.contains(text)).count()
}
