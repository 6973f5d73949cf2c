//! Waiting for the backend where no task can: when a domain ends or is suspended. With a bound, for all such waits together.

use super::Error;
use super::ring::Ring;
use crate::abi::console::OUT_SIZE;
use crate::shared::{Producer, SharedInfo};
use crate::time;

/// A wait for the backend lasts this long, and may end early by an event.
const WAIT_NS: u64 = 250_000_000;

/// The credit of a backend: how long the domain waits for one that does not read. The daemon in dom0 may itself pause
/// for 200 ms to limit its load.
///
/// Waiting uses credit up, bytes that are read restore it. So the waits add up to no more than this and a millisecond for
/// each byte that was read.
pub(super) const STALL_NS: u64 = 2_000_000_000;

/// The credit that a byte restores: a backend slower than a kilobyte a second is given up in the end.
pub(super) const SLOWEST_NS_PER_BYTE: u64 = 1_000_000;

/// What one look at the ring costs at least, so that events without progress end even if no time passes, and at most,
/// so that a pause of the whole machine does not count against the backend.
const LEAST_COST_NS: u64 = 100_000;
const MOST_COST_NS: u64 = 2 * WAIT_NS;

/// What is left of the domain's patience with a backend.
#[derive(Debug)]
pub(super) struct Patience {
    /// How long the backend will yet be waited for.
    credit_ns: u64,
    /// Its index when credit was last restored.
    credited: u32,
    /// Its index when it was given up: until it moves, nobody waits for it.
    stalled_at: Option<u32>,
}

impl Patience {
    pub(super) const fn new(output: &Producer) -> Self {
        Self { credit_ns: STALL_NS, credited: output.consumed(), stalled_at: None }
    }
}

impl Ring {
    /// Writes all bytes, behind what waits already.
    pub(super) fn write_waiting(&mut self, info: &SharedInfo, mut bytes: &[u8]) -> Result<(), Error> {
        self.drain(info)?;
        while !bytes.is_empty() {
            let count = self.push(bytes)?;
            bytes = &bytes[count..];
            if !bytes.is_empty() {
                self.wait_for(info, OUT_SIZE - 1)?;
            }
        }
        self.settle()
    }

    /// Waits until the backend has read everything.
    pub(super) fn flush_waiting(&mut self, info: &SharedInfo) -> Result<(), Error> {
        self.drain(info)?;
        self.wait_for(info, 0)
    }

    /// Waits until the backend has read what is in the ring, and says how many bytes are left of that. What waits behind it
    /// stays where it is.
    pub(super) fn quiesce(&mut self, info: &SharedInfo) -> Result<u32, Error> {
        if self.is_unsettled() {
            self.notify();
        }
        match self.wait_until_read(info, 0) {
            Err(Error::Stalled) => self.look(),
            result => result.map(|()| 0),
        }
    }

    /// Puts all that waits into the ring.
    fn drain(&mut self, info: &SharedInfo) -> Result<(), Error> {
        while !self.pump()? {
            self.wait_for(info, OUT_SIZE - 1)?;
        }
        Ok(())
    }

    /// Tells a backend that was given up, should it have come back; every other was told of all that is in the ring.
    pub(super) fn wake(&mut self) {
        if self.patience.stalled_at == Some(self.output.consumed()) {
            self.notify();
        }
    }

    /// Gives the backend up until it reads again.
    pub(super) fn give_up(&mut self) {
        self.patience.stalled_at = Some(self.output.consumed());
    }

    /// Puts what waits into the ring as far as there is room, and waits until at most so many bytes are pending.
    fn wait_for(&mut self, info: &SharedInfo, most: u32) -> Result<(), Error> {
        self.settle()?;
        self.wait_until_read(info, most)
    }

    /// Waits until at most so many bytes are pending, or the credit of the backend ends.
    fn wait_until_read(&mut self, info: &SharedInfo, most: u32) -> Result<(), Error> {
        self.wake();
        if self.look()? <= most {
            return Ok(());
        }
        // Nobody waits for a backend that was given up, until it moves.
        if self.patience.stalled_at == Some(self.output.consumed()) {
            return Err(Error::Stalled);
        }
        let mut before = time::system_time_ns(info).unwrap_or(0);
        loop {
            self.port.clear(info);
            if self.look()? <= most {
                return Ok(());
            }
            if self.patience.credit_ns == 0 {
                self.give_up();
                return Err(Error::Stalled);
            }
            // A refused wait makes the next look come sooner; each look costs some credit whatever the clock says.
            let _ = self.port.wait(info, WAIT_NS.min(self.patience.credit_ns));
            let now = time::system_time_ns(info).unwrap_or(before);
            let cost = now.saturating_sub(before).clamp(LEAST_COST_NS, MOST_COST_NS);
            self.patience.credit_ns = self.patience.credit_ns.saturating_sub(cost);
            before = now;
        }
    }

    /// Reads how many bytes are pending, and restores credit for those that were read since the last look, also while
    /// nobody waited.
    fn look(&mut self) -> Result<u32, Error> {
        let pending = self.read_pending()?;
        let consumed = self.output.consumed();
        let Patience { credit_ns, credited, .. } = &mut self.patience;
        let read = consumed.wrapping_sub(core::mem::replace(credited, consumed));
        *credit_ns = credit_ns.saturating_add(u64::from(read) * SLOWEST_NS_PER_BYTE).min(STALL_NS);
        Ok(pending)
    }
}
