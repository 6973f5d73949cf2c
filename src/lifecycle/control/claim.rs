//! Who listens to the toolstack, and how much it has said.

use core::future::poll_fn;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::task::{Poll, Waker};

use crate::sync::Mutex;
use crate::sync::wait_list::WaitCell;

use super::received::Received;
use crate::local::domain_local;
use crate::local::{self, Instance};

domain_local! {
    /// The streams of `control/shutdown`.
    pub(in crate::lifecycle) static REQUESTS: Desk = Desk::new();
    /// The streams of `control/sysrq`.
    pub(in crate::lifecycle) static KEYS: Desk = Desk::new();
    /// Counters of requests.
    pub(in crate::lifecycle) static COUNTS: Counts = Counts::new();
}

/// How much the toolstack has said.
#[derive(Debug)]
pub(in crate::lifecycle) struct Counts {
    pub(in crate::lifecycle) requests: AtomicU64,
    pub(in crate::lifecycle) suspends: AtomicU64,
    pub(in crate::lifecycle) unknown: AtomicU64,
    pub(in crate::lifecycle) sysrq: AtomicU64,
    pub(in crate::lifecycle) interrupted: AtomicU64,
    pub(in crate::lifecycle) console_bytes_lost: AtomicU64,
}

impl Counts {
    const fn new() -> Self {
        Self {
            requests: AtomicU64::new(0),
            suspends: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            sysrq: AtomicU64::new(0),
            interrupted: AtomicU64::new(0),
            console_bytes_lost: AtomicU64::new(0),
        }
    }
}

/// Counts one more.
pub(in crate::lifecycle) fn count(counter: &AtomicU64) {
    count_many(counter, 1);
}

/// Counts so many more.
pub(in crate::lifecycle) fn count_many(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Where words of one kind are received: by the application, as long as it holds a stream of them, and else by this crate.
#[derive(Debug)]
pub(in crate::lifecycle) struct Desk {
    /// Streams that the application holds.
    taken: AtomicUsize,
    /// This crate's task, while it waits for there to be none.
    waits: Mutex<WaitCell>,
    /// The request that was acknowledged and not handed out yet.
    pub(super) received: Received,
}

impl Desk {
    const fn new() -> Self {
        Self { taken: AtomicUsize::new(0), waits: Mutex::new(WaitCell::new()), received: Received::new() }
    }

    /// The application takes over.
    pub(in crate::lifecycle) fn take(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// A stream of the application's is gone.
    pub(in crate::lifecycle) fn give_back(&self) {
        if self.taken.fetch_sub(1, Ordering::Relaxed) == 1 {
            let waker = self.waits.lock().take();
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until the application holds no stream.
    pub(in crate::lifecycle) async fn free(&self) {
        poll_fn(|context| {
            if self.taken.load(Ordering::Relaxed) == 0 {
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            let replaced = self.waits.lock().register(waker);
            drop(replaced);
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
    local::current().map_or_else(Stat::default, |state: Instance| {
        let Counts { requests, suspends, unknown, sysrq, interrupted, console_bytes_lost } = COUNTS.of(state);
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
