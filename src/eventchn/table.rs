//! Each port's count of delivered events, and the waiters for the next one.

use alloc::vec::Vec;
use core::task::{Poll, Waker};

use crate::sync::Mutex;
use crate::sync::wait_list::{Queue, Waiter, WaiterId, Waiters};

use super::ErrorKind;
use crate::abi::errno::Errno;
use crate::eventchn::DELIVERY;
use crate::eventchn::TIMER;
use crate::executor::{Source, Turn};
use crate::hypercall;
use crate::local::Instance;
use crate::local::domain_local;
use crate::shared::INFO;
use crate::time::Instant;

domain_local! {
    /// The ports of the domain.
    pub(crate) static PORTS: Table = Table::new();
}

/// A port in use.
#[derive(Debug, Default)]
struct Entry {
    /// Events that were delivered.
    count: u64,
    /// Nobody has taken note of the last one yet.
    masked: bool,
    waiting: Queue,
}

/// All ports of a domain, by number.
#[derive(Debug)]
pub(crate) struct Table(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    ports: Vec<Option<Entry>>,
    /// The waiters of all ports.
    waiters: Waiters,
}

impl Inner {
    fn entry(&mut self, port: u32) -> Option<&mut Entry> {
        self.ports.get_mut(port as usize)?.as_mut()
    }

    /// A port in use, with the waiters of all ports.
    fn with_waiters(&mut self, port: u32) -> Option<(&mut Entry, &mut Waiters)> {
        Some((self.ports.get_mut(port as usize)?.as_mut()?, &mut self.waiters))
    }
}

/// Events, in the main loop.
pub(crate) struct Events;

impl Source for Events {
    #[inline]
    fn poll(&self, turn: &mut Turn) {
        if INFO.of(turn.domain).upcall_pending() {
            PORTS.of(turn.domain).deliver(turn.domain);
        }
    }

    #[inline]
    fn may_wake(&self, domain: Instance) -> bool {
        PORTS.of(domain).has_foreground()
    }
}

/// Sets the timer for a deadline, and says whether the virtual CPU may halt: not if the deadline has come, or an event is pending.
/// Fails if Xen does not let events end a halt.
pub(crate) fn prepare_halt(domain: Instance, now: Instant, deadline: Option<Instant>) -> Result<bool, Errno> {
    hypercall::enable_callback(domain)?;
    Ok(TIMER.of(domain).program(domain, now, deadline) && !INFO.of(domain).upcall_pending())
}

impl Table {
    /// No port.
    const fn new() -> Self {
        Self(Mutex::new(Inner { ports: Vec::new(), waiters: Waiters::new() }))
    }

    /// Makes room for a port.
    pub(super) fn reserve(&self, port: u32) -> Result<(), ErrorKind> {
        let mut inner = self.0.lock();
        let needed = (port as usize + 1).saturating_sub(inner.ports.len());
        inner.ports.try_reserve(needed).map_err(|_| ErrorKind::OutOfMemory)
    }

    /// Whether a port is in it.
    pub(super) fn has(&self, port: u32) -> bool {
        self.0.lock().entry(port).is_some()
    }

    /// Begins to count the events of a port that is not in it.
    pub(super) fn add(&self, port: u32, state: Instance) {
        let mut inner = self.0.lock();
        let length = inner.ports.len().max(port as usize + 1);
        inner.ports.resize_with(length, || None);
        inner.ports[port as usize] = Some(Entry::default());
        drop(inner);
        DELIVERY.of(state).unmask(INFO.of(state), port);
    }

    /// Forgets a port that is going to be closed: no event of its reaches the next owner of the number.
    pub(super) fn remove(&self, port: u32, state: Instance) {
        DELIVERY.of(state).mask(INFO.of(state), port);
        DELIVERY.of(state).clear_pending(INFO.of(state), port);
        // Each future that waits borrows its port, unless it was leaked: its waker is dropped, one at a time.
        while let Some(waker) = self.remove_waiter(port) {
            drop(waker);
        }
    }

