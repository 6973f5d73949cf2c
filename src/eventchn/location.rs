//! Where the toolstack has put a ring of its own making, and on which port its peer is told: the console's, and xenstore's.

use super::PolledPort;
use crate::abi::hvm::{CONSOLE_EVTCHN, CONSOLE_PFN, STORE_EVTCHN, STORE_PFN};
use crate::hypercall;

/// The frame and the port of a ring, from the domain's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub(crate) frame: u64,
    pub(crate) port: PolledPort,
}

impl Location {
    /// The console's.
    pub(crate) fn console() -> Option<Self> {
        Self::read(CONSOLE_PFN, CONSOLE_EVTCHN)
    }

    /// Xenstore's.
    pub(crate) fn xenstore() -> Option<Self> {
        Self::read(STORE_PFN, STORE_EVTCHN)
    }

    /// Whether it has neither a page nor a port in common with another, if there is one.
    pub(crate) fn is_apart(self, other: Option<Self>) -> bool {
        other.is_none_or(|other| self.frame != other.frame && self.port != other.port)
    }

    /// Asks Xen. Zero and all ones mean that there is none, and so does a refusal.
    fn read(frame: u32, port: u32) -> Option<Self> {
        let frame = hypercall::hvm_get_param(frame).ok().filter(|&frame| frame != 0 && frame < 1 << 40)?;
        let port = PolledPort::from_param(hypercall::hvm_get_param(port).ok()?)?;
        Some(Self { frame, port })
    }
}
