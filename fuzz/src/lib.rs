//! Fuzz targets, for every place where a peer, Xen or the toolstack feeds a domain bytes.
//!
//! A target is a function of the input. The input decides what the domain does, and what is written into the memory that it
//! shares before each of its accesses there (see [`liar`]); a domain is booted for each input, which takes 50 µs, so that no
//! input depends on those before it. What must hold: no panic, nothing that the simulated Xen punishes, an end in bounded
//! time, and what the target itself asserts.
//!
//! `cargo xen fuzz` runs them under libFuzzer, guided by coverage; `tests/smoke.rs`, as a part of `cargo xen test`, with
//! the inputs in `corpus` and some that are made up.

mod block_front;
mod block_protocol;
mod boot;
mod clock;
mod console;
mod events;
mod grants;
mod hypercalls;
mod input;
mod liar;
mod options;
mod rings;
mod xenstore_client;
mod xenstore_wire;
mod xenstored;

use std::sync::{Mutex, PoisonError};

use domu::Domain;
use domu::lifecycle::Outcome;
use domu::sim::access::fuzz_peer;
use domu::sim::{Guest, Report};

pub use block_front::block_front;
pub use block_protocol::block_protocol;
pub use boot::boot;
pub use clock::clock;
pub use console::console;
pub use events::events;
pub use grants::grants;
pub use hypercalls::hypercalls;
pub use options::options;
pub use rings::{back_ring, front_ring};
pub use xenstore_client::xenstore_client;
pub use xenstore_wire::xenstore_wire;

/// A name, as in `corpus`, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 13] = [
    ("back_ring", back_ring),
    ("block_front", block_front),
    ("block_protocol", block_protocol),
    ("boot", boot),
    ("clock", clock),
    ("console", console),
    ("events", events),
    ("front_ring", front_ring),
    ("grants", grants),
    ("hypercalls", hypercalls),
    ("options", options),
    ("xenstore_client", xenstore_client),
    ("xenstore_wire", xenstore_wire),
];

/// Finds a target by its name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.0 == name)
}

/// One case at a time: the memory of all domains is freed after each.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a target with an input, and frees what it leaves.
pub fn run(target: &Target, bytes: &[u8]) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    target.1(bytes);
    // SAFETY: domains are run by targets alone, one target at a time, and none of them keeps anything of a domain's.
    unsafe { fuzz_peer::reclaim() };
}

/// Boots a guest whose surroundings may be hostile, and runs its main. It may end in any way but by a panic.
fn guest<O: Outcome, F: Future<Output = O>>(guest: Guest, main: impl FnOnce(Domain) -> F) -> Report {
    let report = guest.run(main);
    let debug = report.debug_text();
    assert!(!debug.contains("panicked"), "{debug}");
    report
}
