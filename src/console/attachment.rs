//! What the console is attached to, its port, and what of its business is due at the end of a turn.

use alloc::sync::Arc;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::sync::Mutex;

use super::gate::Gate;
use super::ring::{Progress, Ring};
use super::{Error, emergency};
use crate::eventchn::PORTS;
use crate::eventchn::{self, Pace, Port};
use crate::executor::{Source, Turn};
use crate::hypercall::RingParams;
use crate::local::Instance;
use crate::local::domain_local;
use crate::shared::{Corrupt, SharedInfo, SharedPage};
use crate::time::Instant;
use crate::{arch, hypercall};

domain_local! {
    /// The console of the domain.
    pub(crate) static CONSOLE: Attachment;
}

/// Where output goes, and input comes from.
#[cfg_attr(not(target_os = "none"), expect(clippy::large_enum_variant, reason = "a domain has one"))]
pub(super) enum Device {
    /// The ring of a PV console.
    Ring(Ring),
    /// The hypervisor's own console: a domain without a ring that may use it, such as the initial domain.
    Hypervisor,
    /// Nowhere.
    Absent,
}

/// The console of a domain. It has no `Debug`: formatting goes through application code, which may write to the console.
pub(crate) struct Attachment {
    device: Mutex<Device>,
    /// The port, or why there is none, from when somebody first waits for the backend; until then nobody cares for its events.
    port: Mutex<Option<Result<Arc<Port>, eventchn::Error>>>,
    /// The ring has something to settle at the end of the turn.
    unsettled: AtomicBool,
    /// What the backend has had of the domain lately, from whichever port.
    pace: Pace,
    /// Lets its events in for lines of the log that wait.
    gate: Gate,
}

impl Attachment {
    const fn new(device: Device) -> Self {
        Self {
            device: Mutex::new(device),
            port: Mutex::new(None),
            unsettled: AtomicBool::new(false),
            pace: Pace::new(),
            gate: Gate::new(),
        }
    }

    /// No console.
    pub(crate) const fn absent() -> Self {
        Self::new(Device::Absent)
    }

    /// The hypervisor's console.
    pub(crate) const fn hypervisor() -> Self {
        Self::new(Device::Hypervisor)
    }

    /// Joins the ring.
    ///
    /// # Safety
    ///
    /// The location is this domain's, its frame is mapped read-write, and nothing else uses it.
    pub(crate) unsafe fn connect(location: RingParams) -> Self {
        let Some(page) = NonNull::new(arch::phys(location.frame << 12)) else { return Self::absent() };
        // SAFETY: a frame is page-aligned; the rest is the caller's promise.
        let page = unsafe { SharedPage::new(page, 1) };
        Self::new(Ring::attach(page, location).map_or_else(
            |Corrupt| {
                super::say_corrupt();
                Device::Absent
            },
            Device::Ring,
        ))
    }

    /// Does something with the device, and sees to it that what this leaves to be done is done at the end of the turn.
    pub(super) fn with<T>(&self, action: impl FnOnce(&mut Device) -> Result<T, Error>) -> Result<T, Error> {
        let result = self.act(&mut self.device.lock(), action);
        if result.as_ref().is_err_and(|error| *error == Error::Corrupt) {
            // Whoever waits for the backend learns it too. That is the application's code: the device is free again.
            self.wake();
        }
        result
    }

    /// Has all who wait for the backend look again.
    fn wake(&self) {
        let port = self.port.lock().clone();
        if let Some(Ok(port)) = port {
            port.wake();
        }
    }

    /// As [`with`](Self::with) at an end of the domain, when nobody is woken any more, and when the device may be in use by
    /// what a crash has interrupted: then nothing is done.
    pub(super) fn try_with<T>(&self, action: impl FnOnce(&mut Device) -> Result<T, Error>) -> Result<T, Error> {
        self.act(&mut *self.device.try_lock().ok_or(Error::Absent)?, action)
    }

    fn act<T>(&self, device: &mut Device, action: impl FnOnce(&mut Device) -> Result<T, Error>) -> Result<T, Error> {
        let result = action(device);
        let unsettled = matches!(device, Device::Ring(ring) if ring.is_unsettled());
        self.unsettled.store(unsettled, Ordering::Relaxed);
        result
    }

    /// What the backend has had of the domain lately.
    pub(super) const fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The port, for tasks to wait on.
    pub(super) fn port(&self, state: Instance) -> Result<Arc<Port>, Error> {
        // In hand while it is made, which takes memory: nobody is to make it a second time meanwhile.
        let mut kept = self.port.lock();
        if let Some(known) = &*kept {
            return known.clone().map_err(Error::Port);
        }
        let Device::Ring(Ring { port, .. }) = *self.device.lock() else { return Err(Error::Absent) };
        let port = Port::adopt(port, state).map(Arc::new);
        // One that is wrong stays so; memory may come.
        if port.as_ref().err().is_none_or(|error| *error == eventchn::ErrorKind::NoPeer) {
            *kept = Some(port.clone());
        }
        port.map_err(Error::Port)
    }

