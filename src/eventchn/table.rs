//! What is known of each port: how many events were delivered, and who waits for the next.

use alloc::vec::Vec;
use core::task::Waker;

use spin::Mutex;

use super::Error;
use crate::shared::SharedInfo;

/// A port in use.
#[derive(Debug, Default)]
struct Entry {
    /// Events that were delivered.
    count: u64,
    /// Nobody has taken note of the last one yet.
    masked: bool,
    waiters: Vec<Waiter>,
}

/// A future that waits for a port.
#[derive(Debug)]
struct Waiter {
    id: u64,
    /// Absent once it has been woken.
    waker: Option<Waker>,
}

/// All ports of a domain, by number.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ports: Vec<Option<Entry>>,
    next_id: u64,
    /// Futures that wait.
    waiting: usize,
}

impl Inner {
    fn entry(&mut self, port: u32) -> Option<&mut Entry> {
        self.ports.get_mut(port as usize)?.as_mut()
    }
}

/// What a look at a port tells its waiter.
pub(super) enum Seen {
    /// There were events: so many in all.
    Events(u64),
    /// There were none; the waker will be called. The number is the waiter's, for the next look.
    Waiting(u64),
}

impl Table {
    /// Makes room for a port before it is bound, so that a bound one can always be kept.
    pub(super) fn reserve(&self, port: u32) -> Result<(), Error> {
        let mut inner = self.0.lock();
        let needed = (port as usize + 1).saturating_sub(inner.ports.len());
        inner.ports.try_reserve(needed).map_err(|_| Error::OutOfMemory)
    }

    /// Begins to count a port's events.
    pub(super) fn add(&self, port: u32, info: &SharedInfo) {
        let mut inner = self.0.lock();
        let length = inner.ports.len().max(port as usize + 1);
        inner.ports.resize_with(length, || None);
        inner.ports[port as usize] = Some(Entry::default());
        drop(inner);
        info.unmask(port);
    }

    /// Forgets a port that is going to be closed: no event of its reaches the next owner of the number.
    pub(super) fn remove(&self, port: u32, info: &SharedInfo) {
        info.mask(port);
        info.clear_pending(port);
        let mut inner = self.0.lock();
        if let Some(entry) = inner.ports.get_mut(port as usize).and_then(Option::take) {
            inner.waiting -= entry.waiters.iter().filter(|waiter| waiter.waker.is_some()).count();
        }
    }

    /// Events that were delivered on a port.
    pub(super) fn count(&self, port: u32) -> u64 {
        self.0.lock().entry(port).map_or(0, |entry| entry.count)
    }

    /// Looks for events beyond a number that was seen, or registers a waker for the next one.
    pub(super) fn look(&self, info: &SharedInfo, port: u32, seen: u64, id: Option<u64>, waker: &Waker) -> Seen {
        let mut inner = self.0.lock();
        let new_id = inner.next_id;
        let Some(entry) = inner.entry(port) else { return Seen::Events(seen) };
        // Whoever looks has taken note: the next event may come.
        let unmask = core::mem::take(&mut entry.masked);
        let count = entry.count;
        let mut newly_waiting = false;
        let seen = if count > seen {
            entry.waiters.retain(|waiter| Some(waiter.id) != id);
            Seen::Events(count)
        } else {
            match entry.waiters.iter_mut().find(|waiter| Some(waiter.id) == id) {
                Some(waiter) => {
                    newly_waiting = waiter.waker.replace(waker.clone()).is_none();
                    Seen::Waiting(waiter.id)
                }
                None => {
                    entry.waiters.push(Waiter { id: new_id, waker: Some(waker.clone()) });
                    newly_waiting = true;
                    Seen::Waiting(new_id)
                }
            }
        };
        inner.next_id += 1;
        inner.waiting += usize::from(newly_waiting);
        drop(inner);
        if unmask {
            info.unmask(port);
        }
        seen
    }

    /// A waiter goes away.
    pub(super) fn forget(&self, port: u32, id: u64) {
        let mut inner = self.0.lock();
        let Some(entry) = inner.entry(port) else { return };
        let Some(index) = entry.waiters.iter().position(|waiter| waiter.id == id) else { return };
        let waiter = entry.waiters.swap_remove(index);
        inner.waiting -= usize::from(waiter.waker.is_some());
    }

    /// Whether a future waits for any port.
    pub(crate) fn anybody_waits(&self) -> bool {
        self.0.lock().waiting > 0
    }

    /// Delivers what Xen has raised: each port that fired is masked, counted and its waiters are woken. The cost follows
    /// the ports that fired. `own` takes ports that are the crate's own business.
    pub(crate) fn deliver(&self, info: &SharedInfo, own: impl Fn(u32) -> bool) {
        for word in bits(info.take_upcall()) {
            for bit in bits(info.take_ports(word as usize)) {
                let port = word * 64 + bit;
                if own(port) {
                    info.unmask(port);
                } else {
                    self.fire(port);
                }
            }
        }
    }

    fn fire(&self, port: u32) {
        if let Some(entry) = self.0.lock().entry(port) {
            entry.count += 1;
            entry.masked = true;
        }
        // Wakers are not called while the table is in use.
        while let Some(waker) = self.next_waker(port) {
            waker.wake();
        }
    }

    fn next_waker(&self, port: u32) -> Option<Waker> {
        let mut inner = self.0.lock();
        let waker = inner.entry(port)?.waiters.iter_mut().find_map(|waiter| waiter.waker.take())?;
        inner.waiting -= 1;
        Some(waker)
    }
}

/// The numbers of the bits that are set, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        // Clears the lowest bit that is set.
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}
