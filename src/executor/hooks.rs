//! What an application has the main loop do: before and after each turn, and when main has come to its end.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use core::time::Duration;

use crate::sync::Mutex;
use async_task::Runnable;

use super::task::{self, Task};
use crate::local::vcpu_local;
use crate::{local, time};

/// How long all that is quiesced before a suspend may take together. libxl allows a minute for the suspend.
const SUSPEND_LIMIT: Duration = Duration::from_secs(10);
/// How long all that was left to be done [`at_exit`] may take together.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

vcpu_local! {
    /// What the application has the main loop do.
    pub(crate) static HOOKS: Hooks = Hooks::new();
}

/// What the application has the main loop do.
pub(crate) struct Hooks {
    pub(super) before: Turns,
    pub(super) after: Turns,
    suspended: Turns,
    quiesces: Quiesces,
    exits: Exits,
}

impl Hooks {
    const fn new() -> Self {
        Self {
            before: Turns::new(),
            after: Turns::new(),
            suspended: Turns::new(),
            quiesces: Quiesces::new(),
            exits: Exits::new(),
        }
    }

    /// Calls the functions that the application has added for after a suspend.
    pub(crate) fn suspended(&self) {
        self.suspended.run();
    }
}

/// A function of the application's that is called in each turn.
type Hook = Box<dyn FnMut()>;

/// Functions to be called, in order.
pub(super) struct Turns {
    hooks: Mutex<Vec<Hook>>,
    /// There are some: looked at in each turn.
    any: AtomicBool,
}

// SAFETY: a hook is called, and was made, by the domain's main loop and the tasks that it runs, all on the one virtual CPU (on
// the host: on the thread that runs the simulated domain, since no other has its state); none is ever dropped elsewhere.
unsafe impl Send for Turns {}
// SAFETY: as above; the list itself is behind a lock.
unsafe impl Sync for Turns {}

impl Turns {
    pub(super) const fn new() -> Self {
        Self { hooks: Mutex::new(Vec::new()), any: AtomicBool::new(false) }
    }

    #[inline]
    pub(super) fn run(&self) {
        if self.any.load(Ordering::Relaxed) {
            self.call();
        }
    }

    fn call(&self) {
        let mut hooks = core::mem::take(&mut *self.hooks.lock());
        hooks.iter_mut().for_each(|hook| hook());
        // Hooks that were added meanwhile come last.
        let mut list = self.hooks.lock();
        hooks.append(&mut list);
        *list = hooks;
    }

    fn add(&self, hook: Hook) {
        self.hooks.lock().push(hook);
        self.any.store(true, Ordering::Relaxed);
    }
}

/// A future that quiesces something, and keeps it so as long as its output is there.
type Quiescing = Pin<Box<dyn Future<Output = Box<dyn Any>>>>;

/// Functions that begin to quiesce something before a suspend.
pub(crate) struct Quiesces(Mutex<Vec<Box<dyn FnMut() -> Quiescing>>>);

// SAFETY: as for `Turns`: a function is made, called and kept by the domain's main loop and its tasks alone, on the one virtual
// CPU (on the host: on the thread that runs the simulated domain), and none is ever dropped elsewhere.
unsafe impl Send for Quiesces {}
// SAFETY: as above; the list itself is behind a lock.
unsafe impl Sync for Quiesces {}

impl Quiesces {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Begins all, in order. No function is called under the lock.
    fn begin(&self) -> Vec<Quiescing> {
        let mut hooks = core::mem::take(&mut *self.0.lock());
        let begun = hooks.iter_mut().map(|hook| hook()).collect();
        let mut list = self.0.lock();
        hooks.append(&mut list);
        *list = hooks;
        begun
    }
}

