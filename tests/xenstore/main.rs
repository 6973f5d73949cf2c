//! The xenstore client, on the simulated Xen and its xenstored.
//!
//! Under Miri each takes ten seconds and more, most of them the boot and the server: a few show that nothing is wrong with the
//! shared page. The client's own parts have their tests beside them.

#![cfg_attr(miri, allow(dead_code, reason = "for the tests that Miri does not run"))]

#[cfg(not(miri))]
mod dropped;
#[cfg(not(miri))]
mod faults;
#[cfg(not(miri))]
mod flapping;
#[cfg(not(miri))]
mod listings;
#[cfg(not(miri))]
mod mixed;
mod nodes;
#[cfg(not(miri))]
mod queue;
#[cfg(not(miri))]
mod transactions;
#[cfg(not(miri))]
mod watches;

use std::time::Duration;

use domu::Domain;
use domu::lifecycle::Reason;
use domu::sim::abi::xs_wire::MessageType;
use domu::sim::{End, Guest, Report, Store};
use domu::xenstore::Names;

/// The number of the simulated domain.
const ME: u16 = 7;
const MS: Duration = Duration::from_millis(1);

/// Runs a domain that is to end well.
fn run<F: Future<Output = domu::Result>>(store: &Store, main: impl FnOnce(Domain) -> F) -> Report {
    run_guest(Guest::new().xenstore(store), main)
}

fn run_guest<F: Future<Output = domu::Result>>(guest: Guest, main: impl FnOnce(Domain) -> F) -> Report {
    let report = guest.run(main);
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}{}", report.debug_text(), report.console_text());
    report
}

/// How often a type of request has come whole.
fn count(store: &Store, ty: MessageType) -> usize {
    store.log().iter().filter(|(_, known, _)| *known == ty).count()
}

/// How often the server was notified.
fn notifications(report: &Report) -> usize {
    const SEND: u64 = 4;
    report.hypercalls.iter().filter(|&&(call, operation)| call as u32 == 32 && operation == SEND).count()
}

/// The names of a listing, sorted.
fn sorted(names: &Names) -> Vec<&str> {
    let mut names: Vec<&str> = names.iter().collect();
    names.sort_unstable();
    names
}

/// A number that looks random.
fn number(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 8) as usize
}
