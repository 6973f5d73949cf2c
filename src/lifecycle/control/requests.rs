//! Requests of the toolstack's to shut down.

use super::claim::COUNTS;
use super::claim::REQUESTS;
use super::claim::count;
use super::node::{Mailbox, Node};
use super::received::word;
use super::stream::Stream;
use crate::console::rate_limit::log_limited;
use crate::domain::Domain;
use crate::lifecycle::Reason;
use crate::lifecycle::suspend::suspend_evtchn::CHANNEL;
use crate::local::Instance;
use crate::xenstore::{Error, Value};

/// The node of the requests. An unknown one cannot be done, and is not acknowledged.
pub(in crate::lifecycle) static NODE: Node = Node {
    path: "control/shutdown",
    desk: |state| REQUESTS.of(state),
    takes: |value| !matches!(ShutdownRequest::new(value), ShutdownRequest::Unknown(_)),
    ends_with_suspend: |value| ShutdownRequest::new(value) == ShutdownRequest::Suspend,
};

/// What the toolstack asks for.
#[doc(alias = "control/shutdown")]
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ShutdownRequest {
    /// To end: `xl shutdown`.
    Poweroff,
    /// To end, and be started again: `xl reboot`.
    Reboot,
    /// To end, as some toolstacks say it.
    Halt,
    /// To be saved or moved, by `xl save` and `xl migrate`: [`suspend`](crate::lifecycle::suspend()) does that. The toolstack waits a
    /// minute for it. It asks by an event where the domain names a channel for that, and is not told that it was heard then.
    Suspend,
    /// To crash, as some tests do.
    Crash,
    /// A word that this crate does not know. It was left where it is.
    Unknown(Value),
}

impl ShutdownRequest {
    fn new(value: &Value) -> Self {
        match word(value).trim_ascii() {
            b"poweroff" => Self::Poweroff,
            b"reboot" => Self::Reboot,
            b"halt" => Self::Halt,
            b"suspend" => Self::Suspend,
            b"crash" => Self::Crash,
            _ => Self::Unknown(value.clone()),
        }
    }

    /// The reason with which a domain ends that does as it is told; none for what is no end.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        match self {
            Self::Poweroff | Self::Halt => Some(Reason::Poweroff),
            Self::Reboot => Some(Reason::Reboot),
            Self::Crash => Some(Reason::Crash),
            Self::Suspend | Self::Unknown(_) => None,
        }
    }
}

/// The toolstack's requests, for as long as the application decides about them: see
/// [`Domain::shutdown_requests`].
#[must_use = "without a stream that is held, requests are obeyed beside main"]
#[derive(Debug)]
pub struct ShutdownRequests(Stream);

impl Domain {
    /// Takes over what the toolstack asks for by `xl shutdown` and the like: from now on, until what is returned is dropped,
    /// the domain does not end by itself then. A request goes to one stream, if there are several.
    #[doc(alias("control/shutdown", "SHUTDOWN_poweroff"))]
    pub fn shutdown_requests(&self) -> ShutdownRequests {
        ShutdownRequests(Stream::new(self.0, mailbox(self.0)))
    }
}

impl ShutdownRequests {
    /// Waits for the next request. Whoever has it is to do it: the toolstack is told that its word was received. It is not told of
    /// [`Unknown`](ShutdownRequest::Unknown) ones, which come once, however often the toolstack says them, until it takes them
    /// back.
    ///
    /// # Errors
    ///
    /// Those of [`Watch::next`](crate::xenstore::Watch::next), [`Xenstore::watch`](crate::xenstore::Xenstore::watch) and
    /// [`Nodes::read`](crate::xenstore::Nodes::read). That the store refuses to have a request acknowledged is none.
    ///
    /// # Cancel safety
    ///
    /// No request is lost by dropping the future: one that was acknowledged is what the next call returns. If the stream is
    /// dropped, it goes to another stream, or is obeyed at once where requests are obeyed beside main.
    pub async fn next(&mut self) -> Result<ShutdownRequest, Error> {
        self.0.next(receive).await
    }
}

/// A receiver of the node's requests.
pub(super) fn mailbox(state: Instance) -> Mailbox {
    Mailbox::new(state, &NODE, Some(CHANNEL.of(state)))
}

/// The next request, if there is one. The caller returns it without a further await.
pub(super) async fn receive(state: Instance, mailbox: &mut Mailbox) -> Result<Option<ShutdownRequest>, Error> {
    let request = if CHANNEL.of(state).take() {
        ShutdownRequest::Suspend
    } else {
        match mailbox.receive().await? {
            Some(value) => ShutdownRequest::new(&value),
            None => return Ok(None),
        }
    };
    let counts = COUNTS.of(state);
    count(&counts.requests);
    match &request {
        ShutdownRequest::Suspend => count(&counts.suspends),
        ShutdownRequest::Unknown(value) => {
            count(&counts.unknown);
            log_limited!(requests of state, Warn, "unknown shutdown request: {value:.64}");
        }
        _ => {}
    }
    Ok(Some(request))
}
