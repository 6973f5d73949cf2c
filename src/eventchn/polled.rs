//! A port that is waited for by polling Xen: the console's, when a domain ends or is suspended and no task can wait.

use super::two_level;
use crate::abi::errno::Errno;
use crate::eventchn::DELIVERY;
use crate::hypercall;
use crate::shared::SharedInfo;
use crate::{local, time};

/// A port that the toolstack made for this domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PolledPort(u32);

impl PolledPort {
    /// The port that the toolstack made.
    pub(crate) const fn new(port: u32) -> Self {
        Self(port)
    }

    /// Its number.
    pub(crate) const fn number(self) -> u32 {
        self.0
    }

    /// Tells the peer. If it is gone, that is an error or goes unnoticed.
    pub(crate) fn notify(self) -> Result<(), Errno> {
        hypercall::event_send(self.0)
    }

    /// Forgets past events, before the state that they announce is looked at.
    pub(crate) fn clear(self, info: &SharedInfo) {
        // By the interface in force, which is another once the domain has bound a port.
        match local::current() {
            Some(state) => DELIVERY.of(state).clear_pending(info, self.0),
            None => two_level::clear_pending(info, self.0),
        }
    }

    /// Sleeps until an event on this port since [`clear`](Self::clear), or until `limit_ns` have passed.
    pub(crate) fn wait(self, info: &SharedInfo, limit_ns: u64) -> Result<(), Errno> {
        // Without a clock the deadline has passed: a wait ends at once, and is never one without an end.
        hypercall::sched_poll(self.0, time::system_time_ns(info).unwrap_or(0).saturating_add(limit_ns))
    }
}
