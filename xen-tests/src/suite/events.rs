//! Event channels, time and the executor on real Xen, straight under it.
//!
//! Not as a domain of `xl`'s: QEMU 7.2 emulates two processors with two threads, and after some ten thousand pending events
//! it has been seen to put the hypervisor's own registers into the guest's state, which Xen reports as a triple fault.

use anyhow::{Result, ensure};

use crate::lab::domain::Reason;
use crate::lab::smoke::Ended;

/// What the guest must have said.
const CASES: [&str; 8] =
    ["events.self", "events.bind", "events.many", "time.sleep", "time.order", "time.busy", "time.wall", "idle.halts"];

/// Events that it sends itself.
pub const EVENTS: &str = "1000";

/// It says `@ok` for all of its cases, and powers off.
pub fn judge(ended: &Ended) -> Result<()> {
    for case in CASES {
        ensure!(ended.serial.lines().any(|line| line.ends_with(&format!("@ok {case}"))), "it does not say @ok {case}");
    }
    ensure!(!ended.serial.contains("@fail"), "it says @fail");
    ensure!(ended.reason == Some(Reason::Poweroff), "it ended with {:?}", ended.reason);
    Ok(())
}
