//! The ends of a domain, on the simulated Xen.

mod watchdog;

use std::time::Duration;

use domu::sim::Report;

#[cfg(not(miri))]
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn elapsed(report: &Report) -> Duration {
    Duration::from_nanos(report.elapsed_ns)
}