    /// Ends a turn of the main loop: lines that wait move up, and the backend is told of what the turn has put into the ring.
    pub(crate) fn settle(&self, state: Instance) {
        if !self.unsettled.load(Ordering::Relaxed) {
            return;
        }
        let waits = match &*self.device.lock() {
            Device::Ring(ring) if ring.has_backlog() => Some(ring.output.consumed()),
            _ => None,
        };
        match waits.map(|read| (read, self.port(state))) {
            Some((read, Ok(port))) => self.gate.open(state, &port, &self.pace, read),
            _ => self.gate.leave(),
        }
        // A ring that is corrupt has told so.
        let _ = self.with(|device| match device {
            Device::Ring(ring) => {
                let settled = ring.settle();
                ring.release();
                settled
            }
            _ => Ok(()),
        });
    }

    /// When the main loop is to settle again at the latest: its backend is not let wake the domain before that.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.gate.closed().filter(|_| self.unsettled.load(Ordering::Relaxed))
    }

    /// At an end of the domain, waits until the backend has read everything, with a bound.
    pub(crate) fn finish(&self, info: &SharedInfo) {
        // A console that is gone or stalled must not keep the domain from ending.
        let _ = self.try_with(|device| match device {
            Device::Ring(ring) => ring.flush_waiting(info),
            _ => Ok(()),
        });
    }
}

/// The console, at the end of a turn of the main loop.
pub(crate) struct Settle;

impl Source for Settle {
    #[inline]
    fn poll(&self, turn: &mut Turn) {
        CONSOLE.of(turn.domain).settle(turn.domain);
    }

    #[inline]
    fn next_deadline(&self, domain: Instance) -> Option<Instant> {
        CONSOLE.of(domain).next_look()
    }
}

/// Suspend and resume.
impl Attachment {
    /// Before a suspend, waits until the backend has read the ring, with a bound: a restore clears it. Says how many bytes are
    /// left there; lines of the log that are behind them in memory are not lost.
    pub(crate) fn quiesce(&self, info: &SharedInfo) -> u64 {
        let left = self.with(|device| match device {
            Device::Ring(ring) => ring.quiesce(info),
            _ => Ok(0),
        });
        left.unwrap_or(0).into()
    }

    /// After a suspend that was cancelled: an event may have been taken while the ring was waited for, from whomever the port is.
    pub(crate) fn go_on(&self, state: Instance) {
        let port = match &*self.device.lock() {
            Device::Ring(ring) => Some(ring.port),
            _ => None,
        };
        port.inspect(|port| PORTS.of(state).wake(state, port.number()));
    }

    /// Joins the ring of the new domain. Who waits for the old port is woken by its table.
    pub(crate) fn resume(&self, location: Option<RingParams>) {
        drop(self.port.lock().take());
        // What it leaves is for the end of the turn.
        let _ = self.with(|device| {
            let Device::Ring(ring) = device else { return Ok(()) };
            match location.filter(|location| ring.is_at(*location)).map(|location| ring.resume(location)) {
                Some(Ok(())) => return Ok(()),
                Some(Err(Corrupt)) => super::say_corrupt(),
                None => {
                    emergency::say(format_args!("domu: console closed: it is not where it was before the resume\n"))
                }
            }
            *device = Device::Absent;
            Ok(())
        });
    }
}

impl Device {
    /// Writes without waiting; see [`Ring::try_write`].
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> Result<Option<usize>, Error> {
        match self {
            Self::Ring(ring) => ring.try_write(bytes),
            Self::Hypervisor => {
                hypercall::console_io_write(bytes).map(|()| Some(bytes.len())).map_err(|_| Error::Absent)
            }
            Self::Absent => Err(Error::Absent),
        }
    }

    /// Takes a text whole, or says that there is no room for it.
    pub(super) fn take_whole(&mut self, text: &[u8]) -> Result<bool, Error> {
        match self {
            Self::Ring(ring) => ring.take_whole(text),
            other => other.try_write(text).map(|written| written.is_some()),
        }
    }

    /// Takes input, if there is any.
    pub(super) fn try_read(&mut self, bytes: &mut [u8]) -> Result<Option<usize>, Error> {
        match self {
            Self::Ring(ring) => ring.try_read(bytes),
            Self::Hypervisor | Self::Absent => Err(Error::Absent),
        }
    }

    /// How far the backend has come.
    pub(super) fn progress(&mut self) -> Result<Progress, Error> {
        match self {
            Self::Ring(ring) => ring.progress(),
            Self::Hypervisor => Ok(Progress { read: 0, unread: 0 }),
            Self::Absent => Err(Error::Absent),
        }
    }

    /// Whether a backend serves the console, as far as it says.
    pub(super) fn is_connected(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.is_connected(),
            Self::Hypervisor => true,
            Self::Absent => false,
        }
    }
}
