//! The server's end of a domain's ring: requests out of it, replies and events into it.
//!
//! Written from the description of the page, not with the crate's own ring and codec, so that no mistake is made on both
//! sides alike.

use core::sync::atomic::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::string::String;
use std::vec::Vec;

use crate::abi::xs_wire::{
    CONNECTED, CONNECTION, ERROR, ERROR_PROTOCOL, ERROR_RING_INDEX, FEATURE_ERROR, HEADER_SIZE, Header, MessageType,
    PAYLOAD_MAX, REQ, REQ_CONS, REQ_PROD, RING_SIZE, RSP, RSP_CONS, RSP_PROD, SERVER_FEATURES,
};
use crate::shared::SharedPage;
use crate::sim::xenstored::Message;
use crate::sim::xenstored::tree::Transaction;

/// A watch of a domain's.
pub(in crate::sim) struct Watch {
    /// As the domain wrote it.
    pub(in crate::sim) path: String,
    pub(in crate::sim) absolute: String,
    pub(in crate::sim) token: Vec<u8>,
    /// How many levels below its node it goes.
    pub(in crate::sim) depth: Option<usize>,
}

/// What waits to be written.
struct Outgoing {
    bytes: Vec<u8>,
    /// It counts as a request that is outstanding.
    is_reply: bool,
}

/// What reading has come to.
pub(in crate::sim) enum Read {
    /// There is no more.
    Empty,
    /// Some bytes, but no whole request yet.
    Some,
    Request(Message),
}

/// A domain that the server knows.
pub(in crate::sim) struct Connection {
    page: SharedPage,
    pub(in crate::sim) features: u32,
    /// The true index of what was read.
    consumed: u32,
    /// The true index of what was written.
    produced: u32,
    incoming: Vec<u8>,
    outgoing: VecDeque<Outgoing>,
    /// Bytes of the first of those that are written.
    written: usize,
    pub(in crate::sim) watches: Vec<Watch>,
    pub(in crate::sim) transactions: BTreeMap<u32, Transaction>,
    /// When the server has its next turn here.
    pub(in crate::sim) due_ns: Option<u64>,
    /// Until when the connection is yet to be made.
    pub(in crate::sim) waits_ns: Option<u64>,
    /// Words of the page to be overwritten, by offset.
    pub(in crate::sim) words: Vec<(usize, u32)>,
    /// An event is to be raised.
    pub(in crate::sim) raise: bool,
    /// Why it is served no more.
    pub(in crate::sim) error: Option<u32>,
}

/// Fills both buffers with something: where an access takes long, here and there.
fn fill(page: SharedPage, byte: u8) {
    for offset in (REQ..RSP + RING_SIZE as usize).step_by(if cfg!(miri) { 64 } else { 1 }) {
        page.u8(offset).store(byte, Ordering::Relaxed);
    }
}

impl Connection {
    /// A page as the toolstack leaves it, but that its indices and buffers may hold anything.
    pub(in crate::sim) fn new(page: SharedPage, features: u32, state: u32, index: u32) -> Self {
        fill(page, 0xaa);
        let produced = index.wrapping_mul(3);
        let words = [(REQ_PROD, index), (REQ_CONS, index), (RSP_PROD, produced), (RSP_CONS, produced)];
        for (offset, word) in words.into_iter().chain([(SERVER_FEATURES, features), (CONNECTION, state), (ERROR, 0)]) {
            page.u32(offset).store(word, Ordering::Relaxed);
        }
        Self {
            page,
            features,
            consumed: index,
            produced,
            incoming: Vec::new(),
            outgoing: VecDeque::new(),
            written: 0,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            due_ns: None,
            waits_ns: None,
            words: Vec::new(),
            raise: false,
            error: None,
        }
    }

    pub(in crate::sim) fn state(&self) -> u32 {
        self.page.u32(CONNECTION).load(Ordering::Acquire)
    }

    /// Begins anew: the rings are empty, and what is not written or not committed is lost.
    pub(in crate::sim) fn reconnect(&mut self) {
        fill(self.page, 0xff);
        for offset in [REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS, ERROR] {
            self.page.u32(offset).store(0, Ordering::Relaxed);
        }
        (self.consumed, self.produced, self.written) = (0, 0, 0);
        self.incoming.clear();
        self.outgoing.clear();
        self.watches.clear();
        self.transactions.clear();
        (self.raise, self.error) = (true, None);
        self.page.u32(CONNECTION).store(CONNECTED, Ordering::Release);
    }

    /// Overwrites words of the page as a test ordered.
    pub(in crate::sim) fn overwrite(&mut self) {
        for (offset, word) in core::mem::take(&mut self.words) {
            self.page.u32(offset).store(word, Ordering::Release);
            self.raise = true;
        }
    }

