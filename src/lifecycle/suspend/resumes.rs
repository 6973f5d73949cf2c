//! The results of suspends, for the application and the crate's own tasks.

use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Poll, Waker};

use crate::domain::Domain;
use crate::executor::{EXECUTOR, Source, Turn};
use crate::local::{Instance, domain_local};
use crate::sync::Mutex;
use crate::xenstore::CONNECTION;

domain_local! {
    /// Suspends so far.
    pub(in crate::lifecycle) static SUSPENDS: Suspends = Suspends::new();
}

/// How the domain goes on after a suspend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Resumption {
    /// Where it was: the suspend was cancelled, or somebody wanted a copy (`xl save -c`). Ports, grants, mappings, watches and
    /// transactions are what they were.
    Cancelled,
    /// In another domain, here or on another host: ports, grants, mappings and transactions are
    /// [gone](super#suspend-and-resume).
    Restored,
}

/// What is known of suspends.
#[derive(Debug)]
pub(in crate::lifecycle) struct Suspends {
    pub(super) busy: AtomicBool,
    /// A suspend that could not be restored is an error.
    pub(super) refuses_over_limit: AtomicBool,
    history: Mutex<History>,
}

#[derive(Debug)]
struct History {
    /// Those that came to an end, and what came of the last.
    count: u64,
    last: Option<Resumption>,
    /// Who waits for the next. There are few.
    waiting: Vec<Waiting>,
    streams: u64,
}

/// A stream that waits.
#[derive(Debug)]
struct Waiting {
    stream: u64,
    waker: Waker,
    /// It is for nobody's sake.
    background: bool,
}

impl History {
    /// Takes out what waits for a stream: to be dropped while nothing is locked.
    fn remove(&mut self, stream: u64) -> Option<Waiting> {
        let index = self.waiting.iter().position(|waiting| waiting.stream == stream)?;
        Some(self.waiting.swap_remove(index))
    }
}

/// Suspends, in the main loop.
pub(crate) struct SuspendWaiters;

impl Source for SuspendWaiters {
    #[inline]
    fn poll(&self, _: &mut Turn) {}

    #[inline]
    fn may_wake(&self, domain: Instance) -> bool {
        // Without xenstore no toolstack asks for a suspend.
        CONNECTION.of(domain).is_there() && SUSPENDS.of(domain).anybody_waits()
    }
}

impl Suspends {
    /// No suspend yet.
    pub(in crate::lifecycle) const fn new() -> Self {
        let history = History { count: 0, last: None, waiting: Vec::new(), streams: 0 };
        Self { busy: AtomicBool::new(false), refuses_over_limit: AtomicBool::new(false), history: Mutex::new(history) }
    }

    pub(in crate::lifecycle) fn allow_over_limit(&self, allowed: bool) {
        self.refuses_over_limit.store(!allowed, Ordering::Relaxed);
    }

    /// Tells all who listen.
    pub(in crate::lifecycle) fn tell(&self, resumption: Resumption) {
        let mut history = self.history.lock();
        history.count += 1;
        history.last = Some(resumption);
        let waiting = core::mem::take(&mut history.waiting);
        drop(history);
        waiting.into_iter().for_each(|waiting| waiting.waker.wake());
    }

    /// Whether a future waits for a suspend, and somebody for that.
    pub(crate) fn anybody_waits(&self) -> bool {
        self.history.lock().waiting.iter().any(|waiting| !waiting.background)
    }
}

/// What came of each suspend: see [`Domain::resumes`].
#[must_use = "a stream does nothing unless it is asked"]
pub struct Resumes {
    state: Instance,
    number: u64,
    seen: u64,
}

impl Domain {
    /// How often the domain was resumed elsewhere: what has the same number was made in the same domain.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation()
    }

    /// What comes of each suspend from now on.
    pub fn resumes(&self) -> Resumes {
        Resumes::new(self.0)
    }
}

impl Resumes {
    pub(in crate::lifecycle) fn new(state: Instance) -> Self {
        let mut history = SUSPENDS.of(state).history.lock();
        history.streams += 1;
        Self { state, number: history.streams, seen: history.count }
    }

    /// Waits until the domain is another than that of `generation`.
    pub(in crate::lifecycle) async fn another(&mut self, generation: u64) {
        // Of several suspends only the last is told of.
        while self.state.generation() == generation {
            self.next().await;
        }
    }

    /// Waits for the next suspend to be over. Of several since the last was fetched only the last is told of:
    /// [`Domain::generation`] says whether one of them led elsewhere. Outside of its simulated domain it waits for ever.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> Resumption {
        let waits = Waits(self);
        poll_fn(|context| {
            let Waits(Self { state, number, seen }) = waits;
            let state = *state;
            if !state.is_running() {
                return Poll::Pending;
            }
            let waker = context.waker().clone();
            let mut history = SUSPENDS.of(state).history.lock();
            if let Some(last) = history.last.filter(|_| history.count > *seen) {
                *seen = history.count;
                return Poll::Ready(last);
            }
            let before = history.remove(*number);
            let background = EXECUTOR.of(state).is_in_background();
            history.waiting.push(Waiting { stream: *number, waker, background });
            drop(history);
            drop(before);
            Poll::Pending
        })
        .await
    }
}

/// Whoever waits for what a stream gives next, as long as he does.
struct Waits<'a>(&'a mut Resumes);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if !self.0.state.is_running() {
            return;
        }
        let waiting = SUSPENDS.of(self.0.state).history.lock().remove(self.0.number);
        drop(waiting);
    }
}

impl fmt::Debug for Resumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumes").field("seen", &self.seen).finish_non_exhaustive()
    }
}
