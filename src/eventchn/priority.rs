//! What is delivered before what.

use core::fmt;

use crate::abi::event_channel::fifo::{PRIORITIES, PRIORITY_DEFAULT};

/// The priority of a port, from 0, the highest, to 15: of two events that are there to be delivered, that of the higher
/// one is delivered first. Among ports of one priority, whoever was first is.
///
/// What is delivered still waits for its task to run; a priority orders deliveries, not tasks.
#[doc(alias = "EVTCHN_FIFO_PRIORITY")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Priority(u8);

impl Priority {
    /// Before all others.
    #[doc(alias = "EVTCHN_FIFO_PRIORITY_MAX")]
    pub const HIGHEST: Self = Self(0);
    /// What a port has unless it is given another: 7.
    #[doc(alias = "EVTCHN_FIFO_PRIORITY_DEFAULT")]
    pub const DEFAULT: Self = Self(PRIORITY_DEFAULT);
    /// After all others.
    #[doc(alias = "EVTCHN_FIFO_PRIORITY_MIN")]
    pub const LOWEST: Self = Self(PRIORITIES as u8 - 1);

    /// The priority of a number from 0, the highest, to 15; there are no others.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number <= Self::LOWEST.0 { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Debug for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Priority({})", self.0)
    }
}
