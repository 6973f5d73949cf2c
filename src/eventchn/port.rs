//! A port of this domain, and waiting for its events.

use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::pace::Pace;
use super::{Error, ErrorKind, Object, PolledPort, Priority};
use crate::abi::errno::Errno;
use crate::abi::event_channel::{status, virq};
use crate::abi::xen::DomainId;
use crate::eventchn::DELIVERY;
use crate::eventchn::PORTS;
use crate::eventchn::TIMER;
use crate::hypercall;
use crate::local::{self, Instance};
use crate::sync::wait_list::WaiterId;

/// A port of this domain. Dropping it closes it.
///
/// A peer that is bound to it then finds its own end unbound: what it sends is swallowed.
#[doc(alias("evtchn_port_t", "EVTCHNOP_close"))]
pub struct Port {
    number: u32,
    state: Instance,
    /// That of the domain in which it was bound.
    generation: u64,
    pace: Pace,
}

/// What a port is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Binding {
    /// Nothing yet, or nothing any more: this domain may bind to it.
    Unbound(DomainId),
    /// A port of a domain.
    Interdomain(DomainId, u32),
    /// A virtual interrupt, by number.
    Virq(u32),
    /// This domain itself.
    Ipi,
    /// Something else.
    Other(u32),
}

/// Makes a port that `remote` may bind to, and tells its number to nobody: see [`Port::number`].
///
/// # Errors
///
/// [`ErrorKind::NoPort`], [`ErrorKind::OutOfMemory`], [`ErrorKind::Refused`].
#[doc(alias = "EVTCHNOP_alloc_unbound")]
pub fn alloc_unbound(remote: DomainId) -> Result<Port, Error> {
    Port::bind(|| hypercall::event_alloc_unbound(remote), None).map_err(|kind| kind.of(Object::Domain(remote)))
}

/// Binds a new port to a port of `remote`'s that was made for this domain. The first event comes with the binding.
///
/// # Errors
///
/// [`ErrorKind::NoPeer`] if there is no such port, or it is not for this domain; [`ErrorKind::NoPort`], [`ErrorKind::OutOfMemory`],
/// [`ErrorKind::Refused`].
#[doc(alias = "EVTCHNOP_bind_interdomain")]
pub fn bind_interdomain(remote: DomainId, port: u32) -> Result<Port, Error> {
    Port::bind(|| hypercall::event_bind_interdomain(remote, port), Some(ErrorKind::NoPeer))
        .map_err(|kind| kind.of(Object::RemotePort(remote, port)))
}

/// Binds a new port to a virtual interrupt, by its number in [`virq`]; that of the timer
/// is taken by [`time`](crate::time).
///
/// # Errors
///
/// [`ErrorKind::NoInterrupt`] if it is bound already or not for this domain; [`ErrorKind::NoPort`], [`ErrorKind::OutOfMemory`],
/// [`ErrorKind::Refused`].
#[doc(alias = "EVTCHNOP_bind_virq")]
pub fn bind_virq(virq: u32) -> Result<Port, Error> {
    if virq == virq::TIMER {
        return Err(ErrorKind::NoInterrupt.of(Object::Virq(virq)));
    }
    Port::bind(|| hypercall::event_bind_virq(virq), Some(ErrorKind::NoInterrupt))
        .map_err(|kind| kind.of(Object::Virq(virq)))
}

/// Makes a port on which this domain notifies itself.
///
/// # Errors
///
/// [`ErrorKind::NoPort`], [`ErrorKind::OutOfMemory`], [`ErrorKind::Refused`].
#[doc(alias = "EVTCHNOP_bind_ipi")]
pub fn bind_ipi() -> Result<Port, Error> {
    Ok(Port::bind(hypercall::event_bind_ipi, None)?)
}

