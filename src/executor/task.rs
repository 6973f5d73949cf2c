//! A task, the handle of who started it, and giving way.

use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::state;

/// Starts a task: from the next turn of the main loop on it runs beside the others.
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
    let Some(state) = state::get() else { panic!("a task is started in a domain only") };
    let schedule = move |runnable| state.executor.schedule(runnable);
    // SAFETY: the future and its output live as long as the program. They need not be `Send`, nor the schedule function
    // be called from one thread: a domain has one virtual CPU, on which its executor runs, and where its wakers and
    // handles are used. (On the host, that is the thread that runs the simulated domain.)
    let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
    runnable.schedule();
    Task(task)
}

/// The handle of a task: a future of its output.
///
/// # Cancel safety
///
/// Dropping it stops the task: it does not run again, and its future is dropped, in the next turn if it is not now.
#[must_use = "a task is stopped when its handle is dropped: `detach` it to let it run"]
pub struct Task<T>(async_task::Task<T>);

impl<T> Task<T> {
    /// Lets the task run to its end by itself.
    pub fn detach(self) {
        self.0.detach();
    }

    /// Stops the task, and waits until its future is dropped; its output, if it had come to its end before.
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

/// Lets the other tasks, timers and ports have their turn; takes no time otherwise.
///
/// # Cancel safety
///
/// Dropping the future changes nothing.
pub fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    core::future::poll_fn(move |context| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}
