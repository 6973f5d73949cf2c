//! The ready queue: tasks that are to run.

use alloc::collections::VecDeque;
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use async_task::Runnable;

use crate::local::{self, vcpu_local};
use crate::sync::Mutex;

vcpu_local! {
    /// The ready queue, and what the main loop has done.
    pub(crate) static EXECUTOR: Executor = Executor::new();
}

/// What the executor of a domain keeps.
pub(crate) struct Executor {
    /// Has room for all tasks that there are: each is in it once at most.
    ready: Mutex<VecDeque<Runnable>>,
    /// Tasks whose memory is in use.
    tasks: AtomicUsize,
    /// Turns of the main loop, and halts.
    pub(super) turns: AtomicU64,
    pub(super) halts: AtomicU64,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("turns", &self.turns).field("halts", &self.halts).finish_non_exhaustive()
    }
}

impl Executor {
    /// No task yet.
    const fn new() -> Self {
        Self {
            ready: Mutex::new(VecDeque::new()),
            tasks: AtomicUsize::new(0),
            turns: AtomicU64::new(0),
            halts: AtomicU64::new(0),
        }
    }

    /// Makes room for one more task in the queue, so that waking it takes no memory.
    pub(super) fn admit(&'static self) -> Admitted {
        let tasks = self.tasks.fetch_add(1, Ordering::Relaxed) + 1;
        let mut ready = self.ready.lock();
        let missing = tasks.saturating_sub(ready.len());
        ready.reserve(missing);
        Admitted(self)
    }

    /// Which turn of the main loop this is.
    pub(crate) fn turn(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.lock().len()
    }

    /// Runs the tasks that are ready now, each once: what they make ready has the next turn.
    pub(super) fn run_ready(&self) {
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
    local::current().map_or_else(Activity::default, |state| Activity {
        turns: EXECUTOR.of(state).turn(),
        halts: EXECUTOR.of(state).halts.load(Ordering::Relaxed),
    })
}
