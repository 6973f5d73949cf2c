//! Who listens to the toolstack, and how much it has said.

use core::future::poll_fn;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::task::{Poll, Waker};

use spin::Mutex;

use super::channel::Channel;
use super::received::Received;
use super::suspend::Suspends;
use super::watchdog::Watchdogs;
use crate::state::{self, State};

/// What a domain keeps of its toolstack's wishes.
#[derive(Debug, Default)]
pub(crate) struct Lifecycle {
    pub(super) requests: Desk,
    pub(super) sysrq: Desk,
    pub(super) channel: Channel,
    pub(super) suspends: Suspends,
    pub(super) watchdogs: Watchdogs,
    pub(super) counts: Counts,
}

impl Lifecycle {
    pub(crate) fn new(suspend_over_limit: bool) -> Self {
        let lifecycle = Self::default();
        lifecycle.suspends.allow_over_limit(suspend_over_limit);
        lifecycle
    }

    /// Whether a future waits for what comes of a suspend, and the toolstack can ask for one.
    pub(crate) fn anybody_waits(&self, state: &State) -> bool {
        state.xenstore.is_there() && self.suspends.anybody_waits()
    }

    /// Whether somebody has it in hand.
    #[cfg(target_os = "none")]
    pub(crate) fn is_locked(&self) -> bool {
        self.requests.is_locked() || self.sysrq.is_locked() || self.channel.is_locked() || self.suspends.is_locked()
    }
}

/// How much the toolstack has said.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: AtomicU64,
    pub(super) suspends: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) sysrq: AtomicU64,
    pub(super) interrupted: AtomicU64,
    pub(super) console_bytes_lost: AtomicU64,
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    count_many(counter, 1);
}

/// Counts so many more.
pub(super) fn count_many(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Where words of one kind are received: by the application, as long as it holds a stream of them, and else by this crate.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Streams that the application holds.
    taken: AtomicUsize,
    /// This crate's task, while it waits for there to be none.
    waits: Mutex<Option<Waker>>,
    /// The request that was acknowledged and not handed out yet.
    pub(super) received: Received,
}

impl Desk {
    #[cfg(target_os = "none")]
    fn is_locked(&self) -> bool {
        self.waits.is_locked() || self.received.is_locked()
    }

    /// The application takes over.
    pub(super) fn take(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// A stream of the application's is gone.
    pub(super) fn give_back(&self) {
        if self.taken.fetch_sub(1, Ordering::Relaxed) == 1 {
            let waker = self.waits.lock().take();
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until the application holds no stream.
    pub(super) async fn free(&self) {
        poll_fn(|context| {
            if self.taken.load(Ordering::Relaxed) == 0 {
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            let before = self.waits.lock().replace(waker);
            drop(before);
            Poll::Pending
        })
        .await;
    }
}

/// What the toolstack has asked of the domain so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Stat {
    /// Requests to shut down that were received, of all kinds.
    pub requests: u64,
    /// Those among them to suspend.
    pub suspends: u64,
    /// Those among them that this crate does not know.
    pub unknown: u64,
    /// Keys of `xl sysrq`.
    pub sysrq: u64,
    /// Requests to xenstore that ended in an error as they were open when the domain was resumed elsewhere.
    pub interrupted: u64,
    /// Bytes of the console that its backend had not read by then. It may have read some later.
    pub console_bytes_lost: u64,
}

/// What the toolstack has asked of the domain so far; nothing outside of a domain.
#[must_use]
pub fn stat() -> Stat {
    state::get().map_or_else(Stat::default, |state: &State| {
        let Counts { requests, suspends, unknown, sysrq, interrupted, console_bytes_lost } = &state.lifecycle.counts;
        Stat {
            requests: requests.load(Ordering::Relaxed),
            suspends: suspends.load(Ordering::Relaxed),
            unknown: unknown.load(Ordering::Relaxed),
            sysrq: sysrq.load(Ordering::Relaxed),
            interrupted: interrupted.load(Ordering::Relaxed),
            console_bytes_lost: console_bytes_lost.load(Ordering::Relaxed),
        }
    })
}
