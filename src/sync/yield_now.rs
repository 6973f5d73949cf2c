//! Giving way to other tasks.

use core::future::Future;
use core::task::Poll;

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
