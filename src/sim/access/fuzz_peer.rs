//! Peers, and a Xen, that write what a fuzzer chooses into the memory that they share with a domain: between any two
//! accesses of the domain's.
//!
//! Only in the builds of `fuzz`, which set `--cfg fuzzing`: they run a domain a million times, so that they also have to
//! free what is `'static` in a unikernel.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::boxed::Box;

pub use super::Access;
use super::{OBSERVERS, Observer};
use crate::abi::event_channel::fifo::WORDS;
use crate::shared::SharedPage;
use crate::sim::machine::memory::STORE_FRAME;
use crate::sim::machine::{self, Machine, STORE_PORT};
use crate::xenstore::CONNECTION;

/// What a page is for, and with it who writes there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The page of shared information: two-level events, and the clock.
    SharedInfo,
    /// The console's rings.
    Console,
    /// The control block of FIFO events.
    Control,
    /// Words of FIFO events.
    Words,
    /// The page that is shared with xenstored.
    Xenstore,
    /// Another page, or memory of no domain.
    Other,
}

impl Access {
    /// What the page is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        machine::at_work(|machine| {
            let events = machine.events.fifo.as_ref();
            let is = |page: SharedPage| page.start() == self.start;
            match () {
                () if machine.info.is_some_and(is) => Kind::SharedInfo,
                () if machine.reader.as_ref().is_some_and(|reader| is(reader.page())) => Kind::Console,
                () if events.is_some_and(|fifo| is(fifo.control())) => Kind::Control,
                () if events.is_some_and(|fifo| fifo.words().iter().copied().any(is)) => Kind::Words,
                () if store_page(machine) == Some(self.start) => Kind::Xenstore,
                () => Kind::Other,
            }
        })
        .unwrap_or(Kind::Other)
    }

    /// Reads the word that a byte of the page lies in.
    #[must_use]
    pub fn load(&self, offset: usize) -> u32 {
        unseen(|| self.page().u32(Self::word(offset)).load(Ordering::SeqCst))
    }

    /// Overwrites the word that a byte of the page lies in.
    pub fn store(&self, offset: usize, value: u32) {
        unseen(|| self.page().u32(Self::word(offset)).store(value, Ordering::SeqCst));
    }

    /// The first page of the memory.
    fn page(&self) -> SharedPage {
        // SAFETY: the domain has the memory, which it accesses by atomics, and may not be asked about later than it is:
        // see `reclaim`.
        unsafe { SharedPage::new(self.start, 1) }
    }

    const fn word(offset: usize) -> usize {
        offset % (4 * WORDS) / 4 * 4
    }
}

/// Whether the domain that this thread runs has booted.
#[must_use]
pub fn is_booted() -> bool {
    crate::local::current().is_some()
}

/// The page of the console's rings of the domain that this thread runs.
#[must_use]
pub fn console() -> Option<Access> {
    let page =
        machine::at_work(|machine| machine.reader.as_ref().map(crate::sim::backends::console::Reader::page)).flatten();
    page.map(|page| Access { start: page.start(), offset: 0 })
}

/// Where the page that a domain shares with xenstored is.
fn store_page(machine: &Machine) -> Option<NonNull<u8>> {
    machine.memory.ram(STORE_FRAME << 12).filter(|_| machine.store.is_some())
}

/// The page that the domain that this thread runs shares with xenstored, and the port by which it is told of replies: for a
/// target that is the server itself, while the store is [stopped](super::Store::stop).
#[must_use]
pub fn xenstore() -> Option<(Access, u32)> {
    let start = machine::at_work(|machine| store_page(machine)).flatten()?;
    Some((Access { start, offset: 0 }, STORE_PORT))
}

/// Whether the client of xenstore keeps nothing: no request, no answer, no transaction, no watch.
#[must_use]
pub fn xenstore_is_clean() -> bool {
    crate::local::current().is_some_and(|state| CONNECTION.of(state).is_clean())
}

/// What a fuzzer does before an access.
pub(super) struct Peer(Box<dyn FnMut(&Access)>);

impl Observer for Peer {
    fn before(&mut self, access: Access) {
        (self.0)(&access);
    }
}

/// Has a peer look, and write, before each access to shared memory that the code on this thread makes, until
/// [`reclaim`].
pub fn at_each_access(peer: impl FnMut(&Access) + 'static) {
    drop(set(Some(Peer(Box::new(peer)))));
}

/// Raises an event on a port of the domain that this thread runs, as a peer does.
pub fn notify(port: u32) {
    let _ = machine::at_work(|machine| machine.raise(port));
}

/// Puts a peer in the place of the one before.
fn set(peer: Option<Peer>) -> Option<Peer> {
    OBSERVERS.with(|observers| observers.fuzz_peer.replace(peer))
}

/// Makes accesses that the peer does not act before.
fn unseen<T>(access: impl FnOnce() -> T) -> T {
    let peer = set(None);
    let result = access();
    drop(set(peer));
    result
}

/// Sends the peer of this thread away, and frees the memory and the states of all domains that have ended.
///
/// # Safety
///
/// No simulated domain is running in the process, and nothing that is `'static` of one that has ended is used any more.
pub unsafe fn reclaim() {
    drop(set(None));
    // SAFETY: passed on from the caller.
    unsafe {
        crate::local::reclaim();
        crate::sim::machine::memory::reclaim();
    }
}
