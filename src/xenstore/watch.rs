//! Watches: being told of changes.

use core::fmt;
use core::future::poll_fn;
use core::task::Poll;

use super::watches::WatcherId;
use super::{Error, ErrorKind, Operation, Path, Value, Xenstore};
use crate::local::Instance;
use crate::xenstore::CONNECTION;

/// Tells of changes at a path and below, until it is dropped. Many watches of one path are one to the server.
///
/// The first event comes at once. Events say that something may have changed, no more: several changes are told of as one,
/// and some events have no change behind them.
#[must_use = "a watch ends when it is dropped"]
pub struct Watch {
    state: Instance,
    id: WatcherId,
    path: Path,
}

impl Watch {
    /// Waits for the next event, and says where: at a path below the one that is watched; or at that path itself, and then
    /// anything at it or below may have changed. It is relative if the watched one is.
    ///
    /// For a watch that nobody asks up to 16 paths are kept, in the order in which they changed first; of more changes than
    /// that the event is one, at the watched path. So it is when the connection was broken and there is a new one.
    ///
    /// # Errors
    ///
    /// Once nothing is left to be told, and then each time: [`ErrorKind::Broken`] if the connection is broken for good; why the
    /// server refused to have the watch on a new connection.
    ///
    /// # Cancel safety
    ///
    /// No event is lost by dropping the future.
    pub async fn next(&mut self) -> Result<Path, Error> {
        poll_fn(|context| match self.state.is_running() {
            true => CONNECTION.of(self.state).poll_changed(self.id, context.waker()),
            false => Poll::Ready(Err(ErrorKind::Absent)),
        })
        .await
        .map_err(|kind| kind.at(Operation::WatchEvent, self.path.as_str()))
    }

    /// The path that is watched.
    #[must_use]
    pub const fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Dropped outside of its domain, it stays until that domain ends.
        if self.state.is_running() {
            CONNECTION.of(self.state).unwatch(self.id);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.path).finish()
    }
}

impl Xenstore {
    /// Watches a path, which need not be there, or one of the special paths. Of what the domain may not read, and of special
    /// paths that are not for it, there are no events but the first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPath`]; [`ErrorKind::Quota`]: servers allow a domain some 100 watches of different paths;
    /// [`ErrorKind::Denied`] by a server that tells who may not watch; those of a connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    #[doc(alias("XS_WATCH", "xs_watch"))]
    pub async fn watch(&self, path: impl AsRef<str>) -> Result<Watch, Error> {
        let path = path.as_ref();
        self.register(path).await.map_err(|kind| kind.at(Operation::Watch, path))
    }

    async fn register(&self, path: &str) -> Result<Watch, ErrorKind> {
        let path = Path::try_copy(path)?;
        let id = CONNECTION.of(self.state).watch(self.state, &path)?;
        let watch = Watch { state: self.state, id, path };
        poll_fn(|context| match self.state.is_running() {
            true => CONNECTION.of(self.state).poll_registered(id, context.waker()),
            false => Poll::Ready(Err(ErrorKind::Absent)),
        })
        .await?;
        Ok(watch)
    }

    /// Waits until the value of a node, or that there is none, is accepted, and returns what `accept` makes of it.
    ///
    /// # Errors
    ///
    /// Those of [`watch`](Self::watch), [`Watch::next`] and [`read`](super::Nodes::read), but that the node is not there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the wait, and leaves nothing behind.
    pub async fn wait_for<T>(
        &self,
        path: impl AsRef<str>,
        mut accept: impl FnMut(Option<&Value>) -> Option<T>,
    ) -> Result<T, Error> {
        let mut watch = self.watch(path).await?;
        loop {
            watch.next().await?;
            let value = match self.read(watch.path()).await {
                Ok(value) => Some(value),
                Err(error) if error == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            if let Some(accepted) = accept(value.as_ref()) {
                return Ok(accepted);
            }
        }
    }
}
