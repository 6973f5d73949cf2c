//! Suspend and resume, on the simulated Xen, which lets the domain go on in another that is told from the old one by whoever
//! looks: see its module of that name.
//!
//! Under Miri two tests run: in one each kind of thing is made, lost and made again; in the other a workload is suspended.

#![cfg_attr(miri, allow(dead_code, unused_imports, reason = "for the tests that Miri does not run"))]

#[cfg(not(miri))]
mod again;
mod boundaries;
#[cfg(not(miri))]
mod clocks;
#[cfg(not(miri))]
mod limit;
mod old_things;
#[cfg(not(miri))]
mod quiesce;
#[cfg(not(miri))]
mod requests;

use std::time::Duration;

use domu::sim::{Guest, Store};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SHUTDOWN: &str = "/local/domain/7/control/shutdown";

/// A domain of number 7 that does as the toolstack says.
fn obedient(store: &Store) -> Guest {
    Guest::new().xenstore(store).obedient()
}
