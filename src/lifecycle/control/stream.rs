//! What the toolstack says, as a stream of the application's: as long as it is held, words go there, and to nobody else.

use core::fmt;

use super::node::Mailbox;
use crate::local::Instance;
use crate::xenstore::{Error, ErrorKind};

/// Words of one kind, for the application.
pub(super) struct Stream {
    state: Instance,
    mailbox: Mailbox,
    /// There may be a word.
    look: bool,
    /// The node's default handler is silenced. Not by a stream that is made outside of its domain.
    is_taken: bool,
}

impl Stream {
    /// The application takes over, until this is dropped.
    pub(super) fn new(state: Instance, mailbox: Mailbox) -> Self {
        let is_taken = state.is_running();
        if is_taken {
            mailbox.desk.take();
        }
        Self { state, mailbox, look: false, is_taken }
    }

    /// Waits for the next word, which `receive` looks for.
    ///
    /// Cancel safety: that of `receive`.
    pub(super) async fn next<T>(
        &mut self,
        receive: impl AsyncFn(Instance, &mut Mailbox) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        if !self.state.is_running() {
            return Err(ErrorKind::Absent.into());
        }
        loop {
            if !self.look {
                self.mailbox.changed().await?;
                self.look = true;
            }
            // There may be more of them, which one event has told of.
            if let Some(received) = receive(self.state, &mut self.mailbox).await? {
                return Ok(received);
            }
            self.look = false;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Dropped outside of its domain, it stays until that domain ends.
        if self.is_taken && self.state.is_running() {
            self.mailbox.desk.give_back();
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}
