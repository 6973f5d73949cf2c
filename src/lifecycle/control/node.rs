//! Read-and-acknowledge protocol of a `control/` node, which the toolstack and the domain both write.
//!
//! The toolstack writes a request; the domain reads it and acknowledges it by writing an empty value. Both sides use
//! transactions, as the toolstack may take a request back and write another. A watch event only says that the node may have
//! changed.

use alloc::boxed::Box;
use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::Poll;
use core::time::Duration;

use super::claim::Desk;
use super::received::{Offered, Taken};
use crate::console::rate_limit::log_limited;
use crate::executor::spawn;
use crate::lifecycle::suspend::suspend_evtchn::Channel;
use crate::local::Instance;
use crate::sync::wait_list::{WaiterId, in_background};
use crate::time;
use crate::xenstore::{Error, ErrorKind, Nodes, Value, Watch, Xenstore};

/// Time limit of an acknowledgement. After it the request counts as received: a xenstored that is slow, refuses or is gone
/// must not keep a domain from being shut down.
const LIMIT: Duration = Duration::from_secs(2);

/// A `control/` node, and how its values are treated.
pub(in crate::lifecycle) struct Node {
    pub(super) path: &'static str,
    /// The state that its receivers share.
    pub(super) desk: fn(Instance) -> &'static Desk,
    /// True if a value is acknowledged when it is received.
    pub(super) takes: fn(&Value) -> bool,
    /// True if a suspend of the domain answers the value.
    pub(super) ends_with_suspend: fn(&Value) -> bool,
}

impl Node {
    /// The domain was suspended: forgets a request that asked for that.
    pub(in crate::lifecycle) fn suspended(&self, state: Instance) {
        (self.desk)(state).received.suspended(self.ends_with_suspend);
    }
}

/// A receiver of a node's requests.
pub(in crate::lifecycle) struct Mailbox {
    state: Instance,
    store: Xenstore,
    node: &'static Node,
    pub(super) desk: &'static Desk,
    /// Its registration as a receiver that waits.
    waiter: Option<WaiterId>,
    /// The event channel that may stand for a request.
    channel: Option<&'static Channel>,
    /// Registered by the first wait.
    watch: Option<Watch>,
    /// The node is to be read again once the request that is being acknowledged was handed out or taken back.
    deferred: bool,
    /// The watch had an event since the node was read.
    fired: bool,
}

impl Mailbox {
    pub(super) fn new(state: Instance, node: &'static Node, channel: Option<&'static Channel>) -> Self {
        let desk = (node.desk)(state);
        let store = Xenstore::new(state);
        Self { state, store, node, desk, waiter: None, channel, watch: None, deferred: false, fired: false }
    }

