//! Xen raising an event while the domain runs, a step at each place that a test chooses.
//!
//! On a real host a peer's event is raised by another processor: its steps fall anywhere between the domain's own
//! accesses to the pages that it shares with Xen. Here each access asks whether a step is due before it. A test that waits
//! once for every choice of places has seen all interleavings.

use std::vec::Vec;

use super::{Access, OBSERVERS, Observer};
use crate::sim::machine::evtchn_send::Raise;
pub use crate::sim::machine::evtchn_send::{FIFO_STEPS, TWO_LEVEL_STEPS};
use crate::sim::machine::{self, Machine};

/// An event on its way.
pub(super) struct Race {
    raise: Raise,
    /// Before which access of the domain's each step comes, of those that are still to come, the last one first.
    places: Vec<usize>,
    /// Accesses so far, but for those to the time record.
    accesses: usize,
    /// How many there had been when the domain halted while steps were left.
    halt: Option<usize>,
    /// The access before, and how often it came one after the other.
    last: Option<Access>,
    repeated: usize,
}

/// So many accesses to one field are a wait for the port that Xen has BUSY.
const SPINS: usize = 5;

/// Raises an event on a port of the domain that this thread runs, from now on: each step of Xen's comes before the access
/// of this number that the domain makes to its shared pages; what is left comes when it halts. The interface in force says
/// how many steps there are: [`TWO_LEVEL_STEPS`] or [`FIFO_STEPS`].
///
/// # Panics
///
/// Outside of a simulated domain, for what is no port, and while another race is under way.
pub fn begin(port: u32, places: &[usize]) {
    machine::with(|machine| assert!(machine.info.is_some(), "a domain that has booted"));
    let race = Race {
        raise: Raise::new(port),
        places: places.iter().rev().copied().collect(),
        accesses: 0,
        halt: None,
        last: None,
        repeated: 0,
    };
    let before = OBSERVERS.with(|observers| observers.race.replace(Some(race)));
    assert!(before.is_none(), "a race is under way");
}

/// Looks at the race, if there is one.
fn with<T>(look: impl FnOnce(&mut Race) -> T) -> Option<T> {
    OBSERVERS.with(|observers| {
        let mut race = observers.race.take()?;
        let result = look(&mut race);
        observers.race.set(Some(race));
        Some(result)
    })
}

/// Whether the event became one with another that was pending already.
#[must_use]
pub fn coalesced() -> bool {
    with(|race| race.raise.coalesced).unwrap_or(false)
}

/// The place of a step that comes when the domain halts.
pub const HALT: usize = usize::MAX;

/// How many accesses there had been when the domain halted while steps were left, if it has: a test that puts steps before
/// each of them, and at the [`HALT`], has tried all places that there are.
#[must_use]
pub fn before_halt() -> Option<usize> {
    with(|race| race.halt)?
}

impl Observer for Race {
    fn before(&mut self, access: Access) {
        machine::with(|machine| self.raise.watch(machine));
        self.repeated = if self.last.replace(access) == Some(access) { self.repeated + 1 } else { 1 };
        // A domain that waits for Xen sees its next step, whenever that was to come: to wait longer changes nothing.
        if self.repeated >= SPINS && self.raise.has_busy() {
            self.repeated = 0;
            self.places.pop();
            machine::with(|machine| self.raise.step(machine));
        }
        while self.places.pop_if(|place| *place <= self.accesses).is_some() {
            machine::with(|machine| self.raise.step(machine));
        }
        self.accesses += 1;
    }
}

impl Race {
    /// Does what is left.
    fn finish(&mut self, machine: &mut Machine) {
        self.places.clear();
        while self.raise.step(machine) {}
    }
}

/// A port is to be closed: Xen does what is left of its event first, as a lock of the port's has it do.
pub(in crate::sim) fn close(machine: &mut Machine, port: u32) {
    with(|race| {
        if race.raise.is_for(port) {
            race.finish(machine);
        }
    });
}

/// The domain halts: Xen does what is left.
pub(in crate::sim) fn halt(machine: &mut Machine) {
    with(|race| {
        if !race.raise.done {
            race.halt = Some(race.accesses);
        }
        race.finish(machine);
    });
}

/// Ends the race: Xen does what is left. Tells how many accesses there were.
#[must_use]
pub fn end() -> usize {
    OBSERVERS.with(|observers| observers.race.take()).map_or(0, |mut race| {
        machine::with(|machine| race.finish(machine));
        race.accesses
    })
}
