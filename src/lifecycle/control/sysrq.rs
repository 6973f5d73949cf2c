//! Keys of `xl sysrq`.

use super::claim::COUNTS;
use super::claim::KEYS;
use super::claim::count;
use super::node::{Mailbox, Node};
use super::received::word;
use super::stream::Stream;
use crate::domain::Domain;
use crate::local::Instance;
use crate::xenstore::Error;

/// The node of the keys.
static NODE: Node =
    Node { path: "control/sysrq", desk: |state| KEYS.of(state), takes: |_| true, ends_with_suspend: |_| false };

/// The keys that `xl sysrq` sends, for as long as the application wants them: see [`Domain::sysrq`].
#[must_use = "without a stream that is held, keys are logged"]
#[derive(Debug)]
pub struct SysRq(Stream);

impl Domain {
    /// Takes over what comes by `xl sysrq`, until what is returned is dropped; else it is logged, and means nothing. A key goes
    /// to one stream, if there are several.
    #[doc(alias = "control/sysrq")]
    pub fn sysrq(&self) -> SysRq {
        SysRq(Stream::new(self.0, mailbox(self.0)))
    }
}

impl SysRq {
    /// Waits for the next key: a byte, as the toolstack sends it.
    ///
    /// # Errors
    ///
    /// As for [`ShutdownRequests::next`](crate::lifecycle::ShutdownRequests::next).
    ///
    /// # Cancel safety
    ///
    /// No key is lost by dropping the future: one that was acknowledged is what the next call returns, or, if the stream is
    /// dropped, goes to another stream or to the log. The toolstack overwrites a key that was not acknowledged with the next.
    pub async fn next(&mut self) -> Result<u8, Error> {
        self.0.next(receive).await
    }
}

/// A receiver of the node's keys.
pub(super) fn mailbox(state: Instance) -> Mailbox {
    Mailbox::new(state, &NODE, None)
}

/// The next key, if there is one. The caller returns it without a further await.
pub(super) async fn receive(state: Instance, mailbox: &mut Mailbox) -> Result<Option<u8>, Error> {
    let key = mailbox.receive().await?.and_then(|value| word(&value).first().copied());
    if key.is_some() {
        count(&COUNTS.of(state).sysrq);
    }
    Ok(key)
}
