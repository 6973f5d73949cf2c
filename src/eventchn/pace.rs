//! How long a peer may keep one task at work.
//!
//! A peer on another CPU can have something there whenever the domain looks. Who finds it would never wait, and nothing else
//! of the domain would run: no other task, no timer, no console. So finds are counted, and after some the rest has a turn.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::executor;

/// Finds in a row before others have their turn.
const FINDS: u32 = 64;

/// What a port's peer has had of its domain lately. Counts are of one CPU, or nearly right: they need no order.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Finds since others had their turn.
    finds: AtomicU32,
}

impl Pace {
    /// Lets others have their turn, if it is time for that.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes the turn from nobody: the next one begins with it.
    pub(super) async fn share(&self) {
        if self.finds.load(Ordering::Relaxed) >= FINDS {
            executor::yield_now().await;
            self.waited();
        }
    }

    /// Something was found.
    pub(super) fn found(&self) {
        self.finds.fetch_add(1, Ordering::Relaxed);
    }

    /// The task has waited, so that others had their turn.
    pub(super) fn waited(&self) {
        self.finds.store(0, Ordering::Relaxed);
    }
}
