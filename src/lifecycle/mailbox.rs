//! Words that the toolstack leaves for a domain, one at a time, in a node that both write.
//!
//! It writes a word; the domain reads it, and writes nothing in its place when it takes it. Each side looks at what is there
//! and then writes, so both do it in transactions: the toolstack may take a word back, and write another. Events say no more
//! than that there may be a word, which may be the same one still.

use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use super::channel::Channel;
use crate::state::State;
use crate::time;
use crate::xenstore::{Error, Nodes, Value, Watch, Xenstore};

/// How long taking a word out of the node may last. Then it counts as received all the same: a store that is slow, refuses
/// or is gone must not keep a domain from being shut down.
const LIMIT: Duration = Duration::from_secs(2);

/// A node of the domain's for words.
pub(super) struct Mailbox {
    state: &'static State,
    store: Xenstore,
    path: &'static str,
    /// What else may say that there is something.
    channel: Option<&'static Channel>,
    /// Once it has been asked for.
    watch: Option<Watch>,
    /// The word that lies there, was received, and stays.
    left: Option<Value>,
    /// The word that is being taken out: still here if the future that did it was dropped.
    leaving: Option<Value>,
}

impl Mailbox {
    pub(super) const fn new(state: &'static State, path: &'static str, channel: Option<&'static Channel>) -> Self {
        Self { state, store: Xenstore::new(state), path, channel, watch: None, left: None, leaving: None }
    }

    /// Waits until there may be a word, or another sign. Once it fails it does so each time.
    ///
    /// Cancel safety: nothing is lost by dropping the future.
    pub(super) async fn changed(&mut self) -> Result<(), Error> {
        let Some(channel) = self.channel else { return self.written().await };
        let (mut rung, mut written) = (pin!(channel.rung(self.state)), pin!(self.written()));
        poll_fn(|context| match rung.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => written.as_mut().poll(context),
        })
        .await
    }

    async fn written(&mut self) -> Result<(), Error> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => none.insert(self.store.watch(self.path).await?),
        };
        watch.next().await.map(|_| ())
    }

    /// The word that lies there, unless it has been received before. One that `takes` says so of is taken out.
    ///
    /// Cancel safety: a word that was taken out by a future that was dropped is what the next one returns.
    pub(super) async fn receive(&mut self, takes: fn(&Value) -> bool) -> Result<Option<Value>, Error> {
        loop {
            let value = read(&self.store, self.path).await?;
            if word(&value).is_empty() {
                self.left = None;
                return Ok(self.leaving.take());
            }
            if self.left.as_ref() == Some(&value) {
                return Ok(None);
            }
            if takes(&value) {
                self.leaving = Some(value.clone());
                let taken = time::timeout(LIMIT, self.take_out(&value)).await;
                self.leaving = None;
                match taken {
                    Ok(Ok(true)) => return Ok(Some(value)),
                    // It is another by now, or none.
                    Ok(Ok(false)) => continue,
                    Ok(Err(error)) => log::warn!("{}: {value} is not acknowledged: {error}", self.path),
                    Err(time::Elapsed) => log::warn!("{}: {value} is not acknowledged: no answer", self.path),
                }
            }
            self.left = Some(value.clone());
            return Ok(Some(value));
        }
    }

    /// Writes nothing in the place of a word; says whether it was still there.
    async fn take_out(&self, word: &Value) -> Result<bool, Error> {
        self.store
            .transaction(async |nodes| {
                let is_there = read(nodes, self.path).await? == *word;
                if is_there {
                    nodes.write(self.path, "").await?;
                }
                Ok(is_there)
            })
            .await
    }
}

/// What is in a node; nothing if it is not there.
async fn read(nodes: &Nodes, path: &str) -> Result<Value, Error> {
    match nodes.read(path).await {
        Err(Error::NotFound) => Ok(Value::default()),
        value => value,
    }
}

/// A word without the NUL that some tools leave behind it.
pub(super) fn word(value: &Value) -> &[u8] {
    value.strip_suffix(&[0]).unwrap_or(value)
}
