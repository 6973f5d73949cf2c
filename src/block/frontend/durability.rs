//! What is durable: writes in the order of their completion, and flushes.
//!
//! Each completed write has a number. A flush that is sent when `completed` writes have completed makes all numbers below that
//! durable, if it succeeds. When a connection is lost with writes unflushed, or a flush fails, `floor` is set to `completed`: no later
//! flush vouches for numbers below it.

use alloc::vec::Vec;
use core::task::Waker;

use super::super::ErrorKind;
use super::super::protocol::{DeviceNumber, Status};
use super::config::Durability;

/// A completed write: later reads see it, but it is not durable.
///
/// It is durable when a flush that [covers](Flushed::covers) it has completed.
#[must_use = "a completed write is not durable: a flush that is sent later makes it so"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    pub(super) disk: DeviceNumber,
    /// The number of the last of its parts. They need not be in one piece, so the first counts for the floor.
    pub(super) first: u64,
    pub(super) last: u64,
}

/// A completed flush: writes that had completed before it was sent, on its connection, are durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flushed {
    pub(super) disk: DeviceNumber,
    pub(super) floor: u64,
    pub(super) through: u64,
}

impl Flushed {
    /// Whether the flush has made a write durable. It has not if the write completed after the flush was sent, or before a
    /// connection was lost: the write may be lost then.
    #[must_use]
    pub fn covers(&self, written: &Written) -> bool {
        self.disk == written.disk && written.first >= self.floor && written.last < self.through
    }
}

/// A future that waits for a flush.
#[derive(Debug)]
struct Waiter {
    /// The flush that it waits for.
    round: u64,
    result: Option<Result<Flushed, ErrorKind>>,
    waker: Waker,
}

/// A flush in the ring.
#[derive(Clone, Copy, Debug)]
struct Sent {
    round: u64,
    through: u64,
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Ledger {
    disk: DeviceNumber,
    completed: u64,
    /// Numbers below are durable, or were given up.
    settled: u64,
    floor: u64,
    /// To be reported by the next flush.
    lost: bool,
    failed: bool,
    means: Durability,
    /// An empty barrier has succeeded.
    barrier_works: bool,
    sent: Option<Sent>,
    /// The next flush to be sent, and whether a future waits for it.
    round: u64,
    wanted: bool,
    waiters: Vec<Option<Waiter>>,
}

impl Ledger {
    pub(super) const fn new(disk: DeviceNumber) -> Self {
        Self {
            disk,
            completed: 0,
            settled: 0,
            floor: 0,
            lost: false,
            failed: false,
            means: Durability::Unknown,
            barrier_works: false,
            sent: None,
            round: 0,
            wanted: false,
            waiters: Vec::new(),
        }
    }

    /// The number of a write that has just completed.
    pub(super) const fn complete(&mut self) -> u64 {
        self.completed += 1;
        self.completed - 1
    }

    pub(super) const fn means(&self) -> Durability {
        self.means
    }

    /// Whether a flush has failed, and the application has not taken note.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) const fn clear_failure(&mut self) {
        self.failed = false;
    }

    /// A connection was made, to a back end with these means.
    pub(super) fn connected(&mut self, means: Durability, wake: &mut Vec<Waker>) {
        self.means = means;
        self.barrier_works = false;
        if means == Durability::Unknown {
            self.answer_all(Err(ErrorKind::FlushUnsupported), wake);
        }
    }

    /// A connection was lost. Writes that were complete and not flushed may be lost: whoever waits for a flush is told, else the
    /// next flush is. Without such writes flushes are sent again.
    pub(super) fn disconnected(&mut self, wake: &mut Vec<Waker>) {
        let unflushed = self.settled < self.completed;
        self.wanted |= self.sent.take().is_some();
        if unflushed {
            (self.floor, self.settled) = (self.completed, self.completed);
            self.lost |= !self.answer_all(Err(ErrorKind::MayBeLost), wake);
        }
        // What was sent is asked for once more with what comes later.
        for waiter in self.waiters.iter_mut().flatten() {
            waiter.round = self.round;
        }
    }

    /// No flush will be answered any more.
    pub(super) fn finish(&mut self, kind: ErrorKind, wake: &mut Vec<Waker>) {
        self.answer_all(Err(kind), wake);
    }

