//! What is known of each port: how many events were delivered, and who waits for the next.

use alloc::vec::Vec;
use core::task::Waker;

use spin::Mutex;

use super::Error;
use crate::state::State;

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
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Inner>);

#[derive(Debug, Default)]
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

impl Table {
    /// Whether somebody has it in hand.
    #[cfg(target_os = "none")]
    pub(crate) fn is_locked(&self) -> bool {
        self.0.is_locked()
    }

    /// Makes room for a port.
    pub(super) fn reserve(&self, port: u32) -> Result<(), Error> {
        let mut inner = self.0.lock();
        let needed = (port as usize + 1).saturating_sub(inner.ports.len());
        inner.ports.try_reserve(needed).map_err(|_| Error::OutOfMemory)
    }

    /// Whether a port is in it.
    pub(super) fn has(&self, port: u32) -> bool {
        self.0.lock().entry(port).is_some()
    }

    /// Begins to count the events of a port that is not in it.
    pub(super) fn add(&self, port: u32, state: &State) {
        let mut inner = self.0.lock();
        let length = inner.ports.len().max(port as usize + 1);
        inner.ports.resize_with(length, || None);
        inner.ports[port as usize] = Some(Entry::default());
        drop(inner);
        state.delivery.unmask(&state.info, port);
    }

    /// Forgets a port that is going to be closed: no event of its reaches the next owner of the number.
    pub(super) fn remove(&self, port: u32, state: &State) {
        state.delivery.mask(&state.info, port);
        state.delivery.clear_pending(&state.info, port);
        let mut inner = self.0.lock();
        let entry = inner.ports.get_mut(port as usize).and_then(Option::take);
        inner.waiting -= entry.as_ref().map_or(0, |entry| counted(&entry.waiters));
        drop(inner);
        drop(entry);
    }

    /// Events that were delivered on a port. Whoever asks has taken note: the next event may come.
    pub(super) fn count(&self, state: &State, port: u32) -> u64 {
        let mut inner = self.0.lock();
        let (count, unmask) =
            inner.entry(port).map_or((0, false), |entry| (entry.count, core::mem::take(&mut entry.masked)));
        drop(inner);
        if unmask {
            state.delivery.unmask(&state.info, port);
        }
        count
    }

    /// Looks for events beyond a number that was seen, or registers a waker for the next one.
    pub(super) fn look(&self, state: &State, port: u32, seen: u64, id: Option<u64>, waker: &Waker) -> Seen {
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
                let background = state.executor.is_in_background();
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
    pub(crate) fn anybody_waits(&self) -> bool {
        self.0.lock().waiting > 0
    }

    /// Delivers what Xen has raised: each port that fired is masked, counted and its waiters are woken. The cost follows
    /// the ports that fired, and who waits for them. `own` takes ports that are the crate's own business.
    pub(crate) fn deliver(&self, state: &State, own: impl Fn(u32) -> bool) {
        let State { delivery, info, .. } = state;
        delivery.take(info, |port| {
            if own(port) {
                delivery.unmask(info, port);
            } else {
                self.fire(port);
            }
        });
    }

    /// Wakes who waits for a port, as an event does.
    pub(crate) fn wake(&self, state: &State, port: u32) {
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
