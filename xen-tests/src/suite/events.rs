//! Event channels, time and the executor on real Xen: straight under it, and as a domain with many ports.
//!
//! Many events not as a domain of `xl`'s: QEMU 7.2 emulates two processors with two threads, and after some ten thousand
//! pending events it has been seen to put the hypervisor's own registers into the guest's state, which Xen reports as a
//! triple fault.

use anyhow::{Result, ensure};

use super::case::Case;
use super::verdict::all_ok;
use crate::lab::domain::Reason;
use crate::lab::smoke::Ended;

/// What the guest must have said, by either interface for events.
const CASES: [&str; 9] = [
    "events.self",
    "events.bind",
    "events.many",
    "events.priority",
    "time.sleep",
    "time.order",
    "time.busy",
    "time.wall",
    "idle.halts",
];

/// Events that it sends itself, by the interface that Xen offers.
pub const FIFO: &str = "1000";
/// The same by the interface that all have.
pub const TWO_LEVEL: &str = "1000 domu.fifo=off";

/// It says `@ok` for all of its cases, and powers off.
fn judge(ended: &Ended, interface: &str) -> Result<()> {
    for case in CASES.into_iter().chain([interface]) {
        ensure!(ended.serial.lines().any(|line| line.ends_with(&format!("@ok {case}"))), "it does not say @ok {case}");
    }
    ensure!(!ended.serial.contains("@fail"), "it says @fail");
    ensure!(ended.reason == Some(Reason::Poweroff), "it ended with {:?}", ended.reason);
    Ok(())
}

/// Judges a run by the interface that Xen offers.
pub fn judge_fifo(ended: &Ended) -> Result<()> {
    judge(ended, "events.fifo")
}

/// Judges a run by the interface that all have.
pub fn judge_two_level(ended: &Ended) -> Result<()> {
    judge(ended, "events.two_level")
}

/// Domains that may have more ports than the two-level interface has: all of them work by FIFO, and those that there are by
/// two-level.
pub fn cases(cases: &mut Vec<Case>) {
    for (name, cmdline, interface) in
        [("fifo", "100 5000", "events.fifo"), ("two_level", "100 4000 domu.fifo=off", "events.two_level")]
    {
        cases.push(
            Case::new(format!("events::many_{name}"), "events", move |outcome| {
                all_ok(outcome, &["events.self", "events.bind", "events.many", "events.priority", interface])
            })
            .cmdline(cmdline)
            .line("max_event_channels = 6000"),
        );
    }
}
