//! Xen raising an event while the domain runs, a step at each place that a test chooses.
//!
//! On a real host a peer's event is raised by another processor: its steps fall anywhere between the domain's own
//! accesses to the pages that it shares with Xen. Here each access asks whether a step is due before it. A test that waits
//! once for every choice of places has seen all interleavings.

use core::ptr::NonNull;
use std::cell::RefCell;
use std::vec::Vec;

use crate::abi::xen::shared_info::VCPU_TIME;
use crate::abi::xen::vcpu_time_info::TSC_SHIFT;
use crate::sim::machine::evtchn_send::Raise;
pub use crate::sim::machine::evtchn_send::{FIFO_STEPS, TWO_LEVEL_STEPS};
use crate::sim::machine::{self, Machine};

/// An event on its way.
struct Race {
    raise: Raise,
    /// Before which access of the domain's each step comes, of those that are still to come, the last one first.
    places: Vec<usize>,
    /// Accesses so far, but for those to the time record.
    accesses: usize,
    /// How many there had been when the domain halted while steps were left.
    halt: Option<usize>,
    /// The field that was accessed last, and how often one after the other.
    last: Option<(NonNull<u8>, usize)>,
    repeated: usize,
}

/// So many accesses to one field are a wait for the port that Xen has BUSY.
const SPINS: usize = 5;

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
    RACE.set(Some(Race {
        raise: Raise::new(port),
        places: places.iter().rev().copied().collect(),
        accesses: 0,
        halt: None,
        last: None,
        repeated: 0,
    }));
}

/// Whether the event became one with another that was pending already.
#[must_use]
pub fn coalesced() -> bool {
    RACE.with_borrow(|race| race.as_ref().is_some_and(|race| race.raise.coalesced))
}

/// The place of a step that comes when the domain halts.
pub const HALT: usize = usize::MAX;

/// How many accesses there had been when the domain halted while steps were left, if it has: a test that puts steps before
/// each of them, and at the [`HALT`], has tried all places that there are.
#[must_use]
pub fn before_halt() -> Option<usize> {
    RACE.with_borrow(|race| race.as_ref()?.halt)
}

/// The domain accesses a field of shared memory that begins here.
pub(crate) fn access(start: NonNull<u8>, offset: usize) {
    // Not while the simulated machine itself is at it.
    if machine::is_busy() {
        return;
    }
    crate::sim::access::shared_pages::access(start, offset);
    #[cfg(fuzzing)]
    crate::sim::access::fuzz_peer::access(start, offset);
    if !crate::sim::scheduler::step() {
        return;
    }
    // Reads of the clock are many, and have no part in an event.
    let is_time = (VCPU_TIME..=VCPU_TIME + TSC_SHIFT).contains(&offset);
    if is_time && machine::with(|machine| machine.info.is_some_and(|info| info.start() == start)) {
        return;
    }
    #[cfg(test)]
    script::access();
    RACE.with(|race| {
        let Ok(mut race) = race.try_borrow_mut() else { return };
        let Some(race) = race.as_mut() else { return };
        machine::with(|machine| race.raise.watch(machine));
        let same = race.last.replace((start, offset)) == Some((start, offset));
        race.repeated = if same { race.repeated + 1 } else { 1 };
        // A domain that waits for Xen sees its next step, whenever that was to come: to wait longer changes nothing.
        if race.repeated >= SPINS && race.raise.has_busy() {
            race.repeated = 0;
            race.places.pop();
            machine::with(|machine| race.raise.step(machine));
        }
        while race.places.pop_if(|place| *place <= race.accesses).is_some() {
            machine::with(|machine| race.raise.step(machine));
        }
        race.accesses += 1;
    });
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
    RACE.with_borrow_mut(|race| {
        if let Some(race) = race.as_mut().filter(|race| race.raise.is_for(port)) {
            race.finish(machine);
        }
    });
}

/// The domain halts: Xen does what is left.
pub(in crate::sim) fn halt(machine: &mut Machine) {
    RACE.with_borrow_mut(|race| {
        if let Some(race) = race {
            if !race.raise.done {
                race.halt = Some(race.accesses);
            }
            race.finish(machine);
        }
    });
}

/// Ends the race: Xen does what is left. Tells how many accesses there were.
#[must_use]
pub fn end() -> usize {
    RACE.take().map_or(0, |mut race| {
        machine::with(|machine| race.finish(machine));
        race.accesses
    })
}

/// What a peer does meanwhile, at places that a test chooses.
#[cfg(test)]
pub(crate) mod script {
    use std::cell::RefCell;
    use std::vec::Vec;

    use crate::sim::machine::events::Action;
    use crate::sim::outside;

    /// Accesses so far, and what comes before which.
    type Script = (usize, Vec<(usize, Action)>);

    std::thread_local! {
        static SCRIPT: RefCell<Option<Script>> = const { RefCell::new(None) };
    }

    /// Has each of these done before the access of its number that the domain makes to shared pages, from now on.
    pub(crate) fn begin(acts: Vec<(usize, Action)>) {
        SCRIPT.set(Some((0, acts)));
    }

    /// How many accesses there have been, and what was to come later.
    pub(crate) fn end() -> Script {
        SCRIPT.take().unwrap_or_default()
    }

    /// The domain is about to access a shared page.
    pub(in crate::sim) fn access() {
        // What is done here has accesses of its own.
        let Some((count, acts)) = SCRIPT.take() else { return };
        let (now, later) = acts.into_iter().partition(|(place, _)| *place <= count);
        let now: Vec<_> = now;
        now.into_iter().for_each(|(_, act)| outside(act));
        SCRIPT.set(Some((count + 1, later)));
    }
}
