//! A place for one waiter.

use core::task::Waker;

/// The waker of at most one waiter, which is not accounted: another waiter stands for it.
#[derive(Debug, Default)]
pub(crate) struct WaitCell(Option<Waker>);

impl WaitCell {
    /// An empty cell.
    pub(crate) const fn new() -> Self {
        Self(None)
    }

    /// Sets the waker, and returns the one that it replaces, to be dropped after unlocking.
    #[must_use = "the replaced waker is dropped after unlocking"]
    pub(crate) const fn register(&mut self, waker: Waker) -> Option<Waker> {
        self.0.replace(waker)
    }

    /// Takes the waker out, to be woken or dropped after unlocking.
    #[must_use = "the waker is woken or dropped after unlocking"]
    pub(crate) const fn take(&mut self) -> Option<Waker> {
        self.0.take()
    }
}
