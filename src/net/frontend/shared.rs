//! What the task of an interface, its two halves and its handles share.
//!
//! The rings and buffers of a half lie here between its calls, so that the task can take them when the connection ends,
//! whether or not the half is called again. A call checks them out, and no lock is held while frames are moved. What is checked out
//! for longer is a packet that the consumer has.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Context, Poll, Waker};

use super::connection::{Connection, Live, Observer, Side};
use super::memory::{Rx, Tx};
use super::statistics::{Counters, Statistics};
use crate::executor;
use crate::net::Error;
use crate::net::protocol::{MacAddress, Violation};
use crate::sync::Mutex;

/// Whether frames can be exchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Connected.
    Up,
    /// Not connected, or not any more.
    Down,
}

/// Why a connection ends that the back end has not closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Interruption {
    /// The back end broke the protocol.
    Violation(Violation),
    /// It is from before a resume.
    Resumed,
}

#[derive(Debug)]
pub(super) struct Inner {
    link: Link,
    /// Unless they are checked out, or there is no connection.
    rx: Option<Box<Rx>>,
    tx: Option<Box<Tx>>,
    connection: Option<Arc<Connection>>,
    /// How the back end broke the protocol.
    violation: Option<Violation>,
    /// The connection is from before a resume.
    resumed: bool,
    /// The interface has ended.
    end: Option<Error>,
    wakers: [Option<Waker>; 2],
    task: Option<Waker>,
    watchers: Vec<Waker>,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// Bits of the sides whose port is to be notified at the end of the turn.
    notify: AtomicU32,
    pub(super) counters: Counters,
    pub(super) mac: MacAddress,
    pub(super) mtu: Option<u16>,
    inner: Mutex<Inner>,
}

/// The place of a part.
pub(super) trait Place<T> {
    fn place(&mut self) -> &mut Option<Box<T>>;
}

impl Place<Rx> for Inner {
    fn place(&mut self) -> &mut Option<Box<Rx>> {
        &mut self.rx
    }
}

impl Place<Tx> for Inner {
    fn place(&mut self) -> &mut Option<Box<Tx>> {
        &mut self.tx
    }
}

impl Shared {
    pub(super) fn new(mac: MacAddress, mtu: Option<u16>) -> Arc<Self> {
        let shared = Arc::new(Self {
            notify: AtomicU32::new(0),
            counters: Counters::default(),
            mac,
            mtu,
            inner: Mutex::new(Inner {
                link: Link::Down,
                rx: None,
                tx: None,
                connection: None,
                violation: None,
                resumed: false,
                end: None,
                wakers: [None, None],
                task: None,
                watchers: Vec::new(),
            }),
        });
        let weak = Arc::downgrade(&shared);
        executor::after_turn(move || Self::after_turn(&weak));
        shared
    }

    /// Notifies the back end once for all that was published in a turn.
    fn after_turn(shared: &Weak<Self>) {
        let Some(shared) = shared.upgrade() else { return };
        // Usually there is nothing to say.
        if shared.notify.load(Ordering::Relaxed) == 0 {
            return;
        }
        let sides = shared.notify.swap(0, Ordering::Relaxed);
        let Some(connection) = shared.inner.lock().connection.clone() else { return };
        let [receive, transmit] = [Side::Receive, Side::Transmit].map(|side| connection.port(side));
        let mut last = None;
        for (side, port) in [receive, transmit].into_iter().enumerate() {
            if sides & 1 << side != 0 && last != Some(port.number()) {
                // It fails after a resume, when there is nobody to tell.
                let _ = port.notify();
                shared.counters.notifications.add(1);
                last = Some(port.number());
            }
        }
    }

    /// Has the back end notified at the end of the turn.
    #[inline]
    pub(super) fn notify(&self, side: Side) {
        self.notify.store(self.notify.load(Ordering::Relaxed) | 1 << side as u32, Ordering::Relaxed);
    }

    /// Begins a connection: the halves get their parts.
    pub(super) fn begin(self: &Arc<Self>, connection: Connection, mut rx: Box<Rx>, mut tx: Box<Tx>) {
        self.counters.connections.add(1);
        let connection = Arc::new(connection);
        let observer: Weak<dyn Observer> = Arc::<Self>::downgrade(self);
        rx.live = Some(Live::new(&connection, Side::Receive, observer.clone()));
        tx.live = Some(Live::new(&connection, Side::Transmit, observer));
        self.change(|inner| {
            inner.connection = Some(connection);
            inner.resumed = false;
            (inner.rx, inner.tx) = (Some(rx), Some(tx));
            inner.link = Link::Up;
        });
    }

    /// Ends the connection: the halves give their parts back.
    pub(super) fn end_connection(&self) {
        self.change(|inner| {
            inner.connection = None;
            inner.link = Link::Down;
        });
    }

