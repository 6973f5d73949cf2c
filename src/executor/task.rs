//! A task, the handle of who started it, and giving way.

use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use async_task::Runnable;

use super::queue::EXECUTOR;
use crate::local;

/// Starts a task: it runs beside the others from when the caller waits, until it ends or main does.
///
/// The handle gives its output, and stops it when it is dropped: keep it, await it, or [`detach`](Task::detach) it. A task
/// need not be `Send`: all run on one virtual CPU.
///
/// # Panics
///
/// Outside of a domain, where nobody would run it. A panic inside of the task is the domain's.
pub fn spawn<F>(future: F) -> Task<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let (runnable, task) = create(future);
    runnable.schedule();
    task
}

/// Makes a task that begins when it is first scheduled.
pub(super) fn create<F>(future: F) -> (Runnable, Task<F::Output>)
where
    F: Future + 'static,
    F::Output: 'static,
{
    let Some(state) = local::current() else { panic!("a task is started in a domain only") };
    let place = EXECUTOR.of(state).admit();
    let schedule = move |runnable| place.schedule(runnable);
    /// What is scheduled from wherever a waker is called.
    fn from_anywhere(schedule: impl Fn(Runnable) + Send + Sync + 'static) -> impl Fn(Runnable) {
        schedule
    }
    let schedule = from_anywhere(schedule);
    // SAFETY: the future and its output live as long as the program. The schedule function may be called from any thread:
    // it is `Send` and `Sync`, and puts the task into the queue of its domain. The future need not be `Send`: it is run by
    // the domain's main loop alone, on the one virtual CPU (on the host, the thread that runs the simulated domain), and
    // its handle, which may drop it, is `Send` only if its output is, and is used in the same domain.
    let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
    (runnable, Task(task))
}

/// The handle of a task: a future of its output.
///
/// # Cancel safety
///
/// Dropping it stops the task: it does not run again, and its future is dropped, in the next turn if it is not now. What
/// still runs when main returns goes with the domain, undropped.
#[must_use = "a task is stopped when its handle is dropped: `detach` it to let it run"]
pub struct Task<T>(async_task::Task<T>);

impl<T> Task<T> {
    /// Lets the task run to its end by itself.
    pub fn detach(self) {
        self.0.detach();
    }

    /// Stops the task, and waits until its future is dropped; its output, if it had come to its end before.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the task too, and does not wait.
    pub async fn abort(self) -> Option<T> {
        self.0.cancel().await
    }

    /// Whether its output is there.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}
