//! Keys of `xl sysrq`.

use core::fmt;

use super::desk::count;
use super::mailbox::{Mailbox, word};
use crate::domain::Domain;
use crate::state::State;
use crate::xenstore::Error;

/// The node of the keys.
const PATH: &str = "control/sysrq";

/// The keys that `xl sysrq` sends, for as long as the application wants them: see [`Domain::sysrq`].
#[must_use = "without a stream that is held, keys are logged"]
pub struct SysRq {
    state: &'static State,
    mailbox: Mailbox,
    /// There may be a key.
    look: bool,
}

impl Domain {
    /// Takes over what comes by `xl sysrq`, until what is returned is dropped; else it is logged, and means nothing. A key goes
    /// to one stream, if there are several.
    #[doc(alias = "control/sysrq")]
    pub fn sysrq(&self) -> SysRq {
        self.0.lifecycle.sysrq.take();
        SysRq { state: self.0, mailbox: Mailbox::new(self.0, PATH), look: false }
    }
}

impl SysRq {
    /// Waits for the next key: a byte, as the toolstack sends it.
    ///
    /// # Errors
    ///
    /// As for [`ShutdownRequests::next`](super::ShutdownRequests::next).
    ///
    /// # Cancel safety
    ///
    /// No key is lost by dropping the future. The toolstack overwrites a key that was not fetched with the next.
    pub async fn next(&mut self) -> Result<u8, Error> {
        loop {
            if !self.look {
                self.mailbox.changed().await?;
                self.look = true;
            }
            let key = receive(self.state, &mut self.mailbox).await?;
            self.look = false;
            if let Some(key) = key {
                return Ok(key);
            }
        }
    }
}

impl Drop for SysRq {
    fn drop(&mut self) {
        self.state.lifecycle.sysrq.give_back();
    }
}

impl fmt::Debug for SysRq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SysRq").finish_non_exhaustive()
    }
}

/// The node, for this crate's own task.
pub(super) const fn mailbox(state: &'static State) -> Mailbox {
    Mailbox::new(state, PATH)
}

/// The key that is there, if it is a new one.
pub(super) async fn receive(state: &State, mailbox: &mut Mailbox) -> Result<Option<u8>, Error> {
    let key = mailbox.receive(|_| true).await?.and_then(|value| word(&value).first().copied());
    if key.is_some() {
        count(&state.lifecycle.counts.sysrq);
    }
    Ok(key)
}
