//! The request of a `control/` node that is being acknowledged, or that was and has not been handed out yet.
//!
//! It belongs to the node, not to the future that read it. A task of its own acknowledges a request and always learns the result,
//! so a receiver may be dropped at any moment: the next one, or the default handler, gets the request.
//!
//! At most one request per node is kept. No other is acknowledged before this one is handed out: until then the next one stays in
//! xenstore.

use core::mem;
use core::task::{Poll, Waker};

use crate::local::Instance;
use crate::sync::Mutex;
use crate::sync::wait_list::{WaitList, Waiter, WaiterId};
use crate::xenstore::Value;

/// The state of one `control/` node, shared by all its receivers.
#[derive(Debug)]
pub(super) struct Received(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    stage: Stage,
    /// The value that was handed out and is still in the node of this generation.
    left: Option<(u64, Value)>,
    /// Receivers that wait.
    waiting: WaitList,
    /// Counts changes of the other fields, to tell a value that was read before one.
    changes: u64,
}

#[derive(Debug, Default)]
enum Stage {
    /// The next request is in xenstore, if there is one.
    #[default]
    Idle,
    /// A task acknowledges one.
    Acknowledging {
        /// The domain was suspended since the request was read.
        suspended: bool,
    },
    /// A request that has not been handed out yet.
    Ready(Value),
}

/// The result of [`Received::take`].
#[derive(Debug)]
pub(super) enum Taken {
    Request(Value),
    /// It is being acknowledged.
    Pending,
    /// The node is to be read. The number goes to [`Received::offer`].
    Nothing(u64),
}

/// The result of [`Received::offer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Offered {
    /// The node may have changed since it was read.
    Stale,
    /// There is no request, or it was handed out before.
    Old,
    /// A new request. If it needs an acknowledgement, it is kept from here on.
    New,
    /// It was handed out before, and its acknowledgement is to be tried again.
    Again,
}

impl Received {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Inner { stage: Stage::Idle, left: None, waiting: WaitList::new(), changes: 0 }))
    }

    /// Hands the request out. The caller returns it without a further await.
    pub(super) fn take(&self) -> Taken {
        let mut inner = self.0.lock();
        match mem::take(&mut inner.stage) {
            Stage::Ready(value) => Taken::Request(value),
            stage @ Stage::Acknowledging { .. } => {
                inner.stage = stage;
                Taken::Pending
            }
            Stage::Idle => Taken::Nothing(inner.changes),
        }
    }

    /// Judges a value that was read from the node of this generation after [`take`](Self::take) had found `Nothing(changes)`.
    ///
    /// A value that was left in the node is acknowledged again if the watch `fired`: the store may accept that by now.
    pub(super) fn offer(
        &self,
        changes: u64,
        generation: u64,
        value: &Value,
        acknowledge: bool,
        fired: bool,
    ) -> Offered {
        let mut inner = self.0.lock();
        if inner.changes != changes || !matches!(inner.stage, Stage::Idle) {
            return Offered::Stale;
        }
        let is_left = inner.left.as_ref().is_some_and(|(of, left)| *of == generation && left == value);
        if is_left && !(acknowledge && fired) {
            return Offered::Old;
        }
        let dropped = inner.left.take();
        let is_request = !word(value).is_empty();
        if is_request && acknowledge {
            inner.stage = Stage::Acknowledging { suspended: false };
        }
        drop(inner);
        drop(dropped);
        match (is_request, is_left) {
            (false, _) => Offered::Old,
            (true, false) => Offered::New,
            (true, true) => Offered::Again,
        }
    }

    /// Ends the acknowledgement: with the request, or without one if there is none to hand out.
    pub(super) fn settle(&self, request: Option<Value>) {
        let mut inner = self.0.lock();
        inner.stage = request.map_or(Stage::Idle, Stage::Ready);
        inner.changes += 1;
        let mark = inner.waiting.mark();
        let mut next = inner.waiting.pop(mark);
        drop(inner);
        while let Some(waker) = next {
            waker.wake();
            next = self.0.lock().waiting.pop(mark);
        }
    }

    /// The domain was suspended: drops the request that is kept if that answers it. The task that acknowledges one
    /// [learns](Self::was_suspended) of it.
    pub(super) fn suspended(&self, is_answered: impl FnOnce(&Value) -> bool) {
        let mut inner = self.0.lock();
        let dropped = match &mut inner.stage {
            Stage::Ready(value) if is_answered(value) => mem::take(&mut inner.stage),
            Stage::Acknowledging { suspended } => {
                *suspended = true;
                Stage::Idle
            }
            _ => Stage::Idle,
        };
        drop(inner);
        drop(dropped);
    }

    /// Remembers a value that is handed out and stays in the node.
    pub(super) fn leave(&self, generation: u64, value: Value) {
        let mut inner = self.0.lock();
        let dropped = inner.left.replace((generation, value));
        inner.changes += 1;
        drop(inner);
        drop(dropped);
    }

    /// Waits for a request, or, if the receiver has `deferred` its read of the node, for the end of the acknowledgement.
    pub(super) fn poll(&self, state: Instance, id: &mut Option<WaiterId>, deferred: bool, waker: &Waker) -> Poll<()> {
        let waiter = Waiter::new(state, waker);
        let mut inner = self.0.lock();
        match inner.stage {
            Stage::Ready(_) => return Poll::Ready(()),
            Stage::Idle if deferred => return Poll::Ready(()),
            _ => {}
        }
        let replaced = inner.waiting.register(id, waiter, 1);
        drop(inner);
        drop(replaced);
        Poll::Pending
    }

    /// True while a request is being acknowledged.
    pub(super) fn is_acknowledging(&self) -> bool {
        matches!(self.0.lock().stage, Stage::Acknowledging { .. })
    }

    /// True if the domain was suspended since the request that is being acknowledged was read.
    pub(super) fn was_suspended(&self) -> bool {
        matches!(self.0.lock().stage, Stage::Acknowledging { suspended: true })
    }

    /// The receiver does not wait any more.
    pub(super) fn forget(&self, id: WaiterId) {
        let waker = self.0.lock().waiting.leave(id);
        drop(waker);
    }
}

/// A value without the NUL that some tools append.
pub(super) fn word(value: &Value) -> &[u8] {
    value.strip_suffix(&[0]).unwrap_or(value)
}