    /// Ends the interface.
    pub(super) fn end(&self, error: Error) {
        let mut parts = (None, None);
        self.change(|inner| {
            inner.connection = None;
            inner.link = Link::Down;
            inner.end.get_or_insert(error);
            parts = (inner.rx.take(), inner.tx.take());
        });
        drop(parts);
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner.lock();
        change(&mut inner);
        let wakers = core::mem::take(&mut inner.wakers);
        let watchers = core::mem::take(&mut inner.watchers);
        drop(inner);
        wakers.into_iter().flatten().chain(watchers).for_each(Waker::wake);
    }

    /// Takes the parts of a connection that has ended, as soon as no consumer has a packet.
    pub(super) async fn collect(&self, had: bool) -> (Option<Box<Rx>>, Option<Box<Tx>>) {
        let (mut rx, mut tx) = (None, None);
        poll_fn(|context| {
            let mut inner = self.inner.lock();
            rx = rx.take().or_else(|| inner.rx.take());
            tx = tx.take().or_else(|| inner.tx.take());
            if !had || rx.is_some() && tx.is_some() {
                return Poll::Ready(());
            }
            register(&mut inner.task, context.waker());
            Poll::Pending
        })
        .await;
        (rx, tx)
    }

    /// Waits until the back end breaks the protocol, or the domain is resumed elsewhere.
    pub(super) async fn interrupted(&self) -> Interruption {
        poll_fn(|context| {
            let mut inner = self.inner.lock();
            if let Some(violation) = inner.violation {
                return Poll::Ready(Interruption::Violation(violation));
            }
            if inner.resumed {
                return Poll::Ready(Interruption::Resumed);
            }
            register(&mut inner.task, context.waker());
            Poll::Pending
        })
        .await
    }

    /// The back end broke the protocol: the task closes the interface.
    pub(super) fn fail(&self, violation: Violation) {
        let mut inner = self.inner.lock();
        inner.violation.get_or_insert(violation);
        let task = inner.task.take();
        drop(inner);
        task.into_iter().for_each(Waker::wake);
    }

    /// Checks the part of a half out, if there is a connection.
    ///
    /// # Errors
    ///
    /// Why the interface has ended.
    pub(super) fn check_out<T>(&self) -> Result<Option<Box<T>>, Error>
    where
        Inner: Place<T>,
    {
        let mut inner = self.inner.lock();
        if inner.connection.is_some() {
            return Ok(inner.place().take());
        }
        inner.end.clone().map_or(Ok(None), Err)
    }

    /// Checks the part of a half in.
    pub(super) fn check_in<T>(&self, part: Box<T>)
    where
        Inner: Place<T>,
    {
        let mut inner = self.inner.lock();
        let mut after_end = None;
        if inner.end.is_some() {
            // Nobody is left to take it.
            after_end = Some(part);
        } else {
            *inner.place() = Some(part);
        }
        let task = if inner.connection.is_none() { inner.task.take() } else { None };
        drop(inner);
        drop(after_end);
        task.into_iter().for_each(Waker::wake);
    }

    /// Returns true if a part that is checked out is of a connection that has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.inner.lock().connection.is_none()
    }

    /// Has a half woken when a connection begins or ends.
    pub(super) fn register(&self, side: Side, context: &Context<'_>) {
        register(&mut self.inner.lock().wakers[side as usize], context.waker());
    }
}

impl Observer for Shared {
    fn woken(&self) {
        self.counters.wake_ups.add(1);
    }

    /// A half has found that the connection is from before a resume: the task begins another.
    fn resumed(&self) {
        let mut inner = self.inner.lock();
        inner.resumed = inner.connection.is_some();
        let task = inner.task.take();
        drop(inner);
        task.into_iter().for_each(Waker::wake);
    }
}

/// Keeps a waker, unless it is the same.
fn register(place: &mut Option<Waker>, waker: &Waker) {
    if place.as_ref().is_none_or(|before| !before.will_wake(waker)) {
        *place = Some(waker.clone());
    }
}

/// A view of an interface: its link, address and counts. Clones are views of the same.
#[derive(Clone, Debug)]
pub struct Handle(pub(super) Arc<Shared>);

impl Handle {
    /// The address that the toolstack gave the interface.
    #[must_use]
    pub fn mac(&self) -> MacAddress {
        self.0.mac
    }

    /// The largest IP packet of a frame, as the toolstack says. Xen 4.14 says nothing: 1,500 is usual.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        self.0.mtu
    }

    /// Whether frames can be exchanged now.
    #[must_use]
    pub fn link(&self) -> Link {
        self.0.inner.lock().link
    }

    /// Waits until the link is another than `seen`.
    ///
    /// # Errors
    ///
    /// Why the interface has ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future: the next wait begins by looking.
    pub async fn link_changed(&self, seen: Link) -> Result<Link, Error> {
        poll_fn(|context| {
            let mut inner = self.0.inner.lock();
            if inner.link != seen {
                return Poll::Ready(Ok(inner.link));
            }
            if let Some(error) = &inner.end {
                return Poll::Ready(Err(error.clone()));
            }
            if !inner.watchers.iter().any(|waker| waker.will_wake(context.waker())) {
                inner.watchers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Counts of the interface: a copy of some fields.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.0.counters.read()
    }
}
