//! Running main to its end.
//!
//! There is no source of events yet that could wake a task later: what main awaits is either ready, or wakes itself
//! while it is polled. A main that waits for anything else would wait for ever, and is told so.

use alloc::sync::Arc;
use alloc::task::Wake;
use core::future::Future;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

/// Nothing is left that could wake the future.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Deadlock;

/// Set by a waker of the future.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Polls a future until it is ready.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, Deadlock> {
    let mut future = pin!(future);
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        if !woken.0.swap(false, Ordering::Acquire) {
            return Err(Deadlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use core::future::{pending, poll_fn, ready};

    use super::*;

    #[test]
    fn ready_self_waking_and_hopeless_futures() {
        assert_eq!(block_on(ready(7)), Ok(7));
        let mut polls = 0;
        let countdown = poll_fn(|context| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls == 1000 { Poll::Ready(polls) } else { Poll::Pending }
        });
        assert_eq!(block_on(countdown), Ok(1000));
        assert_eq!(block_on(pending::<()>()), Err(Deadlock));
    }
}