    /// Serves the domain no more, as the guest has done what cannot be.
    fn fail(&mut self, error: u32) {
        self.error = Some(error);
        if self.features & FEATURE_ERROR != 0 {
            self.page.u32(ERROR).store(error, Ordering::Release);
            self.raise = true;
        }
    }

    /// Requests that were read and are not answered yet.
    pub(in crate::sim) fn outstanding(&self) -> usize {
        self.outgoing.iter().filter(|outgoing| outgoing.is_reply).count()
    }

    /// Reads up to the end of the next request, and at most so many bytes.
    pub(in crate::sim) fn read(&mut self, limit: &mut u32) -> Read {
        let produced = self.page.u32(REQ_PROD).load(Ordering::Acquire);
        let unread = produced.wrapping_sub(self.consumed);
        if unread > RING_SIZE {
            self.fail(ERROR_RING_INDEX);
            return Read::Empty;
        }
        let mut count = 0;
        let mut end = self.request_end();
        while count < unread.min(*limit) && self.incoming.len() < end {
            let place = REQ + (self.consumed.wrapping_add(count) % RING_SIZE) as usize;
            self.incoming.push(self.page.u8(place).load(Ordering::Relaxed));
            count += 1;
            end = self.request_end();
        }
        *limit -= count;
        self.consumed = self.consumed.wrapping_add(count);
        if count > 0 {
            self.page.u32(REQ_CONS).store(self.consumed, Ordering::Release);
            self.raise = true;
        }
        if end > HEADER_SIZE + PAYLOAD_MAX {
            self.fail(ERROR_PROTOCOL);
            return Read::Empty;
        }
        match count {
            _ if self.incoming.len() == end => Read::Request(self.request()),
            0 => Read::Empty,
            _ => Read::Some,
        }
    }

    /// Bytes of the request at hand: of its header, as long as that is not there.
    fn request_end(&self) -> usize {
        let field = |index: usize| self.incoming.get(index..index + 4).map_or(0, |_| self.field(index));
        HEADER_SIZE + field(12) as usize
    }

    fn field(&self, index: usize) -> u32 {
        let bytes = [0, 1, 2, 3].map(|offset| self.incoming[index + offset]);
        u32::from_le_bytes(bytes)
    }

    /// Takes the request at hand, which is whole.
    fn request(&mut self) -> Message {
        let [ty, req_id, tx_id, len] = [0, 4, 8, 12].map(|index| self.field(index));
        let payload = self.incoming.split_off(HEADER_SIZE);
        self.incoming.clear();
        Message { header: Header { ty: MessageType(ty), req_id, tx_id, len }, payload }
    }

    /// Lets a message wait to be written.
    pub(in crate::sim) fn send(&mut self, message: &Message, is_reply: bool) {
        let Header { ty, req_id, tx_id, len } = message.header;
        let header = [ty.0, req_id, tx_id, len].into_iter().flat_map(u32::to_le_bytes);
        let bytes = header.chain(message.payload.iter().copied()).collect();
        self.outgoing.push_back(Outgoing { bytes, is_reply });
    }

    /// Writes as many bytes as there is room for, and at most so many; says if it wrote any.
    pub(in crate::sim) fn write(&mut self, limit: &mut u32) -> bool {
        let taken = self.page.u32(RSP_CONS).load(Ordering::Acquire);
        let unread = self.produced.wrapping_sub(taken);
        if unread > RING_SIZE {
            self.fail(ERROR_RING_INDEX);
            return false;
        }
        let room = (RING_SIZE - unread).min(*limit);
        let mut count = 0;
        while let Some(first) = self.outgoing.front().filter(|_| count < room) {
            let place = RSP + (self.produced.wrapping_add(count) % RING_SIZE) as usize;
            self.page.u8(place).store(first.bytes[self.written], Ordering::Relaxed);
            (count, self.written) = (count + 1, self.written + 1);
            if self.written == first.bytes.len() {
                self.outgoing.pop_front();
                self.written = 0;
            }
        }
        *limit -= count;
        self.produced = self.produced.wrapping_add(count);
        if count > 0 {
            self.page.u32(RSP_PROD).store(self.produced, Ordering::Release);
            self.raise = true;
        }
        count > 0
    }

    /// Whether there is something to read, or to write with room for it.
    pub(in crate::sim) fn has_work(&self, most_outstanding: usize) -> bool {
        let unread = self.page.u32(REQ_PROD).load(Ordering::Acquire).wrapping_sub(self.consumed);
        let used = self.produced.wrapping_sub(self.page.u32(RSP_CONS).load(Ordering::Acquire));
        let reads = unread > 0 && self.outstanding() < most_outstanding;
        self.error.is_none() && (reads || (!self.outgoing.is_empty() && used < RING_SIZE))
    }
}
