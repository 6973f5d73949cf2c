//! Output into the console ring: byte accounting, waiting with a bound, and giving up.

use core::ptr::NonNull;

use super::Error;
use crate::abi::console::{OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
use crate::abi::hvm::{CONSOLE_EVTCHN, CONSOLE_PFN};
use crate::eventchn::Port;
use crate::shared::{Corrupt, Layout, Producer, SharedInfo, SharedPage};
use crate::{arch, hypercall, time};

/// A wait for the backend lasts this long, and may end early by an event.
const WAIT_NS: u64 = 250_000_000;

/// A backend without any progress is given up after this time. The daemon in dom0 may itself pause for 200 ms to limit
/// its load.
const STALL_NS: u64 = 2_000_000_000;

/// A backend slower than this on average, a kilobyte a second, is given up too.
const SLOWEST_NS_PER_BYTE: u64 = 1_000_000;

/// Looks at the ring before the clock may give a backend up.
const LOOKS: u32 = 8;

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
    port: Port,
    /// The peer's index when it was given up: until it moves, nobody waits for it.
    stalled_at: Option<u32>,
    /// It showed an impossible index: nothing is written any more.
    corrupt: bool,
}

/// The frame and the port of the console, from the domain's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub(crate) frame: u64,
    port: Port,
}

impl Location {
    /// Asks Xen. Zero and all ones mean that there is none, and so does a refusal.
    pub(crate) fn read() -> Option<Self> {
        let frame = hypercall::hvm_get_param(CONSOLE_PFN).ok().filter(|&frame| frame != 0 && frame < 1 << 52)?;
        let port = Port::from_param(hypercall::hvm_get_param(CONSOLE_EVTCHN).ok()?)?;
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
            Ok(producer) => Self::Ring(Ring { producer, port: location.port, stalled_at: None, corrupt: false }),
            Err(Corrupt) => Self::Absent,
        }
    }

    /// Writes all bytes; see [`super::Console::write`].
    pub(crate) fn write(&mut self, info: &SharedInfo, bytes: &[u8]) -> Result<(), Error> {
        self.put(info, bytes)?;
        self.notify();
        Ok(())
    }

    /// Writes all bytes and leaves the last notification to the caller, who may have more to write.
    pub(crate) fn put(&mut self, info: &SharedInfo, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Ring(ring) => ring.put(info, bytes),
            Self::Hypervisor => hypercall::console_io_write(bytes).map_err(|_| Error::Absent),
            Self::Absent => Err(Error::Absent),
        }
    }

    /// Tells the backend that there is something to read.
    pub(crate) fn notify(&mut self) {
        if let Self::Ring(ring) = self
            && !ring.corrupt
        {
            // A backend that is gone shows in the indices: they stop, and the next full ring gives it up.
            let _ = ring.port.notify();
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
    fn put(&mut self, info: &SharedInfo, bytes: &[u8]) -> Result<(), Error> {
        let mut written = 0;
        let mut patience = Patience::new(bytes.len());
        loop {
            written += self.check(written, |producer| producer.push(&bytes[written..]))?;
            if written == bytes.len() {
                return Ok(());
            }
            if !self.wait_until(info, &mut patience, written, |pending| pending < OUT_SIZE)? {
                return Err(Error::Stalled { written });
            }
        }
    }

    fn flush(&mut self, info: &SharedInfo) -> Result<(), Error> {
        let mut patience = Patience::new(OUT_SIZE as usize);
        let empty = self.wait_until(info, &mut patience, 0, |pending| pending == 0)?;
        if empty { Ok(()) } else { Err(Error::Stalled { written: 0 }) }
    }

    /// Notifies, then waits until the bytes pending satisfy `enough`; false if patience ends before.
    fn wait_until(
        &mut self,
        info: &SharedInfo,
        patience: &mut Patience,
        written: usize,
        enough: impl Fn(u32) -> bool,
    ) -> Result<bool, Error> {
        let mut last = self.check(written, Producer::read_pending)?;
        if enough(last) {
            return Ok(true);
        }
        // A port that cannot be notified has no peer; whether one reads is seen in the indices.
        let _ = self.port.notify();
        loop {
            self.port.clear(info);
            let pending = self.check(written, Producer::read_pending)?;
            if pending < last {
                last = pending;
                patience.progress();
            }
            if enough(pending) {
                return Ok(true);
            }
            let given_up = self.stalled_at == Some(self.producer.consumed());
            if given_up || patience.ended(time::system_time_ns(info)) {
                self.stalled_at = Some(self.producer.consumed());
                return Ok(false);
            }
            // A refused wait makes the next look come sooner; patience bounds the looks as well.
            let _ = self.port.wait(info, WAIT_NS);
        }
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
            super::emergency::say(format_args!("domu: console closed: its backend shows an impossible index\n"));
            Error::Corrupt { written }
        })
    }
}

/// How long one call waits for the backend, in all and without progress.
///
/// Both bounds are in time and in looks at the ring: when the whole machine stands still for a while, that is one look.
#[derive(Debug)]
struct Patience {
    bytes: u64,
    /// Ends of the call and of the stretch without progress, once their clocks run.
    call: Option<u64>,
    stretch: Option<u64>,
    looks_in_call: u32,
    looks_in_stretch: u32,
}

impl Patience {
    const fn new(bytes: usize) -> Self {
        Self { bytes: bytes as u64, call: None, stretch: None, looks_in_call: 0, looks_in_stretch: 0 }
    }

    const fn progress(&mut self) {
        (self.stretch, self.looks_in_stretch) = (None, 0);
    }

    /// Counts a look without success, and tells whether it was the last.
    fn ended(&mut self, now_ns: u64) -> bool {
        let call = *self.call.get_or_insert(
            now_ns.saturating_add(STALL_NS).saturating_add(self.bytes.saturating_mul(SLOWEST_NS_PER_BYTE)),
        );
        let stretch = *self.stretch.get_or_insert(now_ns.saturating_add(STALL_NS));
        self.looks_in_call += 1;
        self.looks_in_stretch += 1;
        (now_ns >= call && self.looks_in_call > LOOKS) || (now_ns >= stretch && self.looks_in_stretch > LOOKS)
    }
}
