//! Tasks, timers and event channels on the simulated Xen: whole domains, with peers that the tests play.

mod events;
mod races;
mod tasks;
mod time;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use domu::Domain;
use domu::eventchn::Abi;
use domu::sim::{Guest, Report};

const MS: Duration = Duration::from_millis(1);

/// Both interfaces of Xen's event channels. Tests of what neither changes run on the usual one, FIFO.
const BOTH: [Abi; 2] = [Abi::TwoLevel, Abi::Fifo];

/// A guest on a Xen that has an interface at best.
fn on(abi: Abi) -> Guest {
    match abi {
        Abi::TwoLevel => Guest::new().without_fifo(),
        Abi::Fifo => Guest::new(),
        other => unreachable!("{other:?}"),
    }
}

/// Runs a guest whose main must come to its end.
fn run<F: Future<Output = domu::Result>>(guest: Guest, main: impl FnOnce(Domain) -> F) -> Report {
    guest.run(main).powered_off()
}

/// Tells when it is dropped.
struct Guard(Rc<Cell<bool>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(true);
    }
}