    /// Takes out a waiter of a port, or else the port.
    fn remove_waiter(&self, port: u32) -> Option<Waker> {
        let mut inner = self.0.lock();
        let (entry, waiters) = inner.with_waiters(port)?;
        let waker = entry.waiting.pop(waiters, waiters.mark());
        if waker.is_none() {
            inner.ports[port as usize] = None;
        }
        waker
    }

    /// Events that were delivered on a port. Whoever asks has taken note: the next event may come.
    pub(super) fn count(&self, state: Instance, port: u32) -> u64 {
        let mut inner = self.0.lock();
        let (count, unmask) =
            inner.entry(port).map_or((0, false), |entry| (entry.count, core::mem::take(&mut entry.masked)));
        drop(inner);
        if unmask {
            DELIVERY.of(state).unmask(INFO.of(state), port);
        }
        count
    }

    /// The number of events if it is beyond one that was seen; else registers a waker for the next one. None of a port that is
    /// not in the table.
    pub(super) fn poll(
        &self,
        state: Instance,
        port: u32,
        seen: u64,
        id: &mut Option<WaiterId>,
        waker: &Waker,
    ) -> Poll<Option<u64>> {
        let waiter = Waiter::new(state, waker);
        let count = self.count(state, port);
        let mut inner = self.0.lock();
        let Some((entry, waiters)) = inner.with_waiters(port) else { return Poll::Ready(None) };
        let (replaced, result) = if count > seen {
            (id.take().and_then(|id| entry.waiting.leave(waiters, id)), Poll::Ready(Some(count)))
        } else {
            (entry.waiting.register(waiters, id, waiter, 0), Poll::Pending)
        };
        drop(inner);
        drop(replaced);
        result
    }

    /// A waiter goes away.
    pub(super) fn forget(&self, port: u32, id: WaiterId) {
        let mut inner = self.0.lock();
        let waker = inner.with_waiters(port).and_then(|(entry, waiters)| entry.waiting.leave(waiters, id));
        drop(inner);
        drop(waker);
    }

    /// Forgets all ports, as Xen has closed them. The waiters, whose wakers are returned, find theirs from before the resume.
    pub(crate) fn resume(&self) -> impl Iterator<Item = Waker> {
        let mut inner = self.0.lock();
        let (ports, mut waiters) = (core::mem::take(&mut inner.ports), inner.waiters.close());
        drop(inner);
        let (mut ports, mut waiting) = (ports.into_iter().flatten(), Queue::new());
        core::iter::from_fn(move || {
            loop {
                let mark = waiters.mark();
                match waiting.pop(&mut waiters, mark) {
                    None => waiting = ports.next()?.waiting,
                    waker => return waker,
                }
            }
        })
    }

    /// Whether a future waits for any port that is not in the background.
    fn has_foreground(&self) -> bool {
        self.0.lock().waiters.has_foreground()
    }

    /// Delivers what Xen has raised: each port that fired is masked, counted and its waiters are woken. The cost follows
    /// the ports that fired, and their waiters.
    fn deliver(&self, domain: Instance) {
        let (delivery, info, timer) = (DELIVERY.of(domain), INFO.of(domain), TIMER.of(domain));
        delivery.take(info, |port| {
            if timer.owns(port) {
                delivery.unmask(info, port);
            } else {
                self.fire(port);
            }
        });
    }

    /// Wakes who waits for a port, as an event does.
    pub(crate) fn wake(&self, state: Instance, port: u32) {
        self.fire(port);
        let _ = self.count(state, port);
    }

    /// Counts an event and wakes who waits for it.
    fn fire(&self, port: u32) {
        let mut inner = self.0.lock();
        let Some((entry, waiters)) = inner.with_waiters(port) else { return };
        entry.count += 1;
        entry.masked = true;
        let mark = waiters.mark();
        let mut next = entry.waiting.pop(waiters, mark);
        drop(inner);
        while let Some(waker) = next {
            waker.wake();
            let mut inner = self.0.lock();
            next = inner.with_waiters(port).and_then(|(entry, waiters)| entry.waiting.pop(waiters, mark));
        }
    }
}