    /// Begins to wait for a flush: an answer at once, or a place.
    pub(super) fn begin(&mut self, connected: bool, waker: &Waker) -> Result<usize, Result<Flushed, ErrorKind>> {
        if self.failed {
            return Err(Err(ErrorKind::FlushFailed));
        }
        if core::mem::take(&mut self.lost) {
            return Err(Err(ErrorKind::MayBeLost));
        }
        if connected && self.means == Durability::Unknown {
            return Err(Err(ErrorKind::FlushUnsupported));
        }
        if connected && self.settled == self.completed {
            return Err(Ok(self.flushed(self.completed)));
        }
        self.wanted = true;
        let waiter = Some(Waiter { round: self.round, result: None, waker: waker.clone() });
        match self.waiters.iter().position(Option::is_none) {
            Some(place) => {
                self.waiters[place] = waiter;
                Ok(place)
            }
            None => {
                if self.waiters.try_reserve(1).is_err() {
                    return Err(Err(ErrorKind::OutOfMemory));
                }
                self.waiters.push(waiter);
                Ok(self.waiters.len() - 1)
            }
        }
    }

    /// The result for a place, once, or another waker for it.
    pub(super) fn poll(&mut self, place: usize, waker: &Waker) -> Option<Result<Flushed, ErrorKind>> {
        let waiter = self.waiters.get_mut(place)?.as_mut()?;
        if let Some(result) = waiter.result {
            self.waiters[place] = None;
            return Some(result);
        }
        waiter.waker.clone_from(waker);
        None
    }

    /// Gives up a place.
    pub(super) fn leave(&mut self, place: usize) {
        self.waiters[place] = None;
        let is_wanted =
            self.waiters.iter().flatten().any(|waiter| waiter.result.is_none() && waiter.round == self.round);
        self.wanted &= is_wanted;
    }

    /// Whether a flush has something to do, and no error to report.
    pub(super) const fn is_flushable(&self) -> bool {
        !self.lost && !self.failed && self.settled < self.completed && !matches!(self.means, Durability::Unknown)
    }

    /// The report of a loss is for another than who was told.
    pub(super) const fn report_loss(&mut self) {
        self.lost = true;
    }

    /// Whether no flush is in flight, or to be sent.
    pub(super) const fn is_idle(&self) -> bool {
        !self.wanted && self.sent.is_none()
    }

    /// Whether a flush is to be sent: one at a time.
    pub(super) const fn is_due(&self) -> bool {
        self.wanted && self.sent.is_none()
    }

    /// A flush is in the ring. It vouches for what has completed by now.
    pub(super) const fn sent(&mut self) {
        self.sent = Some(Sent { round: self.round, through: self.completed });
        self.round += 1;
        self.wanted = false;
    }

    /// The answer to the flush in the ring; whether the back end was found not to have what it offered.
    pub(super) fn answered(&mut self, status: Status, barrier_too: bool, wake: &mut Vec<Waker>) -> bool {
        let Some(Sent { round, through }) = self.sent.take() else { return false };
        let unsupported = match (status, self.means) {
            (Status::Unsupported, _) => true,
            // Some back ends refuse a request without data like this.
            (Status::Error, Durability::Barrier) => !self.barrier_works,
            _ => false,
        };
        if status == Status::Okay {
            self.barrier_works = self.means == Durability::Barrier;
            self.settled = self.settled.max(through);
            let flushed = self.flushed(through);
            self.answer(round, Ok(flushed), wake);
        } else if unsupported {
            let next =
                if self.means == Durability::Flush && barrier_too { Durability::Barrier } else { Durability::Unknown };
            self.means = next;
            self.answer(round, Err(ErrorKind::FlushUnsupported), wake);
            if next == Durability::Unknown {
                self.answer_all(Err(ErrorKind::FlushUnsupported), wake);
            }
        } else {
            self.failed = true;
            (self.floor, self.settled) = (self.completed, self.completed);
            self.answer_all(Err(ErrorKind::FlushFailed), wake);
        }
        unsupported
    }

    const fn flushed(&self, through: u64) -> Flushed {
        Flushed { disk: self.disk, floor: self.floor, through }
    }

    /// Answers those that wait for a round.
    fn answer(&mut self, round: u64, result: Result<Flushed, ErrorKind>, wake: &mut Vec<Waker>) {
        for waiter in
            self.waiters.iter_mut().flatten().filter(|waiter| waiter.round == round && waiter.result.is_none())
        {
            waiter.result = Some(result);
            wake.push(waiter.waker.clone());
        }
    }

    /// Answers all that wait; whether there were any.
    fn answer_all(&mut self, result: Result<Flushed, ErrorKind>, wake: &mut Vec<Waker>) -> bool {
        let mut any = false;
        for waiter in self.waiters.iter_mut().flatten().filter(|waiter| waiter.result.is_none()) {
            waiter.result = Some(result);
            wake.push(waiter.waker.clone());
            any = true;
        }
        self.wanted = false;
        any
    }
}
