//! The main loop: ready tasks, due timers, ports that fired, and the halt.

use alloc::sync::Arc;
use alloc::task::Wake;
use core::future::Future;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use super::hooks::HOOKS;
use super::queue::EXECUTOR;
use crate::abi::errno::Errno;
use crate::arch;
use crate::local::Instance;
use crate::time::{self, Instant};

/// Why the main loop cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Nothing is left that could wake main.
    Deadlock,
    /// Xen refuses to interrupt a halt: it would last for ever.
    NoCallback(Errno),
}

/// Set by the wakers of main.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// A turn of the main loop.
pub(crate) struct Turn {
    pub(crate) domain: Instance,
    now: Option<Instant>,
}

impl Turn {
    /// The time of this turn. The clock is read when it is first asked for.
    pub(crate) fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(|| time::now_in(self.domain))
    }
}

/// Work of a subsystem in the main loop.
pub(crate) trait Source {
    /// Does what is due, in a bounded share of the turn.
    fn poll(&self, turn: &mut Turn);

    /// When it is to be polled again at the latest.
    fn next_deadline(&self, _: Instance) -> Option<Instant> {
        None
    }

    /// Whether a future waits for something that may still come of it. Background waiters do not count.
    fn may_wake(&self, _: Instance) -> bool {
        false
    }
}

/// Sources in order: each is polled once in a turn.
impl<A: Source, B: Source> Source for (A, B) {
    #[inline]
    fn poll(&self, turn: &mut Turn) {
        self.0.poll(turn);
        self.1.poll(turn);
    }

    #[inline]
    fn next_deadline(&self, domain: Instance) -> Option<Instant> {
        let first = self.0.next_deadline(domain);
        first.into_iter().chain(self.1.next_deadline(domain)).min()
    }

    #[inline]
    fn may_wake(&self, domain: Instance) -> bool {
        self.0.may_wake(domain) || self.1.may_wake(domain)
    }
}

/// What the application does at the end of each turn.
pub(crate) struct TurnHooks;

impl Source for TurnHooks {
    #[inline]
    fn poll(&self, turn: &mut Turn) {
        HOOKS.of(turn.domain).after.run();
    }
}

/// Sets the timer for a deadline, and says whether the virtual CPU may halt: not if the deadline has come, or an event is pending.
pub(crate) type PrepareHalt = fn(Instance, now: Instant, deadline: Option<Instant>) -> Result<bool, Errno>;

/// Runs the main loop until main is ready. Its parts, and why none starves another, are described in [`super`].
pub(crate) fn run<F: Future>(
    domain: Instance,
    main: F,
    sources: &impl Source,
    prepare_halt: PrepareHalt,
) -> Result<F::Output, Stop> {
    let mut main = pin!(main);
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let (executor, hooks) = (EXECUTOR.of(domain), HOOKS.of(domain));
    loop {
        executor.turns.fetch_add(1, Ordering::Relaxed);
        hooks.before.run();
        if woken.0.swap(false, Ordering::Acquire)
            && let Poll::Ready(output) = main.as_mut().poll(&mut context)
        {
            return Ok(output);
        }
        executor.run_ready();
        let mut turn = Turn { domain, now: None };
        sources.poll(&mut turn);
        if executor.ready() > 0 || woken.0.load(Ordering::Acquire) {
            continue;
        }
        if !sources.may_wake(domain) {
            return Err(Stop::Deadlock);
        }
        if prepare_halt(domain, turn.now(), sources.next_deadline(domain)).map_err(Stop::NoCallback)? {
            executor.halts.fetch_add(1, Ordering::Relaxed);
            arch::idle();
        }
    }
}
