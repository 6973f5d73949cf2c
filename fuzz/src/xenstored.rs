//! The server's end of the page that a domain shares with xenstored, for targets that are the server: bytes in and out, and the
//! requests that they are. Written from the description of the page, as the simulated xenstored is, which is stopped meanwhile.

use domu::sim::abi::xs_wire::{
    CONNECTED, CONNECTION, ERROR, HEADER_SIZE, MessageType, PAYLOAD_MAX, RECONNECT, REQ, REQ_CONS, REQ_PROD, RING_SIZE,
    RSP, RSP_CONS, RSP_PROD, SERVER_FEATURES,
};
use domu::sim::access::fuzz_peer::{self, Access};

/// A request of the domain's that came whole.
#[derive(Debug)]
pub struct Request {
    pub ty: MessageType,
    pub id: u32,
    pub payload: Vec<u8>,
}

impl Request {
    /// One of its strings, each of which ends in a NUL.
    pub fn string(&self, index: usize) -> &[u8] {
        self.payload.split(|&byte| byte == 0).nth(index).unwrap_or_default()
    }
}

/// A message as it travels.
pub fn message(ty: MessageType, id: u32, payload: &[u8]) -> Vec<u8> {
    message_of_length(ty, id, payload.len() as u32, payload)
}

/// One that says a length, which may be a lie.
pub fn message_of_length(ty: MessageType, id: u32, length: u32, payload: &[u8]) -> Vec<u8> {
    [ty.0, id, 0, length].into_iter().flat_map(u32::to_le_bytes).chain(payload.iter().copied()).collect()
}

/// The server's end.
pub struct Server {
    page: Access,
    port: u32,
    /// How far it has read, and written.
    consumed: u32,
    produced: u32,
    /// What it has read of a request.
    incoming: Vec<u8>,
}

impl Server {
    /// Of the domain that this thread runs, before it asks for anything.
    pub fn new(features: u32) -> Self {
        let (page, port) = fuzz_peer::xenstore().expect("a domain with xenstore");
        page.store(SERVER_FEATURES, features);
        let (consumed, produced) = (page.load(REQ_PROD), page.load(RSP_PROD));
        Self { page, port, consumed, produced, incoming: Vec::new() }
    }

    pub fn notify(&self) {
        fuzz_peer::notify(self.port);
    }

    /// Overwrites a word beside the rings, or an index.
    pub fn set(&self, offset: usize, word: u32) {
        self.page.store(offset, word);
    }

    /// What the domain has asked for since, and takes it out of the ring. An index or a length that cannot be is not followed.
    pub fn requests(&mut self) -> Vec<Request> {
        let unread = self.page.load(REQ_PROD).wrapping_sub(self.consumed);
        if unread <= RING_SIZE {
            for index in 0..unread {
                let place = REQ + (self.consumed.wrapping_add(index) % RING_SIZE) as usize;
                self.incoming.push(self.page.load(place).to_le_bytes()[place % 4]);
            }
            self.consumed = self.consumed.wrapping_add(unread);
            self.page.store(REQ_CONS, self.consumed);
        }
        let mut requests = Vec::new();
        while let Some((header, rest)) = self.incoming.split_first_chunk::<HEADER_SIZE>() {
            let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let length = field(12) as usize;
            if length > PAYLOAD_MAX {
                self.incoming.clear();
                break;
            }
            let Some(payload) = rest.get(..length) else { break };
            requests.push(Request { ty: MessageType(field(0)), id: field(4), payload: payload.to_vec() });
            self.incoming.drain(..HEADER_SIZE + length);
        }
        requests
    }

    /// How many bytes the ring has room for.
    pub fn room(&self) -> usize {
        RING_SIZE.saturating_sub(self.produced.wrapping_sub(self.page.load(RSP_CONS))) as usize
    }

    /// Writes as many of some bytes as there is room for, tells the domain, and says how many.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        for &byte in &bytes[..count] {
            let place = RSP + (self.produced % RING_SIZE) as usize;
            let mut word = self.page.load(place).to_le_bytes();
            word[place % 4] = byte;
            self.page.store(place, u32::from_le_bytes(word));
            self.produced = self.produced.wrapping_add(1);
        }
        self.page.store(RSP_PROD, self.produced);
        self.notify();
        count
    }

    /// How far it has read and written.
    pub const fn progress(&self) -> (u32, u32) {
        (self.consumed, self.produced)
    }

    /// Whether the domain wants a new connection.
    pub fn is_asked_anew(&self) -> bool {
        self.page.load(CONNECTION) == RECONNECT
    }

    /// Makes one.
    pub fn connect(&mut self) {
        for offset in [REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS, ERROR] {
            self.page.store(offset, 0);
        }
        (self.consumed, self.produced) = (0, 0);
        self.incoming.clear();
        self.page.store(CONNECTION, CONNECTED);
        self.notify();
    }

    /// Shows indices of replies of which one at least cannot be, wherever the domain's own stands.
    pub async fn break_connection(&self) {
        for index in [0, 1 << 31] {
            self.set(RSP_PROD, index);
            self.notify();
            // Longer than the longest back-off of the client, which does not look before.
            domu::time::sleep(core::time::Duration::from_secs(2)).await;
        }
    }
}

/// Lets the client take what has come, those who waited for it look, and what these ask for go out.
pub async fn turns() {
    for _ in 0..4 {
        domu::executor::yield_now().await;
    }
}
