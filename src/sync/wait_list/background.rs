//! Background work: its waiters are ignored by deadlock detection.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::local::{Booting, Instance, vcpu_local};

vcpu_local! {
    /// Background work is running on this virtual CPU.
    static BACKGROUND: AtomicBool = AtomicBool::new(false);
}

/// Makes the state of a domain that boots.
pub(crate) fn start(booting: &Booting) {
    BACKGROUND.start(booting);
}

/// Whether background work is running.
pub(crate) fn is_background(domain: Instance) -> bool {
    BACKGROUND.of(domain).load(Ordering::Relaxed)
}

/// Runs a function as background work.
pub(crate) fn as_background<T>(domain: Instance, act: impl FnOnce() -> T) -> T {
    let background = BACKGROUND.of(domain);
    let before = background.swap(true, Ordering::Relaxed);
    let result = act();
    background.store(before, Ordering::Relaxed);
    result
}

/// Runs a future as background work: its waits for events, requests and suspends do not count as something that could wake
/// main. Its sleeps do, unless they are [marked](crate::time::Sleep::mark_background).
pub(crate) async fn in_background<F: Future>(domain: Instance, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| as_background(domain, || future.as_mut().poll(context))).await
}
