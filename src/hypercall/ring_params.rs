//! Frames and ports of the console and xenstore rings, from the domain's HVM parameters.

use super::hvm_get_param;
use crate::abi::event_channel::TWO_LEVEL_PORTS;
use crate::abi::hvm::{CONSOLE_EVTCHN, CONSOLE_PFN, STORE_EVTCHN, STORE_PFN};

/// Frame and port of a ring that the toolstack made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RingParams {
    pub(crate) frame: u64,
    /// Not zero, and below the number of two-level ports.
    pub(crate) port: u32,
}

impl RingParams {
    /// Those of the console.
    pub(crate) fn console() -> Option<Self> {
        Self::read(CONSOLE_PFN, CONSOLE_EVTCHN)
    }

    /// Those of xenstore.
    pub(crate) fn xenstore() -> Option<Self> {
        Self::read(STORE_PFN, STORE_EVTCHN)
    }

    /// Whether neither frame nor port are shared with another ring.
    pub(crate) fn is_disjoint(self, other: Option<Self>) -> bool {
        other.is_none_or(|other| self.frame != other.frame && self.port != other.port)
    }

    /// Asks Xen. Zero and all ones mean that there is no ring, and so does an error.
    fn read(frame: u32, port: u32) -> Option<Self> {
        let frame = hvm_get_param(frame).ok().filter(|&frame| frame != 0 && frame < 1 << 40)?;
        let port = u32::try_from(hvm_get_param(port).ok()?).ok()?;
        (port != 0 && port < TWO_LEVEL_PORTS).then_some(Self { frame, port })
    }
}
