//! What belongs to one connection: its ports, and what the back end offers.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Context;

use crate::eventchn::Port;

/// What the back end takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Offer {
    /// Frames of several slots.
    pub(super) scatter: bool,
    /// Frames of TCP over IPv4, and IPv6, that it divides.
    pub(super) segmentation: [bool; 2],
    /// Blank checksums over IPv6.
    pub(super) ipv6_checksum: bool,
}

/// One half of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Receive = 0,
    Transmit = 1,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    receive: Port,
    /// None if the back end wants one port for both.
    transmit: Option<Port>,
    pub(super) offer: Offer,
    /// A half has found responses since it waited last.
    found: [AtomicBool; 2],
}

/// The wait of a half for events, through a whole connection. It ends when no more can come.
type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who is told of what comes of waits.
pub(super) trait Observer: Send + Sync {
    /// A wait was resumed.
    fn woken(&self);

    /// No more events come: the port is from before a resume.
    fn resumed(&self);
}

/// A connection, as one half uses it.
pub(super) struct Live {
    pub(super) connection: Arc<Connection>,
    side: Side,
    /// Made once for a connection. None when no more events can come.
    wait: Option<Wait>,
}

impl Live {
    pub(super) fn new(connection: &Arc<Connection>, side: Side, observer: Weak<dyn Observer>) -> Self {
        let wait = connection.wait(side, observer);
        Self { connection: Arc::clone(connection), side, wait: Some(wait) }
    }

    /// Notes that the half has found something.
    pub(super) fn found(&self) {
        self.connection.found[self.side as usize].store(true, Ordering::Relaxed);
    }

    /// Has the task woken by the next event.
    pub(super) fn poll_wait(&mut self, context: &mut Context<'_>) {
        if let Some(wait) = &mut self.wait
            && wait.as_mut().poll(context).is_ready()
        {
            // After a resume: the task of the interface follows.
            self.wait = None;
        }
    }
}

impl core::fmt::Debug for Live {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Live").field("side", &self.side).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(receive: Port, transmit: Option<Port>, offer: Offer) -> Self {
        Self { receive, transmit, offer, found: Default::default() }
    }

    pub(super) fn port(&self, side: Side) -> &Port {
        self.transmit.as_ref().filter(|_| side == Side::Transmit).unwrap_or(&self.receive)
    }

    /// Notifies the back end of whatever is in the rings.
    pub(super) fn notify_all(&self) {
        // They fail after a resume, when there is nobody to tell.
        let _ = self.receive.notify();
        let _ = self.transmit.as_ref().map(Port::notify);
    }

    /// Waits for events as long as it is polled, at the pace that the back end is allowed.
    ///
    /// It is polled when the ring was found empty, and then the ring is looked at again: an event before the first poll may
    /// be counted as seen by it. What the ring had since the last poll is what the last event has brought.
    fn wait(self: &Arc<Self>, side: Side, observer: Weak<dyn Observer>) -> Wait {
        // The parts of a connection lie in the observer between calls: this must not keep it alive.
        let connection = Arc::clone(self);
        Box::pin(async move {
            let found = || connection.found[side as usize].swap(false, Ordering::Relaxed).then_some(());
            while connection.port(side).until(found).await.is_ok() {
                if let Some(observer) = observer.upgrade() {
                    observer.woken();
                }
            }
            // The port is from before a resume.
            if let Some(observer) = observer.upgrade() {
                observer.resumed();
            }
        })
    }
}
