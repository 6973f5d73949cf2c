//! Xen raising an event while the domain runs, a step at each place that a test chooses.
//!
//! On a real host a peer's event is raised by another processor: its steps fall anywhere between the domain's own
//! accesses to the page of shared information. Here each access asks whether a step is due before it. A test that waits
//! once for every choice of places has seen all interleavings.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::cell::RefCell;

use crate::abi::event_channel::TWO_LEVEL_PORTS;
use crate::abi::xen::shared_info::{MASK, PENDING, PENDING_SELECTOR, UPCALL_PENDING};

/// Steps in which Xen raises an event: it sets the pending bit; looks at the mask; sets the word's bit in the selector;
/// sets upcall_pending. An earlier step may find that there is nothing more to do.
pub const STEPS: usize = 4;

/// An event on its way.
struct Race {
    page: NonNull<u8>,
    port: u32,
    /// Before which access of the domain's each step comes.
    places: [usize; STEPS],
    next: usize,
    /// Accesses so far.
    accesses: usize,
    /// The port was pending already when the event came.
    coalesced: bool,
}

std::thread_local! {
    static RACE: RefCell<Option<Race>> = const { RefCell::new(None) };
}

impl Race {
    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the offsets are those of words in the page of shared information, as `begin` has looked at the port; it
        // lives as long as the process and is accessed by atomics only.
        unsafe { AtomicU64::from_ptr(self.page.as_ptr().add(offset).cast()) }
    }

    fn step(&mut self) {
        let (word, bit) = (self.port as usize / 64, 1_u64 << (self.port % 64));
        let done = match self.next {
            0 => {
                self.coalesced = self.word(PENDING + 8 * word).fetch_or(bit, Ordering::SeqCst) & bit != 0;
                self.coalesced
            }
            1 => self.word(MASK + 8 * word).load(Ordering::SeqCst) & bit != 0,
            2 => self.word(PENDING_SELECTOR).fetch_or(1 << word, Ordering::SeqCst) & 1 << word != 0,
            _ => {
                // SAFETY: as for words; this is a byte.
                let upcall = unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(UPCALL_PENDING)) };
                upcall.store(1, Ordering::SeqCst);
                true
            }
        };
        self.next = if done { STEPS } else { self.next + 1 };
    }
}

/// Raises an event on a port of the domain that this thread runs, from now on: each step of Xen's comes before the access
/// of this number that the domain makes to its shared information; what is left comes when it halts.
///
/// # Panics
///
/// Outside of a simulated domain, for what is no port, and while another race is under way.
pub fn begin(port: u32, places: [usize; STEPS]) {
    let page = super::machine::with(|machine| machine.info.as_ref().expect("a domain that has booted").address());
    assert!(port < TWO_LEVEL_PORTS, "no such port: {port}");
    assert!(RACE.with_borrow(Option::is_none), "a race is under way");
    RACE.set(Some(Race { page, port, places, next: 0, accesses: 0, coalesced: false }));
}

/// Whether the event became one with another that was pending already.
#[must_use]
pub fn coalesced() -> bool {
    RACE.with_borrow(|race| race.as_ref().is_some_and(|race| race.coalesced))
}

/// The domain accesses a page.
pub(crate) fn access(page: NonNull<u8>) {
    // Not while the simulated machine itself is at it.
    if !super::baton::step() {
        return;
    }
    RACE.with(|race| {
        let Ok(mut race) = race.try_borrow_mut() else { return };
        let Some(race) = race.as_mut().filter(|race| race.page == page) else { return };
        while race.next < STEPS && race.places[race.next] <= race.accesses {
            race.step();
        }
        race.accesses += 1;
    });
}

/// The domain halts: Xen does what is left.
pub(super) fn finish() {
    RACE.with_borrow_mut(|race| {
        if let Some(race) = race {
            while race.next < STEPS {
                race.step();
            }
        }
    });
}

/// Ends the race: Xen does what is left. Tells how many accesses there were.
#[must_use]
pub fn end() -> usize {
    finish();
    RACE.take().map_or(0, |race| race.accesses)
}
