//! The scheduler of a simulated host: one domain runs at a time.
//!
//! Each domain has a thread, but one of them runs at a time: the one whose turn it is. It passes the turn on when it
//! waits, when it ends, and, as a virtual CPU that is preempted, when its slice of steps is used up: hypercalls, and
//! accesses to pages that are shared. So a run depends on nothing but the domains and the seed.
//!
//! The machines of those that do not run are parked here, where the one that runs reaches them ([`Slot::peer`]), and where
//! their clocks are one: it moves as the domain that runs takes time, and, when all of them wait, to the earliest thing
//! that will happen to any.

pub(super) mod host;

use core::fmt;
use std::boxed::Box;
use std::format;
use std::panic::resume_unwind;
use std::string::String;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::panicking;
use std::vec::Vec;

use crate::sim::machine::{self, Machine, START_NS, with};

/// What a step takes on a host's clock.
const STEP_NS: u64 = 100;

/// Steps after which a domain without a seed loses the turn.
const SLICE: u32 = 1000;

/// Steps that a domain has to come to a halt when the test has failed. Most drop what they have before; unwinding them at
/// the next step could be in the middle of that, which aborts the process if a task is being dropped.
const GRACE: u32 = 1_000;

/// What a domain without the turn waits for.
#[derive(Clone, Debug)]
pub(in crate::sim) enum Wait {
    /// The turn.
    Turn,
    /// An event: it halts.
    Halt,
    /// An event on one of some ports, masked or not, or a moment.
    Poll { ports: Vec<u32>, deadline_ns: Option<u64> },
}

impl Wait {
    /// Whether what is waited for is there.
    fn is_over(&self, machine: &Machine) -> bool {
        match self {
            Self::Turn => true,
            Self::Halt => machine.upcall_pending(),
            Self::Poll { ports, deadline_ns } => {
                machine.any_pending(ports) || deadline_ns.is_some_and(|deadline| deadline <= machine.clock_ns)
            }
        }
    }

    /// When the next thing happens to who waits.
    fn next(&self, machine: &Machine) -> Option<u64> {
        let deadline = if let Self::Poll { deadline_ns, .. } = self { *deadline_ns } else { None };
        machine.next().into_iter().chain(deadline).min()
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turn => f.write_str("runs"),
            Self::Halt => f.write_str("halts without a timer"),
            Self::Poll { ports, .. } => write!(f, "polls {ports:?} without a deadline"),
        }
    }
}

/// A domain's place among those of a host.
pub(crate) struct Slot {
    scheduler: Arc<Scheduler>,
    index: usize,
    /// Steps that are left of the slice.
    steps: u32,
}

/// What the threads of a host share.
pub(in crate::sim) struct Scheduler {
    inner: Mutex<Inner>,
    /// One for each domain: it has the turn, or the test has failed.
    turns: Vec<Condvar>,
}

struct Inner {
    places: Vec<Place>,
    /// The time when a domain last gave the turn away.
    clock_ns: u64,
    /// Who has the turn.
    turn: Option<usize>,
    /// The state of the generator that chooses, if it is not simply one after the other.
    random: Option<u64>,
    /// Why the test has failed.
    failure: Option<String>,
}

struct Place {
    number: u16,
    /// The machine of a domain that does not run; none when it has ended.
    machine: Option<Machine>,
    wait: Wait,
}

/// A place where a domain may lose the turn. Says whether one is at work here, not the machine itself.
pub(in crate::sim) fn step() -> bool {
    let over = machine::at_work(|machine| {
        let Some(slot) = &mut machine.slot else { return false };
        machine.clock_ns += STEP_NS;
        slot.steps = slot.steps.saturating_sub(1);
        slot.steps == 0
    });
    if over == Some(true) && !panicking() {
        pass(&Wait::Turn);
        with(Machine::catch_up);
    }
    over.is_some()
}

/// Lets time pass, and the other domains run, until what is waited for is there.
///
/// # Panics
///
/// If nothing will happen any more: the domain would sleep for ever.
pub(in crate::sim) fn wait(wait: &Wait) {
    loop {
        let (over, alone) = with(|machine| {
            machine.catch_up();
            (wait.is_over(machine), machine.slot.is_none() || panicking())
        });
        match (over, alone) {
            (true, _) => return,
            (false, false) => pass(wait),
            (false, true) => with(|machine| {
                let next = wait.next(machine).expect("the domain sleeps for ever");
                machine.clock_ns = machine.clock_ns.max(next);
            }),
        }
    }
}

/// Gives the turn away, until it comes back.
fn pass(wait: &Wait) {
    let machine = machine::take_off();
    let slot = machine.slot.as_ref().expect("a domain of a host");
    let (scheduler, index) = (Arc::clone(&slot.scheduler), slot.index);
    let had_failed = scheduler.has_failed();
    machine::put_on(if had_failed {
        machine
    } else {
        scheduler.park(index, machine, wait.clone());
        scheduler.next();
        scheduler.take(index)
    });
    // The test has failed: the domain is left, but one that does not wait has some steps first.
    if had_failed || scheduler.has_failed() && !matches!(wait, Wait::Turn) {
        resume_unwind(Box::new("the test has failed"));
    }
}

