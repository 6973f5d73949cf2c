//! What the task of an interface, its two halves and its handles share.
//!
//! A half owns the rings and buffers that it uses, so that moving frames takes no lock. They change hands when a connection
//! begins or ends: the `epoch` tells a half to look, which is an atomic load at each call.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Context, Poll, Waker};

use super::connection::{Connection, Offer, Side};
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

/// Something that is the task's between connections and a half's during one.
#[derive(Debug)]
pub(super) enum Handoff<T> {
    /// The half has it, or nobody yet.
    Away,
    /// For the half.
    Ready(Box<T>),
    /// For the task.
    Back(Box<T>),
}

impl<T> Handoff<T> {
    /// Takes what the task may have: also what the half has never fetched.
    fn reclaim(&mut self) -> Option<Box<T>> {
        match core::mem::replace(self, Self::Away) {
            Self::Away => None,
            Self::Ready(value) | Self::Back(value) => Some(value),
        }
    }
}

#[derive(Debug)]
pub(super) struct Inner {
    link: Link,
    offer: Offer,
    rx: Handoff<Rx>,
    tx: Handoff<Tx>,
    connection: Option<Arc<Connection>>,
    /// How the back end broke the protocol.
    violation: Option<Violation>,
    /// The interface has ended.
    end: Option<Error>,
    wakers: [Option<Waker>; 2],
    task: Option<Waker>,
    watchers: Vec<Waker>,
}

#[derive(Debug)]
pub(super) struct Shared {
    epoch: AtomicU32,
    /// Bits of the sides whose port is to be notified at the end of the turn.
    notify: AtomicU32,
    pub(super) counters: Counters,
    pub(super) mac: MacAddress,
    pub(super) mtu: Option<u16>,
    inner: Mutex<Inner>,
}

/// The place where a part changes hands.
pub(super) trait Place<T> {
    fn place(&mut self) -> &mut Handoff<T>;
}

impl Place<Rx> for Inner {
    fn place(&mut self) -> &mut Handoff<Rx> {
        &mut self.rx
    }
}

impl Place<Tx> for Inner {
    fn place(&mut self) -> &mut Handoff<Tx> {
        &mut self.tx
    }
}

impl Shared {
    pub(super) fn new(mac: MacAddress, mtu: Option<u16>) -> Arc<Self> {
        let shared = Arc::new(Self {
            epoch: AtomicU32::new(0),
            notify: AtomicU32::new(0),
            counters: Counters::default(),
            mac,
            mtu,
            inner: Mutex::new(Inner {
                link: Link::Down,
                offer: Offer::default(),
                rx: Handoff::Away,
                tx: Handoff::Away,
                connection: None,
                violation: None,
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

    #[inline]
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Why the interface has ended, if it has.
    pub(super) fn ended(&self) -> Option<Error> {
        self.inner.lock().end.clone()
    }

    /// Begins a connection: the halves get their parts.
    pub(super) fn begin(&self, connection: Connection, rx: Box<Rx>, tx: Box<Tx>) {
        self.counters.connections.add(1);
        self.change(|inner| {
            inner.offer = connection.offer;
            inner.connection = Some(Arc::new(connection));
            (inner.rx, inner.tx) = (Handoff::Ready(rx), Handoff::Ready(tx));
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
        self.change(|inner| {
            inner.connection = None;
            inner.link = Link::Down;
            inner.end.get_or_insert(error);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner.lock();
        change(&mut inner);
        self.epoch.fetch_add(1, Ordering::Relaxed);
        let wakers = core::mem::take(&mut inner.wakers);
        let watchers = core::mem::take(&mut inner.watchers);
        drop(inner);
        wakers.into_iter().flatten().chain(watchers).for_each(Waker::wake);
    }

    /// Waits until both halves have given their parts back, as far as they ever had them.
    pub(super) async fn collect(&self, had: bool) -> (Option<Box<Rx>>, Option<Box<Tx>>) {
        let (mut rx, mut tx) = (None, None);
        poll_fn(|context| {
            let mut inner = self.inner.lock();
            rx = rx.take().or_else(|| inner.rx.reclaim());
            tx = tx.take().or_else(|| inner.tx.reclaim());
            if !had || rx.is_some() && tx.is_some() {
                return Poll::Ready(());
            }
            register(&mut inner.task, context.waker());
            Poll::Pending
        })
        .await;
        (rx, tx)
    }

    /// Waits until the back end breaks the protocol.
    pub(super) async fn violated(&self) -> Violation {
        poll_fn(|context| {
            let mut inner = self.inner.lock();
            if let Some(violation) = inner.violation {
                return Poll::Ready(violation);
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

    /// Gives a part of a connection that has ended back, or gets that of the one that has begun.
    pub(super) fn exchange<T>(&self, held: &mut Option<(Box<T>, Arc<Connection>)>, leaving: bool) -> bool
    where
        Inner: Place<T>,
    {
        let mut inner = self.inner.lock();
        let mut task = None;
        let current = |inner: &Inner, connection: &Arc<Connection>| {
            inner.connection.as_ref().is_some_and(|now| Arc::ptr_eq(now, connection))
        };
        if let Some((part, _)) = held.take_if(|(_, connection)| leaving || !current(&inner, connection)) {
            *inner.place() = Handoff::Back(part);
            task = inner.task.take();
        }
        if let (None, Some(connection), false) = (&held, inner.connection.clone(), leaving) {
            match core::mem::replace(inner.place(), Handoff::Away) {
                Handoff::Ready(part) => *held = Some((part, connection)),
                other => *inner.place() = other,
            }
        }
        drop(inner);
        task.into_iter().for_each(Waker::wake);
        held.is_some()
    }

    /// Has a half woken when a connection begins or ends.
    pub(super) fn register(&self, side: Side, context: &Context<'_>) {
        register(&mut self.inner.lock().wakers[side as usize], context.waker());
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
