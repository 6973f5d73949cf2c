//! The results of suspends, for the application and the crate's own tasks.

use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;

use crate::domain::Domain;
use crate::executor::{Source, Turn};
use crate::local::{Instance, domain_local};
use crate::sync::Mutex;
use crate::sync::wait_list::{WaitList, Waiter, WaiterId};
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
    /// [gone](crate::lifecycle#suspend-and-resume).
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
    /// Streams that wait for the next one.
    waiting: WaitList,
}

/// Suspends, in the main loop.
pub(crate) struct SuspendWaiters;

impl Source for SuspendWaiters {
    #[inline]
    fn poll(&self, _: &mut Turn) {}

    #[inline]
    fn may_wake(&self, domain: Instance) -> bool {
        // Without xenstore no toolstack asks for a suspend.
        CONNECTION.of(domain).is_there() && SUSPENDS.of(domain).has_foreground()
    }
}

impl Suspends {
    /// No suspend yet.
    pub(in crate::lifecycle) const fn new() -> Self {
        let history = History { count: 0, last: None, waiting: WaitList::new() };
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
        let mark = history.waiting.mark();
        let mut next = history.waiting.pop(mark);
        drop(history);
        while let Some(waker) = next {
            waker.wake();
            next = self.history.lock().waiting.pop(mark);
        }
    }

    /// Whether a future waits for a suspend that is not in the background.
    pub(crate) fn has_foreground(&self) -> bool {
        self.history.lock().waiting.has_foreground()
    }
}

/// What came of each suspend: see [`Domain::resumes`].
#[must_use = "a stream does nothing unless it is asked"]
pub struct Resumes {
    state: Instance,
    seen: u64,
    /// Its registration.
    id: Option<WaiterId>,
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
        Self { state, seen: SUSPENDS.of(state).history.lock().count, id: None }
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
        let mut waits = Waits(self);
        poll_fn(|context| {
            let Waits(Self { state, seen, id }) = &mut waits;
            let state = *state;
            if !state.is_running() {
                return Poll::Pending;
            }
            let waiter = Waiter::new(state, context.waker());
            let mut history = SUSPENDS.of(state).history.lock();
            if let Some(last) = history.last.filter(|_| history.count > *seen) {
                *seen = history.count;
                return Poll::Ready(last);
            }
            let replaced = history.waiting.register(id, waiter, 1);
            drop(history);
            drop(replaced);
            Poll::Pending
        })
        .await
    }
}

/// A wait for what a stream gives next.
struct Waits<'a>(&'a mut Resumes);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let Some(id) = self.0.id.take().filter(|_| self.0.state.is_running()) else { return };
        let waker = SUSPENDS.of(self.0.state).history.lock().waiting.leave(id);
        drop(waker);
    }
}

impl fmt::Debug for Resumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumes").field("seen", &self.seen).finish_non_exhaustive()
    }
}
