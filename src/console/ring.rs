//! Output into the console ring: byte accounting, waiting with a bound, and giving up.

use core::ptr::NonNull;

use super::Error;
use crate::abi::console::{OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
use crate::abi::hvm::{CONSOLE_EVTCHN, CONSOLE_PFN};
use crate::eventchn::PolledPort;
use crate::shared::{Corrupt, Layout, Producer, SharedInfo, SharedPage};
use crate::{arch, hypercall, time};

/// A wait for the backend lasts this long, and may end early by an event.
const WAIT_NS: u64 = 250_000_000;

/// The credit of a backend: how long the domain waits for one that does not read. The daemon in dom0 may itself pause
/// for 200 ms to limit its load.
///
/// Waiting uses credit up, bytes that are read restore it. So the waits add up, over all writes, to no more than this
/// and a millisecond for each byte that was read.
const STALL_NS: u64 = 2_000_000_000;

/// The credit that a byte restores: a backend slower than a kilobyte a second is given up in the end.
const SLOWEST_NS_PER_BYTE: u64 = 1_000_000;

/// What one look at the ring costs at least, so that events without progress end even if no time passes, and at most,
/// so that a pause of the whole machine does not count against the backend.
const LEAST_COST_NS: u64 = 100_000;
const MOST_COST_NS: u64 = 2 * WAIT_NS;

const LAYOUT: Layout = Layout { data: OUT, size: OUT_SIZE, producer: OUT_PROD, consumer: OUT_CONS };

/// Where output goes.
#[derive(Debug)]
pub(crate) enum Output {
    /// The ring of a PV console.
    Ring(Ring),
    /// The hypervisor's own console: a domain without a ring that may use it, such as the initial domain.
    Hypervisor,
    /// Nowhere.
    Absent,
}

/// The ring and what is known of its backend.
#[derive(Debug)]
pub(crate) struct Ring {
    producer: Producer,
    port: PolledPort,
    /// How long the backend will yet be waited for.
    credit_ns: u64,
    /// Its index when credit was last restored.
    credited: u32,
    /// Its index when it was given up: until it moves, nobody waits for it.
    stalled_at: Option<u32>,
    /// It showed an impossible index: nothing is written any more.
    corrupt: bool,
}

/// The frame and the port of the console, from the domain's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub(crate) frame: u64,
    port: PolledPort,
}

impl Location {
    /// Asks Xen. Zero and all ones mean that there is none, and so does a refusal.
    pub(crate) fn read() -> Option<Self> {
        let frame = hypercall::hvm_get_param(CONSOLE_PFN).ok().filter(|&frame| frame != 0 && frame < 1 << 40)?;
        let port = PolledPort::from_param(hypercall::hvm_get_param(CONSOLE_EVTCHN).ok()?)?;
        Some(Self { frame, port })
    }
}

impl Output {
    /// Joins the ring.
    ///
    /// # Safety
    ///
    /// The location is this domain's, its frame is mapped read-write, and nothing else uses it.
    pub(crate) unsafe fn connect(location: Location) -> Self {
        let Some(page) = NonNull::new(arch::phys(location.frame << 12)) else { return Self::Absent };
        // SAFETY: a frame is page-aligned; the rest is the caller's promise.
        let page = unsafe { SharedPage::new(page) };
        match Producer::attach(page, LAYOUT) {
            Ok(producer) => Self::Ring(Ring {
                credited: producer.consumed(),
                producer,
                port: location.port,
                credit_ns: STALL_NS,
                stalled_at: None,
                corrupt: false,
            }),
            Err(Corrupt) => {
                say_corrupt();
                Self::Absent
            }
        }
    }

    /// Writes all bytes and notifies; see [`super::Console::write`].
    pub(crate) fn write(&mut self, info: &SharedInfo, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Ring(ring) => {
                ring.put(info, bytes)?;
                ring.notify();
                Ok(())
            }
            Self::Hypervisor => hypercall::console_io_write(bytes).map_err(|_| Error::Absent),
            Self::Absent => Err(Error::Absent),
        }
    }

    /// Writes a line and notifies. One that an empty ring could hold is written whole or not at all.
    pub(crate) fn write_line(&mut self, info: &SharedInfo, line: &[u8]) -> Result<(), Error> {
        match self {
            Self::Ring(ring) => {
                ring.put_whole(info, line)?;
                ring.notify();
                Ok(())
            }
            _ => self.write(info, line),
        }
    }

    /// Waits until the backend has read everything; see [`super::Console::flush`].
    pub(crate) fn flush(&mut self, info: &SharedInfo) -> Result<(), Error> {
        match self {
            Self::Ring(ring) => ring.flush(info),
            Self::Hypervisor => Ok(()),
            Self::Absent => Err(Error::Absent),
        }
    }
}

