//! What serves the console of a simulated domain: honest, slow, dead and hostile backends.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;
use std::vec::Vec;

use crate::abi::console::{IN, IN_CONS, IN_PROD, IN_SIZE, OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
use crate::shared::SharedPage;
use crate::sim::machine::START_NS;
use crate::sim::machine::memory;

/// What one that crawls takes for a byte.
const CRAWL_NS: u64 = 250_000_000;

/// The behaviour of the console's backend. It acts when it is notified, and, if it has more to do then, each millisecond or
/// whenever the domain polls. All but the one that is absent hand on input.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Backend {
    /// Reads everything at once.
    Drains,
    /// Reads so many bytes each time.
    Trickles(u32),
    /// Reads so many bytes in all, then nothing more.
    StopsAfter(u32),
    /// Reads a byte each quarter of a second and raises no event, so that every wait lasts to its end.
    Crawls,
    /// Reads nothing, and raises events all the time.
    Storms,
    /// Reads so many bytes honestly, then shows an index of its choice, computed from the true pair (producer,
    /// consumer).
    Lies(u32, fn(u32, u32) -> u32),
    /// Reads nothing so many times it acts, then everything.
    Wakes(u32),
    /// Does nothing: whatever is in the ring, somebody else has written there.
    Idle,
    /// There is no console.
    Absent,
}

/// The backend at work.
pub(crate) struct Reader {
    backend: Backend,
    page: SharedPage,
    /// The true consumer index.
    consumed: u32,
    acted: u32,
    pub(crate) received: Vec<u8>,
    /// What was typed and does not fit into the ring yet.
    typed: VecDeque<u8>,
    /// The true producer index of the input.
    produced: u32,
    /// When it acts next, unless it is notified before.
    pub(crate) next_ns: Option<u64>,
}

impl Reader {
    pub(crate) fn new(backend: Backend, page: SharedPage, index: u32, consumer_ahead: u32) -> Self {
        page.u32(OUT_PROD).store(index, Ordering::Relaxed);
        page.u32(OUT_CONS).store(index.wrapping_add(consumer_ahead), Ordering::Relaxed);
        // Input too, at indices of its own.
        let produced = index.wrapping_mul(3);
        page.u32(IN_PROD).store(produced, Ordering::Relaxed);
        page.u32(IN_CONS).store(produced, Ordering::Relaxed);
        Self {
            backend,
            page,
            consumed: index,
            acted: 0,
            received: Vec::new(),
            typed: VecDeque::new(),
            produced,
            next_ns: None,
        }
    }

    /// Serves a new domain, whose rings are empty. What was typed goes there.
    pub(in crate::sim) fn restart(&mut self) {
        memory::refill(self.page, 0);
        (self.consumed, self.produced, self.next_ns) = (0, 0, None);
    }

    /// The page of its rings.
    #[cfg(fuzzing)]
    pub(in crate::sim) const fn page(&self) -> SharedPage {
        self.page
    }

    /// Somebody types; true if that raises an event.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) -> bool {
        self.typed.extend(bytes);
        self.hand_on()
    }

    /// Shows a producer index of the input that is not the true one.
    pub(crate) fn lie_about_input(&self, index: u32) {
        self.page.u32(IN_PROD).store(index, Ordering::Release);
    }

    /// Moves what was typed into the ring; true if it was anything.
    fn hand_on(&mut self) -> bool {
        let taken = self.page.u32(IN_CONS).load(Ordering::Acquire);
        let unread = self.produced.wrapping_sub(taken);
        assert!(unread <= IN_SIZE, "the guest's index is impossible: {taken} of {}", self.produced);
        let count = self.typed.len().min((IN_SIZE - unread) as usize);
        for byte in self.typed.drain(..count) {
            self.page.u8(IN + (self.produced % IN_SIZE) as usize).store(byte, Ordering::Relaxed);
            self.produced = self.produced.wrapping_add(1);
        }
        if count > 0 {
            self.page.u32(IN_PROD).store(self.produced, Ordering::Release);
        }
        count > 0
    }

    /// Has a turn; true if it raises an event.
    pub(crate) fn act(&mut self, now_ns: u64) -> bool {
        if matches!(self.backend, Backend::Idle) {
            return false;
        }
        let (read, handed_on) = (self.serve_output(now_ns), self.hand_on());
        let unread = self.page.u32(OUT_PROD).load(Ordering::Acquire) != self.consumed;
        self.next_ns = match self.backend {
            Backend::Trickles(_) | Backend::Wakes(_) if unread => Some(now_ns + 1_000_000),
            Backend::Crawls if unread => Some(START_NS + (Self::crawled(now_ns) + 1) * CRAWL_NS),
            Backend::Storms => Some(now_ns + 1_000_000),
            _ => None,
        };
        read || handed_on
    }

    fn serve_output(&mut self, now_ns: u64) -> bool {
        self.acted += 1;
        let so_far = self.received.len() as u32;
        match self.backend {
            Backend::Drains => self.read(u32::MAX),
            Backend::Trickles(bytes) => self.read(bytes),
            Backend::StopsAfter(bytes) => self.read(bytes - so_far),
            Backend::Crawls => {
                self.read((Self::crawled(now_ns) - u64::from(so_far)) as u32);
                false
            }
            Backend::Storms => true,
            Backend::Lies(bytes, index) => {
                let progress = self.read(bytes - so_far);
                if self.received.len() as u32 == bytes {
                    let produced = self.page.u32(OUT_PROD).load(Ordering::Acquire);
                    self.page.u32(OUT_CONS).store(index(produced, self.consumed), Ordering::Release);
                }
                progress
            }
            Backend::Wakes(turns) => self.acted > turns && self.read(u32::MAX),
            Backend::Idle | Backend::Absent => false,
        }
    }

    /// Bytes that a backend has read by now that takes so long for each.
    const fn crawled(now_ns: u64) -> u64 {
        (now_ns - START_NS) / CRAWL_NS
    }

    /// Reads up to `limit` bytes; true if there were any.
    fn read(&mut self, limit: u32) -> bool {
        let produced = self.page.u32(OUT_PROD).load(Ordering::Acquire);
        let count = produced.wrapping_sub(self.consumed);
        assert!(count <= OUT_SIZE, "the guest's index is impossible: {produced} after {}", self.consumed);
        let count = count.min(limit);
        for _ in 0..count {
            let place = OUT + (self.consumed % OUT_SIZE) as usize;
            self.received.push(self.page.u8(place).load(Ordering::Relaxed));
            self.consumed = self.consumed.wrapping_add(1);
        }
        self.page.u32(OUT_CONS).store(self.consumed, Ordering::Release);
        count > 0
    }
}