impl Slot {
    /// Gives the domain another number.
    pub(in crate::sim) fn renumber(&self, number: u16) {
        self.scheduler.lock().places[self.index].number = number;
    }

    /// Does something to another domain, unless there is none of that number, or no more.
    pub(in crate::sim) fn peer<T>(&self, number: u16, act: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        let mut inner = self.scheduler.lock();
        // Numbers differ: this finds no more than one, and not the caller's own, whose machine is not parked.
        let place = inner.places.iter_mut().find(|place| place.number == number)?;
        place.machine.as_mut().map(act)
    }
}

impl Scheduler {
    /// Parks the machines of domains, by number.
    pub(in crate::sim) fn new(machines: Vec<(u16, Machine)>, seed: Option<u64>) -> Arc<Self> {
        let turns = machines.iter().map(|_| Condvar::new()).collect();
        let places =
            machines.into_iter().map(|(number, machine)| Place { number, machine: Some(machine), wait: Wait::Turn });
        let inner = Inner { places: places.collect(), clock_ns: START_NS, turn: None, random: seed, failure: None };
        let scheduler = Arc::new(Self { inner: Mutex::new(inner), turns });
        for (index, place) in scheduler.lock().places.iter_mut().enumerate() {
            let slot = Slot { scheduler: Arc::clone(&scheduler), index, steps: 0 };
            place.machine.as_mut().expect("just parked").slot = Some(slot);
        }
        scheduler
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    /// Why the test has failed.
    pub(in crate::sim) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    fn park(&self, index: usize, machine: Machine, wait: Wait) {
        let mut inner = self.lock();
        inner.clock_ns = machine.clock_ns;
        inner.places[index].machine = Some(machine);
        inner.places[index].wait = wait;
    }

    /// Gives the turn to a domain that can run.
    pub(in crate::sim) fn next(&self) {
        let mut inner = self.lock();
        match inner.choose() {
            Ok(turn) => {
                inner.turn = turn;
                drop(inner);
                if let Some(turn) = turn {
                    self.turns[turn].notify_one();
                }
            }
            Err(failure) => {
                drop(inner);
                self.fail(failure);
            }
        }
    }

    /// Waits for the turn, or for the failure of the test, and takes the machine.
    pub(in crate::sim) fn take(&self, index: usize) -> Machine {
        let inner = self.lock();
        let waits = |inner: &mut Inner| inner.turn != Some(index) && inner.failure.is_none();
        let mut inner = self.turns[index].wait_while(inner, waits).unwrap_or_else(PoisonError::into_inner);
        let steps = if inner.failure.is_none() { inner.slice() } else { GRACE };
        let mut machine = inner.places[index].machine.take().expect("who waits is parked");
        machine.clock_ns = machine.clock_ns.max(inner.clock_ns);
        if let Some(slot) = &mut machine.slot {
            slot.steps = steps;
        }
        machine
    }

    /// A domain has ended: another one has the turn.
    pub(in crate::sim) fn end(&self, elapsed_ns: u64) {
        self.lock().clock_ns = START_NS + elapsed_ns;
        self.next();
    }

    /// The test has failed; the first reason is the one that counts.
    pub(in crate::sim) fn fail(&self, reason: String) {
        self.lock().failure.get_or_insert(reason);
        self.turns.iter().for_each(Condvar::notify_one);
    }
}

impl Inner {
    /// Who runs next: nobody if all have ended. An error is the failure of the test.
    fn choose(&mut self) -> Result<Option<usize>, String> {
        loop {
            let ready: Vec<usize> = (0..self.places.len()).filter(|&index| self.can_run(index)).collect();
            if !ready.is_empty() {
                let after_last = ready.iter().position(|&index| Some(index) > self.turn).unwrap_or(0);
                let chosen = self.random().map_or(after_last, |bits| bits as usize % ready.len());
                return Ok(Some(ready[chosen]));
            }
            let parked = || self.places.iter().filter_map(|place| Some((place, place.machine.as_ref()?)));
            if parked().next().is_none() {
                return Ok(None);
            }
            let Some(next) = parked().filter_map(|(place, machine)| place.wait.next(machine)).min() else {
                let who = parked().map(|(place, _)| format!("domain {} {}", place.number, place.wait));
                return Err(format!("the domains sleep for ever: {}", who.collect::<Vec<_>>().join(", ")));
            };
            self.clock_ns = self.clock_ns.max(next);
        }
    }

    /// Whether something has come that a domain waits for, or happens to it now.
    fn can_run(&self, index: usize) -> bool {
        let Place { machine, wait, .. } = &self.places[index];
        machine.as_ref().is_some_and(|machine| {
            wait.is_over(machine) || wait.next(machine).is_some_and(|next| next <= self.clock_ns)
        })
    }

    /// How many steps the domain may do: with a seed short slices are as likely as long ones.
    fn slice(&mut self) -> u32 {
        let Some(bits) = self.random() else { return SLICE };
        1 + (bits >> 8) as u32 % (1 << (bits % 8))
    }

    /// The next number of the generator, if there is one: splitmix64.
    fn random(&mut self) -> Option<u64> {
        let state = self.random.as_mut()?;
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(mixed ^ mixed >> 31)
    }
}