impl Hooks {
    /// Quiesces all that drivers and the application have named, at the same time, for [`SUSPEND_LIMIT`] at most. As long as the
    /// values are kept, what was done in time stays so.
    pub(crate) async fn quiesce(&self) -> Vec<Box<dyn Any>> {
        let (mut pending, mut quiet) = (self.quiesces.begin(), Vec::new());
        if pending.is_empty() {
            return quiet;
        }
        let all = poll_fn(|context| {
            pending.retain_mut(|quiescing| match quiescing.as_mut().poll(context) {
                Poll::Ready(kept) => {
                    quiet.push(kept);
                    false
                }
                Poll::Pending => true,
            });
            if pending.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        if time::timeout(SUSPEND_LIMIT, all).await == Err(time::Elapsed) {
            log::warn!("{} hooks before a suspend timed out after {} s", pending.len(), SUSPEND_LIMIT.as_secs());
        }
        quiet
    }
}

/// Has something quiesced before each suspend: the function makes a future that does it, and whose value is dropped when the suspend
/// is over, came to nothing, or was cancelled. All such futures together have ten seconds; those that are not ready then are
/// dropped, and the domain is suspended without them.
///
/// # Panics
///
/// Outside of a domain, which nobody suspends.
pub fn before_suspend<F, T>(mut hook: impl FnMut() -> F + 'static)
where
    F: Future<Output = T> + 'static,
    T: 'static,
{
    hooks().quiesces.0.lock().push(Box::new(move || {
        let quiescing = hook();
        Box::pin(async move { Box::new(quiescing.await) as Box<dyn Any> })
    }));
}

/// Futures for the end of main, not yet begun.
pub(super) struct Exits {
    list: Mutex<Vec<(Runnable, Task<()>)>>,
    /// Somebody runs them, and ends the domain then.
    begun: AtomicBool,
}

impl Exits {
    pub(super) const fn new() -> Self {
        Self { list: Mutex::new(Vec::new()), begun: AtomicBool::new(false) }
    }

    /// Taken by itself: while it runs, more may be added.
    fn pop(&self) -> Option<(Runnable, Task<()>)> {
        self.list.lock().pop()
    }
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}

/// Has a function called at the beginning of each turn of the main loop, for ever: an idle domain has no turns.
///
/// What only a hook looks at keeps no domain going: a main that no timer and no wait could wake is told so, and ends, even if
/// a hook would wake it after an event. A task is to wait for that.
///
/// # Panics
///
/// Outside of a domain, where there is no main loop.
pub fn before_turn(hook: impl FnMut() + 'static) {
    hooks().before.add(Box::new(hook));
}

/// Has a function called at the end of each turn of the main loop, for ever: after tasks, timers and events, before the domain
/// decides whether it is idle. What the function makes ready has the next turn; the rest is as for [`before_turn`].
///
/// # Panics
///
/// Outside of a domain, where there is no main loop.
pub fn after_turn(hook: impl FnMut() + 'static) {
    hooks().after.add(Box::new(hook));
}

/// Has a function called after each suspend, before any task runs, also if the domain goes on where it was: of what is in
/// memory there may be a copy by then, which goes on too. A generator of random numbers is to be seeded anew.
///
/// # Panics
///
/// Outside of a domain, which nobody suspends.
pub fn after_suspend(hook: impl FnMut() + 'static) {
    hooks().suspended.add(Box::new(hook));
}

/// Has a future run when main has returned, whatever it returned: those that were left last come first, one after the other.
/// Tasks go on meanwhile. All together have ten seconds; what is not done then is dropped, and the log says so.
///
/// So it is when the toolstack asks the domain to end, and nobody but this crate listens, and after
/// [`lifecycle::finish`](crate::lifecycle::finish). A panic, a fault, [`lifecycle::end`](crate::lifecycle::end), and a main
/// that nothing is left to wake end the domain without them.
///
/// # Panics
///
/// Outside of a domain, where main has no end.
pub fn at_exit(future: impl Future<Output = ()> + 'static) {
    let exit = task::create(future);
    hooks().exits.list.lock().push(exit);
}

fn hooks() -> &'static Hooks {
    match local::current() {
        Some(domain) => HOOKS.of(domain),
        None => panic!("there is a main loop in a domain only"),
    }
}

/// Runs main, and then what was left to be done at its end.
pub(crate) async fn with_exits<F: Future>(main: F) -> F::Output {
    let output = main.await;
    run_exits().await;
    output
}

/// Runs what was left to be done at exit. The caller then ends the domain: who comes second waits for that.
pub(crate) async fn run_exits() {
    if hooks().exits.begun.swap(true, Ordering::Relaxed) {
        return core::future::pending().await;
    }
    let exits = async {
        while let Some((runnable, task)) = hooks().exits.pop() {
            runnable.schedule();
            task.await;
        }
    };
    if time::timeout(EXIT_LIMIT, exits).await == Err(time::Elapsed) {
        log::warn!("exit handlers timed out after {} s", EXIT_LIMIT.as_secs());
        while hooks().exits.pop().is_some() {}
        // The one that was running is dropped in this turn.
        super::yield_now().await;
    }
}
