//! How long a peer may keep a task at work.
//!
//! *Finds.* A peer on another CPU can have something there whenever the domain looks. Who finds it would never wait, and nothing
//! else of the domain would run: no other task, no timer, no console. So finds are counted, and after some the rest has a turn.
//!
//! *Empty events.* A peer can send events that tell of nothing, without end, and each wakes the domain. A few are in their
//! nature: what one tells of may have been found before it came, so each find makes up for one. Of those beyond that there may
//! be one in each millisecond on average, and some at once; then there is a pause before the next look, in which one event
//! is delivered at most to who pauses. That is counted with the port, as it is one peer's doing: it does not begin anew with each
//! wait, or when a wait is given up.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use crate::executor;
use crate::executor::EXECUTOR;
use crate::local::Instance;
use crate::time::{self, Instant};

/// Finds in a turn of the main loop before others have theirs.
const FINDS: u32 = 64;
/// Events that may bring nothing at once.
const PATIENCE: u32 = 32;
/// How long a pause is, and the time in which one more may.
const PAUSE: Duration = Duration::from_millis(1);

/// What the peer of a port has had of its domain lately. A count that is lost to another CPU would do no harm, so they have no
/// order.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Finds in a turn of the main loop, and which that was.
    finds: AtomicU32,
    turn: AtomicU64,
    /// Empty events beyond finds, since a moment.
    empty: AtomicU32,
    /// That moment, in nanoseconds.
    since: AtomicU64,
    /// Empty events in all.
    spurious: AtomicU64,
}

impl Pace {
    /// A peer that has had nothing.
    pub(crate) const fn new() -> Self {
        Self {
            finds: AtomicU32::new(0),
            turn: AtomicU64::new(0),
            empty: AtomicU32::new(0),
            since: AtomicU64::new(0),
            spurious: AtomicU64::new(0),
        }
    }

    /// Lets others have their turn, if it is time for that.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes nothing along. Who waits for nothing at all finds nothing in a turn in which others are to
    /// have theirs, and does in the next.
    pub(crate) async fn share(&self, state: Instance) {
        if self.finds(state).load(Ordering::Relaxed) >= FINDS {
            executor::yield_now().await;
        }
    }

    /// Something was found.
    pub(crate) fn found(&self, state: Instance) {
        self.finds(state).fetch_add(1, Ordering::Relaxed);
        self.expected();
    }

    /// The count of this turn.
    fn finds(&self, state: Instance) -> &AtomicU32 {
        let turn = EXECUTOR.of(state).turn();
        if self.turn.swap(turn, Ordering::Relaxed) != turn {
            self.finds.store(0, Ordering::Relaxed);
        }
        &self.finds
    }

    /// An event has brought something: that makes up for one that has not.
    pub(crate) fn expected(&self) {
        self.empty.store(self.empty.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }

    /// What was found makes up for all that has brought nothing before.
    pub(crate) fn made_up(&self) {
        self.empty.store(0, Ordering::Relaxed);
    }

    /// An event has brought nothing: pauses if there were too many such.
    pub(crate) async fn empty(&self, state: Instance) {
        if let Some(until) = self.rest(state) {
            time::sleep_until(until).await;
        }
    }

    /// An event has brought nothing. Says until when the next look is to wait, if there were too many such lately. The clock is
    /// read only once there were enough to ask, as that may cost an exit.
    pub(crate) fn rest(&self, state: Instance) -> Option<Instant> {
        self.spurious.fetch_add(1, Ordering::Relaxed);
        let empty = self.empty.load(Ordering::Relaxed).saturating_add(1);
        self.empty.store(empty, Ordering::Relaxed);
        if empty < PATIENCE {
            return None;
        }
        let now = time::now_in(state);
        let since = Instant::from_nanos(self.since.load(Ordering::Relaxed));
        if now < since + empty * PAUSE {
            return Some(now + PAUSE);
        }
        self.since.store(now.as_nanos(), Ordering::Relaxed);
        self.empty.store(0, Ordering::Relaxed);
        None
    }

    /// How many events have brought nothing.
    pub(crate) fn spurious(&self) -> u64 {
        self.spurious.load(Ordering::Relaxed)
    }
}
