//! Which ports have fired, by whichever of Xen's two interfaces, and letting them fire again.

use spin::Once;

use super::fifo::Fifo;
use super::{ErrorKind, Priority, two_level};
use crate::abi::errno::Errno;
use crate::abi::event_channel::{TWO_LEVEL_PORTS, fifo};
use crate::local;
use crate::local::domain_local;
use crate::shared::SharedInfo;
use crate::sync::Held;

domain_local! {
    /// The interface by which Xen delivers events.
    pub(crate) static DELIVERY: Delivery;
}

/// The interface by which Xen delivers events.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Abi {
    /// A bit for each port; all Xens have it.
    TwoLevel,
    /// Queues of ports, with priorities.
    #[doc(alias = "EVTCHNOP_init_control")]
    Fifo,
}

impl Abi {
    /// Numbers of ports that the interface has. Port 0 is none, and the toolstack may allow the domain fewer.
    #[must_use]
    pub const fn ports(self) -> u32 {
        match self {
            Self::TwoLevel => TWO_LEVEL_PORTS,
            Self::Fifo => fifo::PORTS,
        }
    }
}

/// The interface in force: chosen when the domain first needs a port, two-level until then.
#[must_use]
pub fn abi() -> Abi {
    local::current().map_or(Abi::TwoLevel, |state| DELIVERY.of(state).abi())
}

/// The delivery of a domain's events.
#[derive(Debug)]
pub(crate) struct Delivery {
    wants_fifo: bool,
    /// What was chosen; none for two-level.
    fifo: Once<Option<Fifo>>,
}

impl Delivery {
    /// Begins with the two-level interface, as every domain does.
    pub(crate) const fn new(wants_fifo: bool) -> Self {
        Self { wants_fifo, fifo: Once::new() }
    }

    fn fifo(&self) -> Option<&Fifo> {
        self.fifo.get()?.as_ref()
    }

    fn abi(&self) -> Abi {
        if self.fifo().is_some() { Abi::Fifo } else { Abi::TwoLevel }
    }

    /// Chooses the interface, before the first port is bound: the better one, if Xen has it.
    pub(crate) fn choose(&self) {
        // It takes memory: the handler for exhausted memory must not come back here.
        let _held = Held::new();
        self.fifo.call_once(|| if self.wants_fifo { Fifo::start() } else { None });
        // Ports that the toolstack made have their words from here on. Not part of the call above: the domain may end in
        // between, and polls its console by what has been chosen. A refusal is told to who binds a port.
        let _ = self.fifo().map(|fifo| fifo.add_pages(0));
    }

    /// Chooses the same interface again, after a resume with the other in force and all ports masked.
    ///
    /// # Errors
    ///
    /// As Xen refuses it: there is no way back then.
    pub(crate) fn resume(&self) -> Result<(), Errno> {
        self.fifo().map_or(Ok(()), Fifo::resume)
    }

    /// Makes room for a port that was bound, and is masked.
    pub(crate) fn reserve(&self, port: u32) -> Result<(), ErrorKind> {
        let _held = Held::new();
        self.fifo().map_or(Ok(()), |fifo| fifo.reserve(port))
    }

    /// Keeps events on a port from being taken.
    pub(super) fn mask(&self, info: &SharedInfo, port: u32) {
        match self.fifo() {
            Some(fifo) => fifo.mask(port),
            None => two_level::mask(info, port),
        }
    }

    /// Lets events on a port be taken. One that came meanwhile is taken in the next turn.
    pub(crate) fn unmask(&self, info: &SharedInfo, port: u32) {
        match self.fifo() {
            Some(fifo) => fifo.unmask(info, port),
            None => two_level::unmask(info, port),
        }
    }

    /// Forgets that a port is pending, so that the next event on it can be noticed.
    pub(super) fn clear_pending(&self, info: &SharedInfo, port: u32) {
        match self.fifo() {
            Some(fifo) => fifo.clear_pending(port),
            None => two_level::clear_pending(info, port),
        }
    }

    /// Hands on the ports that have fired: they are masked. The cost follows their number.
    pub(super) fn take(&self, info: &SharedInfo, each: impl FnMut(u32)) {
        match self.fifo() {
            Some(fifo) => fifo.take(info, each),
            None => two_level::take(info, each),
        }
    }

    /// Sets the priority of a port.
    pub(super) fn set_priority(&self, port: u32, priority: Priority) -> Result<(), ErrorKind> {
        self.fifo().ok_or(ErrorKind::NoPriorities)?.set_priority(port, priority)
    }
}