    /// Waits until there may be a request. An error repeats on each call, after all requests that were acknowledged.
    ///
    /// Cancel safety: nothing is lost by dropping the future.
    pub(super) async fn changed(&mut self) -> Result<(), Error> {
        let Self { state, store, node, desk, waiter, channel, watch, deferred, fired } = self;
        let state = *state;
        let received = &desk.received;
        let mut written = pin!(written(store, node.path, watch));
        let mut rung = pin!(async {
            match channel {
                Some(channel) => channel.rung(state).await,
                None => core::future::pending().await,
            }
        });
        let mut failed = None;
        let result = poll_fn(|context| {
            let given = received.poll(state, waiter, *deferred, context.waker());
            if given.is_ready() || rung.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if failed.is_none() {
                match written.as_mut().poll(context) {
                    Poll::Ready(Err(error)) => failed = Some(error),
                    Poll::Ready(Ok(())) => {
                        *fired = true;
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Pending => {}
                }
            }
            match failed.take_if(|_| !received.is_acknowledging()) {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            }
        })
        .await;
        *deferred = false;
        result
    }

    /// The next request: the one that was acknowledged, or a new one that stays in the node. Begins to acknowledge any other.
    ///
    /// Cancel safety: no request is lost by dropping the future.
    pub(super) async fn receive(&mut self) -> Result<Option<Value>, Error> {
        let received = &self.desk.received;
        loop {
            let changes = match received.take() {
                Taken::Request(value) => return Ok(Some(value)),
                Taken::Pending => {
                    self.deferred = true;
                    return Ok(None);
                }
                Taken::Nothing(changes) => changes,
            };
            let generation = self.state.generation();
            let value = read(&self.store, self.node.path).await?;
            if self.state.generation() != generation {
                continue;
            }
            let is_acknowledged = (self.node.takes)(&value);
            let offered = received.offer(changes, generation, &value, is_acknowledged, self.fired);
            self.fired &= offered == Offered::Stale;
            match offered {
                Offered::Stale => {}
                Offered::Old => return Ok(None),
                Offered::New | Offered::Again if is_acknowledged => {
                    let is_new = offered == Offered::New;
                    // In the background: a receiver waits for its watch too, which counts as something that can wake main.
                    let task: Pin<Box<dyn Future<Output = ()>>> =
                        Box::pin(acknowledge(self.state, self.node, generation, value, is_new));
                    spawn(in_background(self.state, task)).detach();
                }
                Offered::New | Offered::Again => {
                    received.leave(generation, value.clone());
                    return Ok(Some(value));
                }
            }
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        if let Some(id) = self.waiter.filter(|_| self.state.is_running()) {
            self.desk.received.forget(id);
        }
    }
}

/// Waits for an event of the node's watch.
async fn written(store: &Xenstore, path: &str, watch: &mut Option<Watch>) -> Result<(), Error> {
    let watch = match watch {
        Some(watch) => watch,
        none => none.insert(store.watch(path).await?),
    };
    watch.next().await.map(|_| ())
}

/// Acknowledges a request that was read in this generation, and hands it to the receivers if it is new to them.
async fn acknowledge(state: Instance, node: &Node, generation: u64, value: Value, is_new: bool) {
    let received = &(node.desk)(state).received;
    // The domain whose node was accessed last.
    let mut last = generation;
    let taken = time::timeout(LIMIT, take_out(state, node.path, &value, &mut last)).await;
    if !matches!(taken, Ok(Ok(_))) {
        received.leave(last, value.clone());
    }
    match &taken {
        Ok(Ok(_)) => {}
        // It was told when the request was new.
        _ if !is_new => {}
        Ok(Err(error)) => {
            log_limited!(control of state, Warn, "{}: {value:.64} is not acknowledged: {error}", node.path)
        }
        Err(time::Elapsed) => {
            log_limited!(control of state, Warn, "{}: {value:.64} is not acknowledged: no answer", node.path)
        }
    }
    let is_elsewhere = last != generation;
    let is_due = match taken {
        // The toolstack took it back.
        Ok(Ok(false)) if !is_elsewhere => false,
        // The node of the new domain had the same request, which is another one.
        Ok(Ok(true)) if is_elsewhere => last == state.generation() || !(node.ends_with_suspend)(&value),
        // The node that it was read from went with the old domain, where nobody took it back.
        _ => is_new && !(received.was_suspended() && (node.ends_with_suspend)(&value)),
    };
    received.settle(is_due.then_some(value));
}

/// Writes an empty value in the place of a request; says whether that was still there.
async fn take_out(state: Instance, path: &str, value: &Value, generation: &mut u64) -> Result<bool, Error> {
    Xenstore::new(state)
        .transaction(async |nodes| {
            *generation = state.generation();
            let is_there = read(nodes, path).await? == *value;
            if is_there {
                nodes.write(path, "").await?;
            }
            Ok(is_there)
        })
        .await
}

/// The value of a node, empty if the node does not exist.
async fn read(nodes: &Nodes, path: &str) -> Result<Value, Error> {
    match nodes.read(path).await {
        Err(error) if error == ErrorKind::NotFound => Ok(Value::default()),
        value => value,
    }
}
