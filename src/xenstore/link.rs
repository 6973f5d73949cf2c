//! The page that a domain and xenstored share: a ring of requests, a ring of replies, and the state of the connection.
//!
//! How the rings' indices are ordered stands in [`shared`](crate::shared). The words beside them are the server's, but for
//! one: of the state of the connection the domain writes that it wants a new one. The word of features is never written.

use core::sync::atomic::Ordering;

use super::wire::{Decoder, Impossible, Message, Payload};
use crate::abi::xs_wire::{
    CONNECTION, ERROR, ERROR_NONE, FEATURE_ERROR, FEATURE_RECONNECTION, HEADER_SIZE, Header, RECONNECT, REQ, REQ_CONS,
    REQ_PROD, RING_SIZE, RSP, RSP_CONS, RSP_PROD, SERVER_FEATURES,
};
use crate::shared::{Consumer, Corrupt, Layout, Producer, SharedPage};

const REQUESTS: Layout = Layout { data: REQ, size: RING_SIZE, producer: REQ_PROD, consumer: REQ_CONS };
const REPLIES: Layout = Layout { data: RSP, size: RING_SIZE, producer: RSP_PROD, consumer: RSP_CONS };

/// The connection makes no sense any more.
impl From<Corrupt> for Impossible {
    fn from(_: Corrupt) -> Self {
        Self
    }
}

/// The page, before and between connections: nothing but the state of the connection is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page(SharedPage);

impl Page {
    pub(super) const fn new(page: SharedPage) -> Self {
        Self(page)
    }

    /// Joins the rings where their indices stand, unless the server has yet to make the connection.
    pub(super) fn join(self) -> Result<Option<Link>, Impossible> {
        if self.0.u32(CONNECTION).load(Ordering::Acquire) == RECONNECT {
            return Ok(None);
        }
        Ok(Some(Link {
            page: self,
            old_error: self.0.u32(ERROR).load(Ordering::Relaxed),
            requests: Producer::attach(self.0, REQUESTS)?,
            replies: Consumer::attach(self.0, REPLIES)?,
            decoder: Decoder::new(),
            sending: None,
        }))
    }

    /// The features that the server offers, now.
    fn offers(self, feature: u32) -> bool {
        self.0.u32(SERVER_FEATURES).load(Ordering::Relaxed) & feature != 0
    }

    /// Asks for a new connection, if the server offers that. It is to be notified then.
    pub(super) fn ask_anew(self) -> bool {
        let offered = self.offers(FEATURE_RECONNECTION);
        if offered {
            self.0.u32(CONNECTION).store(RECONNECT, Ordering::Release);
        }
        offered
    }
}

/// A message on its way into the ring.
#[derive(Debug)]
struct Sending {
    header: [u8; HEADER_SIZE],
    payload: Payload,
    /// Bytes of both that are in the ring.
    sent: usize,
}

impl Sending {
    /// What is not in the ring yet, or its beginning: empty when all is.
    fn rest(&self) -> &[u8] {
        match self.header.get(self.sent..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => self.payload.as_bytes().get(self.sent - HEADER_SIZE..).unwrap_or_default(),
        }
    }
}

/// A connection. After an [`Impossible`] it is to be given up.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) page: Page,
    /// What the server said of the connection before this one, if it has not taken that back.
    old_error: u32,
    requests: Producer,
    replies: Consumer,
    decoder: Decoder,
    sending: Option<Sending>,
}

impl Link {
    /// Looks whether the server still serves the connection, as far as it says, and tells how far it has read.
    pub(super) fn check(&mut self) -> Result<(), Impossible> {
        self.requests.read_pending()?;
        let error = self.page.0.u32(ERROR).load(Ordering::Relaxed);
        let failed = self.page.offers(FEATURE_ERROR) && error != ERROR_NONE && error != self.old_error;
        if failed { Err(Impossible) } else { Ok(()) }
    }

    /// Takes a piece of what the server has sent, and says how many bytes it is, and which message it completes.
    pub(super) fn receive(&mut self) -> Result<(usize, Option<Message<'_>>), Impossible> {
        let count = self.replies.pop(self.decoder.space())?;
        Ok((count, self.decoder.advance(count)?))
    }

    /// Whether the message before is whole in the ring, so that the next may be [started](Self::start).
    pub(super) const fn is_free(&self) -> bool {
        self.sending.is_none()
    }

    /// Begins to send a message.
    pub(super) fn start(&mut self, header: Header, payload: Payload) {
        self.sending = Some(Sending { header: header.encode(), payload, sent: 0 });
    }

    /// Puts as much of the message into the ring as fits, and says how many bytes that is.
    pub(super) fn send(&mut self) -> Result<usize, Impossible> {
        let mut total = 0;
        while let Some(sending) = &mut self.sending {
            let rest = sending.rest();
            if rest.is_empty() {
                self.sending = None;
                break;
            }
            let count = self.requests.push(rest)?;
            if count == 0 {
                break;
            }
            sending.sent += count;
            total += count;
        }
        Ok(total)
    }
}