impl Port {
    /// Has Xen bind a port and keeps it, or says why there is none; `absent` is what an absent peer means.
    fn bind(bound: impl FnOnce() -> Result<u32, Errno>, absent: Option<ErrorKind>) -> Result<Self, ErrorKind> {
        // A port is bound by a running domain only.
        let state = local::current().ok_or(ErrorKind::Refused(Errno::ESRCH))?;
        // The timer must not be without one when all are taken.
        TIMER.of(state).bind(state)?;
        let number = bound().map_err(|errno| ErrorKind::from_xen(errno, absent))?;
        Self::keep(number, state).inspect_err(|_| {
            // Closing what was just bound fails for no reason that could be acted on.
            let _ = hypercall::event_close(number);
        })
    }

    /// Takes over a port that the toolstack made, if it has: a number of none, or of one that the domain has already, would
    /// make it two owners' now or later.
    pub(crate) fn adopt(port: PolledPort, state: Instance) -> Result<Self, Error> {
        let number = port.number();
        let of_port = |kind: ErrorKind| kind.of(Object::Port(number));
        let found = hypercall::event_status(number)
            .map_err(|errno| of_port(ErrorKind::from_xen(errno, Some(ErrorKind::NoPeer))))?;
        if !matches!(found.status, status::UNBOUND | status::INTERDOMAIN) || PORTS.of(state).has(number) {
            return Err(of_port(ErrorKind::NoPeer));
        }
        DELIVERY.of(state).choose();
        Self::keep(number, state).map_err(of_port)
    }

    /// Makes room for a port, and begins to count its events.
    fn keep(number: u32, state: Instance) -> Result<Self, ErrorKind> {
        DELIVERY.of(state).reserve(number)?;
        PORTS.of(state).reserve(number)?;
        PORTS.of(state).add(number, state);
        Ok(Self { number, state, generation: state.generation(), pace: Pace::new() })
    }

    /// What its peer has had of the domain lately.
    pub(crate) const fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Wakes whoever waits, as an event does.
    pub(crate) fn wake(&self) {
        if self.is_current() {
            PORTS.of(self.state).wake(self.state, self.number);
        }
    }

    /// Returns true if the port's domain runs here and was not resumed since the port was bound. Else its number may be
    /// another's.
    pub(crate) fn is_current(&self) -> bool {
        self.current().is_ok()
    }

    /// The number, by which a peer binds to it.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Raises an event at the other end. Nobody need be there: Xen swallows what is sent to a peer that is gone, or has not come
    /// yet, and [`binding`](Self::binding) tells of that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`]; [`ErrorKind::Refused`] of a port that is bound to a virtual interrupt.
    #[doc(alias = "EVTCHNOP_send")]
    pub fn notify(&self) -> Result<(), Error> {
        self.ask(hypercall::event_send)
    }

    /// Asks Xen something about the port, unless the number is another's by now.
    fn ask<T>(&self, hypercall: impl FnOnce(u32) -> Result<T, Errno>) -> Result<T, Error> {
        self.current()?;
        hypercall(self.number).map_err(|errno| self.error(ErrorKind::Refused(errno)))
    }

    /// The state of the port's domain, unless that has ended, or was resumed elsewhere since.
    fn current(&self) -> Result<Instance, Error> {
        match (self.state.is_running(), self.generation == self.state.generation()) {
            (true, true) => Ok(self.state),
            (true, false) => Err(self.error(ErrorKind::BeforeResume)),
            (false, _) => Err(self.error(ErrorKind::Refused(Errno::ESRCH))),
        }
    }

    /// An error about this port.
    const fn error(&self, kind: ErrorKind) -> Error {
        kind.of(Object::Port(self.number))
    }

    /// What the port is bound to now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`], [`ErrorKind::Refused`].
    #[doc(alias = "EVTCHNOP_status")]
    pub fn binding(&self) -> Result<Binding, Error> {
        let found = self.ask(hypercall::event_status)?;
        let domain = DomainId(found.bound[0] as u16);
        Ok(match found.status {
            status::UNBOUND => Binding::Unbound(domain),
            status::INTERDOMAIN => Binding::Interdomain(domain, found.bound[1]),
            status::VIRQ => Binding::Virq(found.bound[0]),
            status::IPI => Binding::Ipi,
            other => Binding::Other(other),
        })
    }

