//! Xen raising an event while the domain runs, a step at each place that a test chooses.
//!
//! On a real host a peer's event is raised by another processor: its steps fall anywhere between the domain's own
//! accesses to the pages that it shares with Xen. Here each access asks whether a step is due before it. A test that waits
//! once for every choice of places has seen all interleavings.

use std::cell::RefCell;
use std::vec::Vec;

use super::machine::{self, Machine};
use super::raise::Raise;
pub use super::raise::{FIFO_STEPS, TWO_LEVEL_STEPS};

/// An event on its way.
struct Race {
    raise: Raise,
    /// Before which access of the domain's each step comes, of those that are still to come, the last one first.
    places: Vec<usize>,
    /// Accesses so far.
    accesses: usize,
}

std::thread_local! {
    static RACE: RefCell<Option<Race>> = const { RefCell::new(None) };
}

/// Raises an event on a port of the domain that this thread runs, from now on: each step of Xen's comes before the access
/// of this number that the domain makes to its shared pages; what is left comes when it halts. The interface in force says
/// how many steps there are: [`TWO_LEVEL_STEPS`] or [`FIFO_STEPS`].
///
/// # Panics
///
/// Outside of a simulated domain, for what is no port, and while another race is under way.
pub fn begin(port: u32, places: &[usize]) {
    machine::with(|machine| assert!(machine.info.is_some(), "a domain that has booted"));
    assert!(RACE.with_borrow(Option::is_none), "a race is under way");
    RACE.set(Some(Race { raise: Raise::new(port), places: places.iter().rev().copied().collect(), accesses: 0 }));
}

/// Whether the event became one with another that was pending already.
#[must_use]
pub fn coalesced() -> bool {
    RACE.with_borrow(|race| race.as_ref().is_some_and(|race| race.raise.coalesced))
}

/// The domain accesses a shared page.
pub(crate) fn access() {
    // Not while the simulated machine itself is at it.
    if !super::baton::step() {
        return;
    }
    RACE.with(|race| {
        let Ok(mut race) = race.try_borrow_mut() else { return };
        let Some(race) = race.as_mut() else { return };
        machine::with(|machine| race.raise.watch(machine));
        while race.places.pop_if(|place| *place <= race.accesses).is_some() {
            machine::with(|machine| race.raise.step(machine));
        }
        race.accesses += 1;
    });
}

/// The domain halts: Xen does what is left.
pub(super) fn finish(machine: &mut Machine) {
    RACE.with_borrow_mut(|race| {
        if let Some(race) = race {
            race.places.clear();
            while race.raise.step(machine) {}
        }
    });
}

/// Ends the race: Xen does what is left. Tells how many accesses there were.
#[must_use]
pub fn end() -> usize {
    machine::with(finish);
    RACE.take().map_or(0, |race| race.accesses)
}