impl Ring {
    /// Tells the backend that there is something to read. One that is gone shows in the indices: they stop.
    fn notify(&self) {
        let _ = self.port.notify();
    }

    fn put(&mut self, info: &SharedInfo, bytes: &[u8]) -> Result<(), Error> {
        let mut written = 0;
        loop {
            let count = self.check(written, |producer| producer.push(&bytes[written..]))?;
            written += count;
            if written == bytes.len() {
                return Ok(());
            }
            if count > 0 {
                self.notify();
            }
            if !self.wait_for(info, written, OUT_SIZE - 1)? {
                return Err(Error::Stalled { written });
            }
        }
    }

    fn flush(&mut self, info: &SharedInfo) -> Result<(), Error> {
        if self.stalled_at == Some(self.producer.consumed()) {
            // It may have come back and wait to be told; every other one was told of all that is in the ring.
            self.notify();
        }
        if self.wait_for(info, 0, 0)? { Ok(()) } else { Err(Error::Stalled { written: 0 }) }
    }

    /// Writes bytes that fit into an empty ring all or not at all; longer ones as [`put`](Self::put) does.
    fn put_whole(&mut self, info: &SharedInfo, bytes: &[u8]) -> Result<(), Error> {
        let most = OUT_SIZE.checked_sub(bytes.len() as u32).unwrap_or(OUT_SIZE - 1);
        if !self.wait_for(info, 0, most)? {
            return Err(Error::Stalled { written: 0 });
        }
        self.put(info, bytes)
    }

    /// Waits until at most so many bytes are pending; false if the credit of the backend ends before.
    fn wait_for(&mut self, info: &SharedInfo, written: usize, most: u32) -> Result<bool, Error> {
        if self.look(written)? <= most {
            return Ok(true);
        }
        // Nobody waits for a backend that was given up, until it moves.
        if self.stalled_at == Some(self.producer.consumed()) {
            return Ok(false);
        }
        let mut before = time::system_time_ns(info);
        loop {
            self.port.clear(info);
            if self.look(written)? <= most {
                return Ok(true);
            }
            if self.credit_ns == 0 {
                self.stalled_at = Some(self.producer.consumed());
                return Ok(false);
            }
            // A refused wait makes the next look come sooner; each look costs some credit whatever the clock says.
            let _ = self.port.wait(info, WAIT_NS.min(self.credit_ns));
            let now = time::system_time_ns(info);
            let cost = now.saturating_sub(before).clamp(LEAST_COST_NS, MOST_COST_NS);
            self.credit_ns = self.credit_ns.saturating_sub(cost);
            before = now;
        }
    }

    /// Reads how many bytes are pending, and restores credit for those that were read since the last look, also while
    /// nobody waited.
    fn look(&mut self, written: usize) -> Result<u32, Error> {
        let pending = self.check(written, Producer::read_pending)?;
        let read = self.producer.consumed().wrapping_sub(self.credited);
        self.credited = self.producer.consumed();
        self.credit_ns = self.credit_ns.saturating_add(u64::from(read) * SLOWEST_NS_PER_BYTE).min(STALL_NS);
        Ok(pending)
    }

    /// Runs an operation on the ring, and closes the console for good if the backend turns out to lie.
    fn check<T>(
        &mut self,
        written: usize,
        operation: impl FnOnce(&mut Producer) -> Result<T, Corrupt>,
    ) -> Result<T, Error> {
        if self.corrupt {
            return Err(Error::Corrupt { written });
        }
        operation(&mut self.producer).map_err(|Corrupt| {
            self.corrupt = true;
            say_corrupt();
            Error::Corrupt { written }
        })
    }
}

fn say_corrupt() {
    super::emergency::say(format_args!("domu: console closed: its backend shows an impossible index\n"));
}
