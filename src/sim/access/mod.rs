//! The hook before each access to shared memory, and its observers: peers that act between any two accesses.
//!
//! `shared` calls `before` with every word that is read or written. An `Observer` is not told of the accesses that
//! it makes itself.

#[cfg(fuzzing)]
pub mod fuzz_peer;
pub mod interleave;
#[cfg(test)]
pub(crate) mod script;
pub(super) mod shared_pages;

use core::cell::Cell;
use core::ptr::NonNull;

use crate::abi::xen::shared_info::VCPU_TIME;
use crate::abi::xen::vcpu_time_info::TSC_SHIFT;
use crate::sim::{machine, scheduler};

/// An access that the code on this thread is about to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Where the shared memory begins.
    start: NonNull<u8>,
    /// The place of the word in it, in bytes.
    offset: usize,
}

impl Access {
    /// Where in the memory the word lies.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Whether the word is one of the clock's, in the page of shared information.
    fn is_clock(self) -> bool {
        (VCPU_TIME..=VCPU_TIME + TSC_SHIFT).contains(&self.offset)
            && machine::with(|machine| machine.info.is_some_and(|info| info.start() == self.start))
    }
}

/// Acts before accesses.
trait Observer {
    /// The access comes next.
    fn before(&mut self, access: Access);
}

/// The place of an observer. It is empty while the observer acts.
type Place<T> = Cell<Option<T>>;

/// The observers of a thread, one of each kind.
struct Observers {
    /// A test of memory that belongs to no domain.
    pages: Place<shared_pages::Watch>,
    /// A fuzzer.
    #[cfg(fuzzing)]
    fuzz_peer: Place<fuzz_peer::Peer>,
    /// Acts of a unit test at chosen places.
    #[cfg(test)]
    script: Place<script::Script>,
    /// An event on its way.
    race: Place<interleave::Race>,
}

std::thread_local! {
    static OBSERVERS: Observers = const {
        Observers {
            pages: Cell::new(None),
            #[cfg(fuzzing)]
            fuzz_peer: Cell::new(None),
            #[cfg(test)]
            script: Cell::new(None),
            race: Cell::new(None),
        }
    };
}

/// The code on this thread is about to access a word of shared memory.
pub(crate) fn before(start: NonNull<u8>, offset: usize) {
    // The simulated machine's own accesses are not the domain's.
    if machine::is_busy() {
        return;
    }
    let access = Access { start, offset };
    OBSERVERS.with(|observers| {
        tell(&observers.pages, access);
        #[cfg(fuzzing)]
        tell(&observers.fuzz_peer, access);
        // The others observe a domain, but not its clock, which is read often and has no part in an event.
        if !scheduler::step() || access.is_clock() {
            return;
        }
        #[cfg(test)]
        tell(&observers.script, access);
        tell(&observers.race, access);
    });
}

/// Lets an observer act, if there is one.
fn tell<T: Observer>(place: &Place<T>, access: Access) {
    if let Some(mut observer) = place.take() {
        observer.before(access);
        place.set(Some(observer));
    }
}
