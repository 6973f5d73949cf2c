//! Waiting for a moment.

use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use core::time::Duration;

use super::{Instant, now, wall_clock};
use crate::local::{self, Instance};
use crate::sync::wait_list::{Waiter, WaiterId};
use crate::time::TIMERS;

/// Waits for so long.
///
/// # Cancel safety
///
/// Dropping the future forgets the deadline.
#[doc(alias = "set_timer_op")]
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(now() + duration)
}

/// Waits until a moment; one that has passed is over at once.
///
/// # Cancel safety
///
/// Dropping the future forgets the deadline.
pub const fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, background: false, registered: None }
}

/// How long the wall clock is believed to be left alone. Nobody tells a domain that it is set.
const TRUST: Duration = Duration::from_secs(60);

/// Waits until the [wall clock](wall_clock) shows a moment, counted from the beginning of 1970 in UTC, or a later one.
///
/// The clock is looked at again after each suspend, and otherwise once in a minute: if dom0 sets it ahead, this ends up to a
/// minute late, and never early.
///
/// # Cancel safety
///
/// Dropping the future forgets the moment.
pub async fn sleep_until_wall_clock(moment: Duration) {
    // Outside of a domain no time passes.
    while local::current().is_some() {
        let left = moment.saturating_sub(wall_clock());
        if left.is_zero() {
            return;
        }
        let (mut sleep, mut begun) = (pin!(sleep(left.min(TRUST))), false);
        // A suspend wakes who waits before his time.
        poll_fn(|context| match core::mem::replace(&mut begun, true) {
            true => Poll::Ready(()),
            false => sleep.as_mut().poll(context),
        })
        .await;
    }
}

/// Waits for a moment: see [`sleep_until`].
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    deadline: Instant,
    /// Ignored by deadlock detection.
    background: bool,
    /// The timer, and the domain that it belongs to.
    registered: Option<(Instance, WaiterId)>,
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Outside of a domain no time passes, and nobody would be woken.
        let Some(state) = local::current() else { return Poll::Ready(()) };
        if super::now_in(state) >= self.deadline {
            self.cancel();
            return Poll::Ready(());
        }
        // One of a domain that has ended is no timer any more.
        let mut id = self.registered.filter(|(owner, _)| owner.is_running()).map(|(_, id)| id);
        let waiter = Waiter::foreground(context.waker()).mark(self.background);
        TIMERS.of(state).set(self.deadline, &mut id, waiter);
        self.registered = id.map(|id| (state, id));
        Poll::Pending
    }
}

impl Sleep {
    /// Sets whether it is ignored by deadlock detection. Other sleeps count, also those of background work.
    pub(crate) const fn mark_background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    fn cancel(&mut self) {
        // Outside of its domain the deadline stays: its time comes, and wakes a future that is gone.
        if let Some((state, id)) = self.registered.take().filter(|(owner, _)| owner.is_running()) {
            TIMERS.of(state).cancel(id);
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Timed out before the future was ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl core::error::Error for Elapsed {}

/// Waits for a future, but no longer than so long.
///
/// # Errors
///
/// [`Elapsed`], after which the future is dropped. One that is ready in time, or at the last moment, wins.
///
/// # Cancel safety
///
/// As the future's own.
pub fn timeout<F: Future>(duration: Duration, future: F) -> impl Future<Output = Result<F::Output, Elapsed>> {
    // Counted from the call, not from the first poll.
    let sleep = sleep(duration);
    async move {
        let (mut future, mut sleep) = (pin!(future), pin!(sleep));
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => sleep.as_mut().poll(context).map(|()| Err(Elapsed)),
        })
        .await
    }
}
