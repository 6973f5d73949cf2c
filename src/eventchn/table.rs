//! What is known of each port: how many events were delivered, and who waits for the next.

use alloc::vec::Vec;
use core::task::Waker;

use crate::sync::Mutex;

use super::ErrorKind;
use crate::abi::errno::Errno;
use crate::eventchn::DELIVERY;
use crate::eventchn::TIMER;
use crate::executor::EXECUTOR;
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
    waiters: Vec<Waiter>,
}

/// A future that waits for a port: until it is woken, or goes away.
#[derive(Debug)]
struct Waiter {
    id: u64,
    waker: Waker,
    /// It is for nobody's sake.
    background: bool,
}

/// All ports of a domain, by number.
///
/// Wakers are the application's code: they are cloned, woken and dropped while the table is free.
#[derive(Debug)]
pub(crate) struct Table(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    ports: Vec<Option<Entry>>,
    next_id: u64,
    /// Futures that wait, for whichever port, but for those in the background.
    waiting: usize,
}

impl Inner {
    fn entry(&mut self, port: u32) -> Option<&mut Entry> {
        self.ports.get_mut(port as usize)?.as_mut()
    }

    /// Takes a waiter out of the list of a port.
    fn take_waiter(&mut self, port: u32, id: Option<u64>) -> Option<Waiter> {
        let entry = self.entry(port)?;
        let index = entry.waiters.iter().position(|waiter| Some(waiter.id) == id)?;
        let waiter = entry.waiters.swap_remove(index);
        self.waiting -= usize::from(!waiter.background);
        Some(waiter)
    }
}

/// How many of them are not in the background.
fn counted(waiters: &[Waiter]) -> usize {
    waiters.iter().filter(|waiter| !waiter.background).count()
}

/// What a look at a port tells its waiter.
pub(super) enum Seen {
    /// There were events: so many in all.
    Events(u64),
    /// There were none; the waker will be called. The number is the waiter's, for the next look.
    Waiting(u64),
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
        PORTS.of(domain).anybody_waits()
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
        Self(Mutex::new(Inner { ports: Vec::new(), next_id: 0, waiting: 0 }))
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
        let mut inner = self.0.lock();
        let entry = inner.ports.get_mut(port as usize).and_then(Option::take);
        inner.waiting -= entry.as_ref().map_or(0, |entry| counted(&entry.waiters));
        drop(inner);
        drop(entry);
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

    /// Looks for events beyond a number that was seen, or registers a waker for the next one.
    pub(super) fn look(&self, state: Instance, port: u32, seen: u64, id: Option<u64>, waker: &Waker) -> Seen {
        let waker = waker.clone();
        let count = self.count(state, port);
        let mut inner = self.0.lock();
        let before = inner.take_waiter(port, id);
        let result = if count > seen {
            Seen::Events(count)
        } else {
            let id = inner.next_id;
            inner.next_id += 1;
            if let Some(entry) = inner.entry(port) {
                let background = EXECUTOR.of(state).is_in_background();
                entry.waiters.push(Waiter { id, waker, background });
                inner.waiting += usize::from(!background);
            }
            Seen::Waiting(id)
        };
        drop(inner);
        drop(before);
        result
    }

    /// A waiter goes away.
    pub(super) fn forget(&self, port: u32, id: u64) {
        let waiter = self.0.lock().take_waiter(port, Some(id));
        drop(waiter);
    }

    /// Forgets all ports, as Xen has closed them. Who waits, and is to be woken, finds that his is from before the resume.
    pub(crate) fn resume(&self) -> impl Iterator<Item = Waker> {
        let mut inner = self.0.lock();
        inner.waiting = 0;
        let ports = core::mem::take(&mut inner.ports);
        ports.into_iter().flatten().flat_map(|entry| entry.waiters).map(|waiter| waiter.waker)
    }

    /// Whether a future waits for any port, and somebody for that.
    fn anybody_waits(&self) -> bool {
        self.0.lock().waiting > 0
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
        let Some(entry) = inner.entry(port) else { return };
        entry.count += 1;
        entry.masked = true;
        let mut woken = core::mem::take(&mut entry.waiters);
        inner.waiting -= counted(&woken);
        drop(inner);
        woken.drain(..).for_each(|waiter| waiter.waker.wake());
        // The empty list goes back, so that who waits next needs no new one.
        if let Some(entry) = self.0.lock().entry(port).filter(|entry| entry.waiters.capacity() == 0) {
            entry.waiters = woken;
        }
    }
}