    /// Sets which ports' events this one's are delivered before, from the next on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoPriorities`] if the interface in force has none: see [`abi`](super::abi). [`ErrorKind::BeforeResume`],
    /// [`ErrorKind::Refused`].
    #[doc(alias = "EVTCHNOP_set_priority")]
    pub fn set_priority(&self, priority: Priority) -> Result<(), Error> {
        DELIVERY.of(self.current()?).set_priority(self.number, priority).map_err(|kind| self.error(kind))
    }

    /// How many events were delivered so far. Those that a peer sends before the domain looks, here or in
    /// [`after`](Self::after), are delivered as one. None of a port from before a resume, which has no more.
    #[doc(alias = "EVTCHNOP_unmask")]
    #[must_use]
    pub fn count(&self) -> u64 {
        if self.is_current() { PORTS.of(self.state).count(self.state, self.number) } else { 0 }
    }

    /// Waits until more than `seen` events were delivered, and returns how many there are. Several may wait.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`]: there will be no more.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes nothing away: the events are still counted.
    #[must_use = "futures do nothing unless polled"]
    pub const fn after(&self, seen: u64) -> After<'_> {
        After { port: self, seen, id: None }
    }

    /// Waits until `look` finds something in what is shared with the peer. It is asked at once, and again after each event.
    ///
    /// An event that brings nothing is counted as [`spurious`](Self::spurious). A find makes up for one; of those beyond that a
    /// peer may send 32 at once, and one in each millisecond on average. Then each is followed by a pause of a millisecond, in
    /// which one event is delivered at most. So one `look` is to look at all that the port's events may tell of.
    ///
    /// A peer that has something there whenever `look` is asked keeps nobody else from running: after 64 finds in a turn of the
    /// main loop other tasks and timers have theirs, before the next look.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeforeResume`], also if there is something: whoever put it there is gone.
    ///
    /// # Cancel safety
    ///
    /// What is found is returned at once, so a future that is dropped takes nothing along.
    pub async fn until<T>(&self, look: impl FnMut() -> Option<T>) -> Result<T, Error> {
        self.until_by(&self.pace, look).await
    }

    /// As [`until`](Self::until), at the pace of a peer that may have had other ports before.
    pub(crate) async fn until_by<T>(&self, pace: &Pace, mut look: impl FnMut() -> Option<T>) -> Result<T, Error> {
        pace.share(self.state).await;
        let mut woken = false;
        loop {
            self.current()?;
            // Note is taken of events before what they tell of is looked at: one that comes in between ends the wait.
            let seen = self.count();
            if let Some(found) = look() {
                pace.found(self.state);
                return Ok(found);
            }
            if woken {
                pace.empty(self.state).await;
            }
            self.after(seen).await?;
            woken = true;
        }
    }

    /// How many events have brought nothing to who waits by [`until`](Self::until). A few are in the nature of events: what
    /// one tells of may have been found before it came.
    #[must_use]
    pub fn spurious(&self) -> u64 {
        self.pace.spurious()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Port").field(&self.number).finish()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Outside of its domain the port stays open until that ends.
        if !self.is_current() {
            return;
        }
        PORTS.of(self.state).remove(self.number, self.state);
        // Xen closes what is this domain's; there is nobody to tell if it does not.
        let _ = hypercall::event_close(self.number);
    }
}

/// Waits for events, as [`Port::after`] says.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct After<'a> {
    port: &'a Port,
    seen: u64,
    /// Its registration.
    id: Option<WaiterId>,
}

impl Future for After<'_> {
    type Output = Result<u64, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let state = match self.port.current() {
            Ok(state) => state,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let Self { port, seen, id } = &mut *self;
        let polled = PORTS.of(state).poll(state, port.number, *seen, id, context.waker());
        polled.map(|count| count.ok_or_else(|| port.error(ErrorKind::BeforeResume)))
    }
}

impl Drop for After<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.filter(|_| self.port.state.is_running()) {
            PORTS.of(self.port.state).forget(self.port.number, id);
        }
    }
}
