//! The main loop: ready tasks, due timers, ports that fired, and the halt.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::task::Wake;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};

use async_task::Runnable;
use spin::Mutex;

use super::hooks::{Exits, Turns};
use crate::state::{self, State};
use crate::{arch, hypercall, time};

/// Nothing is left that could wake main.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Deadlock;

/// What the executor of a domain keeps.
#[derive(Default)]
pub(crate) struct Executor {
    /// Has room for all tasks that there are: each is in it once at most.
    ready: Mutex<VecDeque<Runnable>>,
    /// Tasks whose memory is in use.
    tasks: AtomicUsize,
    pub(super) before: Turns,
    pub(super) after: Turns,
    pub(super) suspended: Turns,
    pub(super) exits: Exits,
    /// Pending events interrupt the virtual CPU while it halts.
    interrupts: AtomicBool,
    /// What runs is for nobody's sake: see [`in_background`].
    background: AtomicBool,
    /// Turns of the main loop, and halts.
    turns: AtomicU64,
    halts: AtomicU64,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("turns", &self.turns).field("halts", &self.halts).finish_non_exhaustive()
    }
}

impl Executor {
    /// Whether somebody has one of its lists in hand.
    #[cfg(target_os = "none")]
    pub(crate) fn is_locked(&self) -> bool {
        self.ready.is_locked()
            || self.before.is_locked()
            || self.after.is_locked()
            || self.suspended.is_locked()
            || self.exits.is_locked()
    }

    /// Makes room for one more task in the queue, so that waking it takes no memory.
    pub(super) fn admit(&'static self) -> Admitted {
        let tasks = self.tasks.fetch_add(1, Ordering::Relaxed) + 1;
        let mut ready = self.ready.lock();
        let missing = tasks.saturating_sub(ready.len());
        ready.reserve(missing);
        Admitted(self)
    }

    /// Whether what runs now is for nobody's sake.
    pub(crate) fn is_in_background(&self) -> bool {
        self.background.load(Ordering::Relaxed)
    }

    /// Has what the application does after a suspend done.
    pub(crate) fn suspended(&self) {
        self.suspended.run();
    }

    /// Has events end a halt again, after a resume, which has forgotten that.
    pub(crate) fn resume(&self, state: &State) {
        self.interrupts.store(false, Ordering::Relaxed);
        enable_interrupts(state);
    }

    /// Which turn of the main loop this is.
    pub(crate) fn turn(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Does something as if nobody waited for it.
    pub(crate) fn background<T>(&self, act: impl FnOnce() -> T) -> T {
        let before = self.background.swap(true, Ordering::Relaxed);
        let result = act();
        self.background.store(before, Ordering::Relaxed);
        result
    }

    fn ready(&self) -> usize {
        self.ready.lock().len()
    }

    /// Runs the tasks that are ready now, each once: what they make ready has the next turn.
    fn run_ready(&self) {
        for _ in 0..self.ready() {
            let Some(runnable) = self.ready.lock().pop_front() else { break };
            runnable.run();
        }
    }
}

/// A task's place in the queue, for as long as a waker of its may be called.
pub(super) struct Admitted(&'static Executor);

impl Admitted {
    /// Puts the task behind those that are ready.
    pub(super) fn schedule(&self, runnable: Runnable) {
        self.0.ready.lock().push_back(runnable);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a future that nobody waits for: the events that it waits for do not count as something that could wake main. Timers
/// do.
pub(crate) async fn in_background<F: Future>(state: &'static State, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| state.executor.background(|| future.as_mut().poll(context))).await
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

/// Runs the main loop until main is ready. Its parts, and why none starves another, are described in [`super`].
pub(crate) fn run<F: Future>(state: &'static State, main: F) -> Result<F::Output, Deadlock> {
    let mut main = pin!(main);
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let State { executor, timers, events, grants, console, info, .. } = state;
    loop {
        executor.turns.fetch_add(1, Ordering::Relaxed);
        executor.before.run();
        if woken.0.swap(false, Ordering::Acquire)
            && let Poll::Ready(output) = main.as_mut().poll(&mut context)
        {
            return Ok(output);
        }
        executor.run_ready();
        // The clock is read only for somebody who waits for it.
        let mut now = (timers.any() || grants.next_look().is_some()).then(|| time::now_in(state));
        if let Some(now) = now {
            timers.fire(now);
            grants.look(now);
        }
        if info.upcall_pending() {
            events.deliver(state, |port| timers.owns(port));
        }
        executor.after.run();
        console.settle(state);
        if executor.ready() > 0 || woken.0.load(Ordering::Acquire) {
            continue;
        }
        // The back-off timer of the xenstore client cannot wake main while only background tasks use the store.
        let ignored = usize::from(state.xenstore.is_pausing_in_background());
        if timers.count() <= ignored
            && !events.anybody_waits()
            && !grants.may_wake()
            && !state.lifecycle.anybody_waits(state)
        {
            return Err(Deadlock);
        }
        let now = *now.get_or_insert_with(|| time::now_in(state));
        enable_interrupts(state);
        let own = grants.next_look().into_iter().chain(console.next_look()).min();
        if timers.program(state, now, own) && !info.upcall_pending() {
            executor.halts.fetch_add(1, Ordering::Relaxed);
            arch::idle();
        }
    }
}

/// What the main loop has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Activity {
    /// Turns of the loop.
    pub turns: u64,
    /// Halts: how often the domain was idle.
    pub halts: u64,
}

/// What the main loop has done so far; nothing outside of a domain.
#[must_use]
pub fn activity() -> Activity {
    state::get().map_or_else(Activity::default, |state| Activity {
        turns: state.executor.turn(),
        halts: state.executor.halts.load(Ordering::Relaxed),
    })
}

/// Has pending events end a halt: done when it is first needed, as a domain that never waits has no use for it.
pub(crate) fn enable_interrupts(state: &State) {
    if !state.executor.interrupts.swap(true, Ordering::Relaxed)
        && let Err(errno) = hypercall::set_callback_vector(arch::CALLBACK_VECTOR)
    {
        // No Xen that this crate runs on refuses it; without it a halt would last for ever.
        crate::lifecycle::fail(format_args!("domu: Xen refused the callback for events: {errno}"));
    }
}
